"""The Ray of this process: found, connected to, or started here below a keeper. Engines of overlapping calls share it."""

import contextlib
import os
import signal
from collections.abc import Mapping, Sequence
from typing import Any

from fourfold.addresses import without_secrets
from fourfold.distribute.connection import (
    PROBE_S,
    Connection,
    cannot_connect,
    unchanged,
)
from fourfold.distribute.engines.on_ray import here, library
from fourfold.distribute.engines.on_ray.head import Head
from fourfold.distribute.engines.on_ray.task import make_task
from fourfold.distribute.keeper import Keeper
from fourfold.distribute.orders import Orders
from fourfold.errors import EngineError


class Cluster(Connection):
    """The Ray of this process, or one that is started here.

    Args:
        address: As `Ray` takes it.
        slots: CPUs of a Ray that is started here.
        ship: As `Ray` takes it.
        resources: As `Ray` takes it.
    """

    where = "the Ray cluster"

    def __init__(
        self, address: str | None, slots: int | None, ship: Sequence[Any], resources: Mapping[str, float] | None
    ) -> None:
        super().__init__(ship)
        self._address, self._slots, self.resources = address, slots, dict(resources or {})
        self._keeper: Keeper | None = None
        self._which: Any = None
        self.task: Any = None
        self.head = Head("", None)
        """Of the cluster, once it is open."""
        self._has_set_tokens = False

    def _answers(self) -> bool:
        try:
            return self.is_there() and self.head.is_heard(now=True)
        except EngineError:
            if self.is_ours:
                return False  # another one is started, or connected to
            raise

    def is_there(self) -> bool:
        """Whether this process has the Ray that was connected to: not none, and no other one."""
        return bool(library.ray().is_initialized()) and library.which_ray() == self._which

    def _connect(self) -> None:
        ray = library.ray()
        if not ray.is_initialized():
            try:
                self._init(ray)
            except EngineError:
                self._forget_tokens()
                raise
        elif self._address not in (None, "auto", "local", _connected_to.get(os.getpid())):
            raise EngineError(
                f"this process has a Ray already, and it is not {without_secrets(self._address)}: call ray.shutdown() first, "
                "or leave the address out"
            )
        self._which = library.which_ray()
        # Over ray:// the head is behind a server, whose connection Ray watches itself.
        is_client = ray.util.client.ray.is_connected()
        self.head = Head("" if is_client else str(ray.get_runtime_context().gcs_address), self._keeper)

    def _init(self, ray: Any) -> None:
        address = self._address
        with unchanged(*here.SET_BY_RAY, signals=[signal.SIGTERM]):
            try:
                if address == "local" or (address is None and not os.environ.get("RAY_ADDRESS")):
                    from fourfold.system.machine import cores

                    self._has_set_tokens = here.ask_for_tokens(ray)
                    self._keeper = Keeper(here.__name__, self._slots or cores().n_cores)
                    address = self._keeper.address
                else:
                    library.check_that_ray_listens(address or os.environ["RAY_ADDRESS"])
                with here.on_loopback(ray) if self._keeper is not None else contextlib.nullcontext():
                    ray.init(address=address, log_to_driver=False, configure_logging=False)
            except Exception as error:
                self._let_go()
                if isinstance(error, EngineError):
                    raise
                where = self._address or os.environ.get("RAY_ADDRESS")
                cannot_connect("Ray", where, error, "Check the address, or leave it out to start one here")
        self.is_ours = True
        _connected_to[os.getpid()] = self._address

    def _open_door(self) -> tuple[str, str] | None:
        if self._keeper is not None or library.asks_who_it_is():
            return None
        advice = (
            "Set RAY_AUTH_MODE=token where it is started and for this process: `ray get-auth-token --generate` makes the token"
        )
        return self.head.address or self._address or "", advice

    def _leave(self) -> None:
        self.task = None
        try:
            if self.is_there():
                library.ray().shutdown()
        finally:
            self._let_go()
            self._forget_tokens()

    def abandon(self, generation: int) -> None:
        """Leave the Ray that is gone, when it was connected to here.

        It would end this process a minute later, and hold up an error that nobody catches until then.
        """
        with self._lock:
            if self.is_ours and self.generation == generation:
                self.is_ours = False
                self._leave()

    def _let_go(self) -> None:
        keeper, self._keeper = self._keeper, None
        if keeper is not None:
            keeper.close()

    def _forget_tokens(self) -> None:
        """The next Ray of this process asks for tokens if its environment says so."""
        if self._has_set_tokens and not library.ray().is_initialized():
            self._has_set_tokens = False
            library.ray()._raylet.Config.initialize("")

    def _probe(self, orders: Orders) -> dict[str, Any]:
        ray = library.ray()
        self.task = ray.remote(make_task(orders.entry))
        ref = self.task.options(num_cpus=0, max_retries=2).remote(orders.version, "", [])
        try:
            found: dict[str, Any] = ray.get(ref, timeout=PROBE_S)
        except Exception as error:
            with contextlib.suppress(Exception):
                ray.cancel(ref, force=True)
            raise EngineError(f"the Ray cluster runs no task: {type(error).__name__}: {error}") from error
        return found

    def _store_cargo(self, orders: Orders) -> Any:
        return library.ray().put(orders.cargo)


_connected_to: dict[int, str | None] = {}
"""The address that this process has connected to by an engine, by its process id."""

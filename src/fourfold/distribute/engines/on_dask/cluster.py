"""The client of a Dask scheduler: given, made for an address, or of a cluster that is started here below a keeper."""

import contextlib
import time
from collections.abc import Mapping, Sequence
from typing import Any

from fourfold.addresses import without_secrets
from fourfold.distribute.connection import (
    PROBE_S,
    Connection,
    cannot_connect,
    check_that_somebody_listens,
)
from fourfold.distribute.engines.on_dask import here
from fourfold.distribute.engines.on_dask.task import make_task
from fourfold.distribute.keeper import Keeper
from fourfold.distribute.orders import Orders
from fourfold.errors import EngineError

CONNECT_S = 10.0
"""Seconds until a scheduler that does not answer counts as not there. Smaller: a slow one is refused. Larger: a wrong address
is told later."""

NOTICE_S = 5.0
"""Seconds in which a scheduler notices that a worker has died: until then it may choose it to store something. Smaller: a call
that begins in that moment fails. Larger: what really cannot be stored is told later. On one machine it takes 20 to 160 ms."""

LOOK_S = 0.02
"""Seconds until it is asked again."""


class Cluster(Connection):
    """A client of a scheduler: given, made for an address, or of a cluster that is started here.

    Args:
        address: As `Dask` takes it.
        client: A client of the user.
        slots: Workers of a cluster that is started here.
        ship: As `Dask` takes it.
        resources: As `Dask` takes it.
    """

    where = "the Dask cluster"

    def __init__(
        self,
        address: str | None,
        client: Any,
        slots: int | None,
        ship: Sequence[Any],
        resources: Mapping[str, float] | None,
    ) -> None:
        super().__init__(ship)
        self._address, self._given, self._slots = address, client, slots
        self.resources = dict(resources or {})
        self.client: Any = None
        self._keeper: Keeper | None = None

    def _answers(self) -> bool:
        if self.client.status != "running":
            return False
        if self.cargo is None or self.cargo.status == "finished":
            return True
        try:
            (self.cargo,) = self.store(self.orders.cargo)
        except EngineError:
            raise
        except Exception:  # it is opened anew, which tells what is wrong
            return False
        return True

    def _connect(self) -> None:
        if self._given is not None:
            self.client = self._given
            return
        import distributed as untyped

        distributed: Any = untyped
        address = self._address
        try:
            if address is None:
                from fourfold.system.machine import cores

                self._keeper = Keeper(here.__name__, self._slots or cores().n_cores)
                address = self._keeper.address
            else:
                check_that_somebody_listens(address, greets=not address.startswith("tls://"))
                _check_certificates(address)
            self.client = distributed.Client(address, set_as_default=False, timeout=CONNECT_S)
        except EngineError:
            self._let_go()
            raise
        except Exception as error:
            self._let_go()
            advice = 'Check the address, or use engine="dask" to start a cluster of this machine'
            cannot_connect("Dask scheduler", address, error, advice)
        self.is_ours = True

    def _open_door(self) -> tuple[str, str] | None:
        place = str(getattr(self.client.scheduler, "address", ""))
        if self._keeper is not None or not place.startswith("tcp://"):
            return None
        return place, "Start its scheduler and workers with certificates (--tls-ca-file, --tls-cert, --tls-key) and use tls://"

    def _leave(self) -> None:
        client, self.client = self.client, None
        try:
            with contextlib.suppress(Exception):  # its scheduler may be gone
                client.close()
        finally:
            self._let_go()

    def _let_go(self) -> None:
        keeper, self._keeper = self._keeper, None
        if keeper is not None:
            keeper.close()

    def _probe(self, orders: Orders) -> dict[str, Any]:
        future = self.ask(orders)
        try:
            found: dict[str, Any] = future.result(timeout=PROBE_S)
        except Exception as error:
            with contextlib.suppress(Exception):
                self.client.cancel([future], force=True)
            raise EngineError(f"the Dask cluster runs no task: {type(error).__name__}: {error}") from error
        return found

    def ask(self, orders: Orders) -> Any:
        """Submit a task without work, which tells what it finds. It needs nothing that is stored.

        A cluster that has no worker may start one for a task, and for nothing else.
        """
        return self.client.submit(
            make_task(orders.entry), orders.version, "", None, pure=False, resources=self.resources or None
        )

    def _store_cargo(self, orders: Orders) -> Any:
        return self.scatter(orders.cargo)[0]

    def store(self, *data: Any) -> list[Any]:
        """Store things for a call that begins, as `scatter` does; a cluster that has no worker is asked for one before.

        Raises:
            EngineError: It runs no task.
        """
        if self.client.scheduler_info(n_workers=1)["workers"]:
            with contextlib.suppress(TimeoutError):  # the last one has gone meanwhile
                return self.scatter(*data)
        self._probe(self.orders)
        return self.scatter(*data)

    def scatter(self, *data: Any) -> list[Any]:
        """Store things, each in the memory of one worker; others take them from there.

        Raises:
            TimeoutError: No worker is there, for CONNECT_S.
            OSError: The scheduler is gone, or the workers that it chooses are.
        """
        failed_at = None
        while True:
            try:
                stored: list[Any] = self.client.scatter([*data], hash=False, broadcast=False, timeout=CONNECT_S)
            except TimeoutError:  # an OSError too, and it has been waited for
                raise
            except OSError:  # at once, or after 30 s in which Dask has tried to reach a worker that is gone
                failed_at = failed_at or time.monotonic()
                if self.client.status != "running" or time.monotonic() - failed_at > NOTICE_S:
                    raise
                time.sleep(LOOK_S)
            else:
                return stored


def _check_certificates(address: str) -> None:
    """A client without the certificates that its address asks for takes 20 s to end, at the end of the process."""
    import distributed as untyped

    distributed: Any = untyped
    if address.startswith("tls://") and distributed.Security().get_connection_args("client")["ssl_context"] is None:
        raise EngineError(
            f"{without_secrets(address)} asks for certificates, and Dask is configured with none: set distributed.comm.tls in "
            "dask.config, or give a client of yours, engine=fourfold.engines.Dask(client=…)"
        )

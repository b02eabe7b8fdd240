"""A connection to somebody else's cluster, kept between calls; and what engines on one have in common.

    engine of call 1 ──┐
    engine of call 2 ──┼── Connection ── the session, client or Ray of this process
    engine of call 3 ──┘

Calls may overlap, and an engine is for one call at a time: so each call has an engine of its own, and all share a connection.
"""

import atexit
import contextlib
import logging
import os
import re
import signal
import socket
import threading
import time
from collections.abc import Iterator, Sequence
from typing import Any, NoReturn, Self

from fourfold.addresses import secrets_of, without_secrets
from fourfold.distribute.engine import EngineInfo
from fourfold.distribute.orders import Orders
from fourfold.errors import EngineError, FourfoldError
from fourfold.options import check_installed
from fourfold.records import Parcel
from fourfold.version import VERSION

PROBE_S = 120.0
"""Seconds until a cluster that runs no task counts as full, or unable. It may have to start a machine. Not measured."""

REACH_S = 5.0
"""Seconds in which somebody must listen at an address. Shorter: a far cluster is refused. Longer: a wrong address is told
later."""

PORTS = {"spark": 7077, "sc": 15002, "ray": 10001, "tcp": 8786, "tls": 8786}
"""By the scheme of an address: the port when it names none."""


class Connection:
    """Opened once, checked before each call, left when this process ends if it was made here.

    Args:
        ship: What workers need of the user's own code.
    """

    where = "the cluster"
    """Where workers are, in messages."""

    def __init__(self, ship: Sequence[Any]) -> None:
        self.ship = ship
        self.cargo: Any = None
        """Where the cluster has what travels along; None: nothing does."""
        self.is_ours = False
        """It was made here, and not given: it ends with this process."""
        self.down = ""
        """Why it is of no use any more."""
        self.generation = 0
        """How often it was opened. What an engine has stored in an earlier one is gone."""
        self.opened_at = self.opening_s = 0.0
        """When it was opened, by `time.perf_counter`, and how long that took."""
        self._orders: Orders | None = None
        self._is_open = False
        self._lock = threading.Lock()
        self._pid = 0

    @property
    def orders(self) -> Orders:
        """Makes orders, once it is open."""
        assert self._orders is not None, "the connection is not open"
        return self._orders

    @property
    def cargo_name(self) -> str:
        """The name of what travels along; "" when that is nothing, or not known yet."""
        return self.orders.cargo_name if self.cargo is not None else ""

    @property
    def is_open(self) -> bool:
        """Whether it was opened, and is of use as far as anybody knows."""
        return self._is_open and not self.down

    def open(self) -> None:
        """Connect, unless that was done and it still answers; prove on one worker that functions can travel there.

        Raises:
            EngineError: There is no cluster there, or it runs no task.
            VersionMismatch: Its Python, or its fourfold, is another one.
        """
        with self._lock:
            if self.is_open and self._answers():
                return
            self._is_open = False
            begin = time.perf_counter()
            if self.is_ours:  # and gone
                with contextlib.suppress(Exception):
                    self._leave()
                self.is_ours = False
            self.cargo = None
            self._connect()
            if self.is_ours:
                self._pid = os.getpid()
                atexit.register(self.shutdown)
            self.down = ""
            self.generation += 1
            self._orders = orders = Orders(VERSION, self.ship)
            try:
                orders.check(self._probe(orders), self.where)
                self.cargo = self._store_cargo(orders) if orders.cargo else None
            except FourfoldError:
                raise
            except Exception as error:
                raise EngineError(f"{self.where} cannot be used: {first_line(error)}") from error
            self._is_open = True
            self.opened_at = time.perf_counter()
            self.opening_s = self.opened_at - begin
            self._warn_of_an_open_door()

    def _warn_of_an_open_door(self) -> None:
        """Once for each cluster that lets everybody in."""
        place, advice = self._open_door() or ("", "")
        if advice and (self.where, place) not in _warned_of:
            _warned_of.add((self.where, place))
            logging.getLogger("fourfold").warning(
                "%s%s lets everybody in who can reach it: to run code there, and to send here what is unpickled here. %s",
                self.where,
                f" at {without_secrets(place)}" if place else "",
                advice,
            )

    def shutdown(self) -> None:
        """Leave the cluster, and end it, when it was made here. Called when this process ends."""
        if self._pid not in (0, os.getpid()):
            return  # a fork: the connection is its parent's
        self._is_open = False
        atexit.unregister(self.shutdown)
        self._orders = self.cargo = None
        if self.is_ours:
            self.is_ours = False
            self._leave()

    # ---- what each cluster does in its own way -----------------------------------------------------------------------

    def _connect(self) -> None:
        """Find or make the connection; sets `is_ours`."""
        raise NotImplementedError

    def _open_door(self) -> tuple[str, str] | None:
        """Where the cluster is, and what to set, when it is somebody else's and asks nobody who he is."""
        return None

    def _leave(self) -> None:
        """End what was made here."""
        raise NotImplementedError

    def _answers(self) -> bool:
        """Whether it can be used still."""
        raise NotImplementedError

    def _probe(self, orders: Orders) -> dict[str, Any]:
        """Run the entry without work on a worker; returns what it found there."""
        raise NotImplementedError

    def _store_cargo(self, orders: Orders) -> Any:
        """Make what travels along available to all tasks."""
        raise NotImplementedError


_warned_of: set[tuple[str, str]] = set()
"""Clusters without authentication that were told of in this process: which kind, and where."""


class OnConnection:
    """What the engines on clusters have in common: they are opened, left and shared alike."""

    info: EngineInfo
    connection: Connection
    most: int | None
    """The most tasks at once; None: as many as the cluster runs."""

    def opening_s(self, since: float) -> float:
        """Seconds that connecting took, when that was after `since` (of `time.perf_counter`); else 0."""
        return self.connection.opening_s if self.connection.opened_at >= since else 0.0

    def _start(self) -> None:
        """Set up the state of one call."""
        raise NotImplementedError

    def close(self) -> None:
        """End what runs, and free what is stored. The connection stays for the next call."""
        raise NotImplementedError

    def for_another_call(self, most: int | None = None) -> Self:
        """An engine on the same connection, for at most so many tasks at once."""
        other = type(self).__new__(type(self))
        other.connection, other.most = self.connection, most
        other._start()
        return other

    def open(self) -> None:
        """Connect, unless that was done; prove on one worker that functions can travel there.

        Raises:
            EngineError: There is no cluster there, or it runs no task.
            MissingExtra: Its library is not installed here.
            VersionMismatch: Its Python, or its fourfold, is another one.
        """
        check_installed(self.info.name, f"fourfold.engines.{type(self).__name__}")
        self.connection.open()

    def shutdown(self) -> None:
        """Leave the cluster; end it, when it was started here."""
        self.close()
        self.connection.shutdown()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.shutdown()


def check_that_somebody_listens(address: str, greets: bool = False) -> None:
    """Clusters themselves try a wrong address for minutes: Spark for one, Ray for two, and Dask one that is silent for ever.

    Args:
        address: Of a scheduler or server, "host:port" or "scheme://host:port,host:port/more". Others are not looked at.
        greets: Who listens there speaks first.

    Raises:
        EngineError: Nobody does, at any of its hosts.
    """
    scheme, _, rest = address.rpartition("://")
    found = [re.fullmatch(r"\[?([^\[\]]+?)\]?(?::(\d+))?", each) for each in re.split("[/;]", rest, maxsplit=1)[0].split(",")]
    places = [(each[1], int(each[2] or PORTS.get(scheme, 0))) for each in found if each]
    if not places or len(places) < len(found) or not all(port for _, port in places):
        return
    for place in places:
        try:
            with socket.create_connection(place, REACH_S) as connected:
                if greets and not connected.recv(1):
                    raise ConnectionAbortedError("it hangs up")
        except OSError as error:
            why = error
        else:
            return
    who = "nobody who greets" if greets and isinstance(why, TimeoutError | ConnectionAbortedError) else "nobody"
    raise EngineError(f"{who} listens at {without_secrets(address)}: {why}. Is the address right, and the cluster up?")


def cannot_connect(what: str, address: str | None, error: Exception, advice: str = "") -> NoReturn:
    """Say that a connection failed. No secret of the address is shown, also not by what is told as the cause.

    Args:
        what: Is not there: "Ray", "Dask scheduler", "Spark".
        address: Where it was looked for; None: on this machine.
        error: Of its library.
        advice: What to do.

    Raises:
        EngineError: Always.
    """
    message = without_secrets(f"no {what} at {address or 'this machine'}: {first_line(error)}", address)
    raise EngineError(f"{message}. {advice}" if advice else message) from (None if secrets_of(address or "") else error)


@contextlib.contextmanager
def unchanged(*variables: str, signals: Sequence[int] = ()) -> Iterator[None]:
    """Put variables of the environment, and handlers of signals, back to what they are now: libraries set their own."""
    handlers = {number: signal.getsignal(number) for number in signals}
    before = {name: os.environ.get(name) for name in variables}
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
        for number, handler in handlers.items():
            # Only the main thread may, and only a handler that is Python's.
            with contextlib.suppress(ValueError, TypeError):
                signal.signal(number, handler)


def parts_as_bytes(parcel: Parcel) -> tuple[bytes, ...]:
    """Head and buffers of a parcel, for clusters that pickle without buffers."""
    return (bytes(parcel.head), *(bytes(buffer) for buffer in parcel.buffers))


def first_line(error: BaseException) -> str:
    """An error of a cluster, without the stack below it."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return without_secrets(f"{type(error).__name__}: {lines[0] if lines else 'no message'}"[:500])

"""The private line between trials where they run and the desk in the driver.

    worker ── one connection for each thread that runs trials ──> a thread here ──> the desk
              (ticket, what, arguments, True)   ──>
                                                <──  (True, value), (False, exception)
              (ticket, what, arguments, False)  ──>                nothing comes back

On this thread and on threads the desk is called as it is. Elsewhere there is a socket, and both sides prove that they know a
key of this call before anything is unpickled: a socket of this machine without a name in the file system, or, for workers of
a cluster, one at the address by which they reach this machine.
"""

import contextlib
import os
import pickle
import socket
import struct
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from multiprocessing import AuthenticationError
from multiprocessing.connection import Client, Connection, Listener, answer_challenge, deliver_challenge
from typing import Any, NamedTuple

import cloudpickle

from fourfold.errors import EngineError
from fourfold.workloads.tune.asking import Ask, Withdrawn

KEY_BYTES = 32

BACKLOG = 128
"""Connections that wait to be accepted. Fewer: workers that begin at once are refused."""

CONNECT_S = 20.0
"""Seconds in which a worker must have reached the driver. Fewer: a busy network is taken for a wall. More: who cannot be
reached at all is told of later. Not measured."""

PROOF_S = 60.0
"""Seconds that the driver has to prove itself to a worker of a cluster. Fewer: one that is stopped for a moment is given up.
More: it is told later that somebody else is there, such as a proxy that takes all connections. Not measured."""

ALIVE_S = 30
"""Seconds without a word after which the other machine is asked whether it is there. Fewer: more packets. More: a worker whose
driver has lost its power waits longer. Not measured."""

LATER_S = 0.1
"""Seconds until connections are accepted again, when this process has too many open files."""


class Served(NamedTuple):
    """What a line leads to.

    Attributes:
        handle: Does what is asked.
        hung_up: Called with a ticket when its connection has ended before it.
        undelivered: Called with a ticket when a trial could not be handed to it.
    """

    handle: Callable[[str, tuple[Any, ...]], Any]
    hung_up: Callable[[int], None]
    undelivered: Callable[[int, Any], None]


class Here:
    """The line of a desk in this process. Pickled, it is one that leads back here.

    Args:
        served: The desk.
        reach: Gives the address by which workers reach this machine; None: they are on it.
    """

    def __init__(self, served: Served, reach: Callable[[], str | None]) -> None:
        self._served, self._reach = served, reach
        self._key = os.urandom(KEY_BYTES)
        self._listener: Listener | None = None
        self._folder: str | None = None
        self._connections: set[Connection] = set()
        self._lock = threading.Lock()
        self._closed = threading.Event()

    @contextlib.contextmanager
    def opened(self, ticket: int) -> Iterator[Ask]:
        """See `fourfold.workloads.tune.asking.Line`."""
        try:
            yield AskHere(self._served.handle)
        finally:
            self._served.hung_up(ticket)

    def __reduce__(self) -> tuple[Any, ...]:
        with self._lock:
            if self._listener is None:
                self._listen()
            assert self._listener is not None
            return There, (self._listener.address, self._key)

    def close(self) -> None:
        """End all connections."""
        self._closed.set()
        with self._lock:
            listener, connections = self._listener, list(self._connections)
        if listener is not None:
            with contextlib.suppress(OSError):  # who waits for a caller is woken up by one
                _connected(listener.address).close()
            listener.close()
        for connection in connections:
            with contextlib.suppress(OSError), _socket_of(connection) as same:
                same.shutdown(socket.SHUT_RDWR)
        if self._folder is not None:
            os.rmdir(self._folder)

    def _listen(self) -> None:
        address = self._reach()
        where: Any
        if address is not None:
            where = (address, 0)
        elif sys.platform == "linux":
            where = f"\0fourfold-{os.urandom(16).hex()}"
        else:
            self._folder = tempfile.mkdtemp(prefix="fourfold-desk-")
            where = os.path.join(self._folder, "desk")
        self._listener = Listener(where, backlog=BACKLOG)
        threading.Thread(target=self._accept, name="fourfold-desk", daemon=True).start()

    def _accept(self) -> None:
        assert self._listener is not None
        while not self._closed.is_set():
            try:
                connection = self._listener.accept()
            except OSError:
                self._closed.wait(LATER_S)
                continue
            with self._lock:
                if self._closed.is_set():
                    connection.close()
                    return
                self._connections.add(connection)
            threading.Thread(target=self._serve, args=(connection,), name="fourfold-desk", daemon=True).start()

    def _serve(self, connection: Connection) -> None:
        ticket: int | None = None
        raised: BaseException | None = None
        try:
            _watched(connection)
            deliver_challenge(connection, self._key)
            answer_challenge(connection, self._key)
            while True:
                asked, request = connection.recv_bytes(), None
                try:
                    ticket, what, args, waits = request = pickle.loads(asked)
                    reply = (True, self._served.handle(what, args)) if raised is None else (False, raised)
                except (Exception, Withdrawn) as error:
                    reply = False, error
                if request is not None and not waits:
                    raised = None if reply[0] else reply[1]
                    continue
                raised = None
                self._reply(connection, ticket, request, reply)
                if request is not None and (what in ("end", "raised", "again") or (what == "job" and reply == (True, None))):
                    ticket = None
        except (EOFError, OSError, AuthenticationError):
            pass
        finally:
            with self._lock:
                self._connections.discard(connection)
            connection.close()
            if ticket is not None:
                self._served.hung_up(ticket)

    def _reply(self, connection: Connection, ticket: int | None, request: Any, reply: tuple[bool, Any]) -> None:
        try:
            connection.send_bytes(_pickled(reply))
        except OSError:
            if ticket is not None and request is not None and request[1] == "job" and reply[0] and reply[1] is not None:
                self._served.undelivered(ticket, reply[1])
            raise


class There:
    """The line from another process.

    Args:
        address: Of the desk.
        key: To prove who one is.
    """

    def __init__(self, address: Any, key: bytes) -> None:
        self._address, self._key = address, key
        self._of_thread = threading.local()

    @contextlib.contextmanager
    def opened(self, ticket: int) -> Iterator[Ask]:
        """See `fourfold.workloads.tune.asking.Line`."""
        wire = getattr(self._of_thread, "wire", None)
        if wire is None or wire.is_broken:
            wire = self._of_thread.wire = Wire(self._address, self._key)
        yield AskThere(wire, ticket)


class AskHere(NamedTuple):
    """The way to a desk that is called as it is. See `fourfold.workloads.tune.asking.Ask`."""

    handle: Callable[[str, tuple[Any, ...]], Any]

    def __call__(self, what: str, *args: Any) -> Any:
        return self.handle(what, args)

    def say(self, what: str, *args: Any) -> None:
        self.handle(what, args)


class AskThere(NamedTuple):
    """The way to a desk in another process. See `fourfold.workloads.tune.asking.Ask`."""

    wire: "Wire"
    ticket: int

    def __call__(self, what: str, *args: Any) -> Any:
        return self.wire.ask(self.ticket, what, args)

    def say(self, what: str, *args: Any) -> None:
        self.wire.ask(self.ticket, what, args, waits=False)


class Wire:
    """One connection to a desk. Threads of an objective share it; a process that an objective has forked opens its own.

    Args:
        address: Of the desk.
        key: To prove who one is.

    Raises:
        EngineError: The desk cannot be reached.
    """

    def __init__(self, address: Any, key: bytes) -> None:
        self._address, self._key = address, key
        self._connect()

    def _connect(self) -> None:
        self._pid, self._lock, self.is_broken = os.getpid(), threading.Lock(), False
        try:
            self._connection = _connected(self._address)
            _watched(self._connection)
            _await_answers(self._connection, PROOF_S)
            answer_challenge(self._connection, self._key)
            deliver_challenge(self._connection, self._key)
            _await_answers(self._connection, 0)
        except (OSError, EOFError) as error:
            why, where = error or "it hung up", _shown(self._address)
            if isinstance(error, BlockingIOError):
                why = f"somebody is there and has said nothing for {PROOF_S:g} s, such as a proxy"
            raise EngineError(
                f"a worker on {socket.gethostname()} cannot reach the driver at {where}: {why}. Trials ask the driver for "
                "their parameters: the machines of the cluster must be able to open a connection to it"
            ) from error

    def ask(self, ticket: int, what: str, args: tuple[Any, ...], waits: bool = True) -> Any:
        """Let the desk do something.

        Args:
            ticket: For which it is asked.
            what: The request.
            args: Of it.
            waits: For what comes of it; else the next one that does is told if it has raised.

        Raises:
            Exception: What that raised.
            EngineError: The desk is not there any more.
        """
        if self._pid != os.getpid():
            self._connect()
        request = _pickled((ticket, what, args, waits))
        with self._lock:
            if self.is_broken:
                raise EngineError("the driver has hung up: the call of ff.optimize is over")
            self.is_broken = True  # an exception from outside between question and answer would leave the answer for the next
            try:
                self._connection.send_bytes(request)
                reply = self._connection.recv_bytes() if waits else None
            except (EOFError, OSError) as error:
                raise EngineError("the driver has hung up: the call of ff.optimize is over") from error
            self.is_broken = False
        if reply is None:
            return None
        is_good, value = pickle.loads(reply)
        if is_good:
            return value
        raise value


def _pickled(value: Any) -> bytes:
    """What crosses the line: as cheap as can be, and an exception that cannot travel as its text."""
    for dump in (pickle.dumps, cloudpickle.dumps):
        with contextlib.suppress(Exception):
            data: bytes = dump(value)
            pickle.loads(data) if value[0] is False else None  # some exceptions can be pickled, and never be unpickled
            return data
    if value[0] is not False:
        return bytes(cloudpickle.dumps(value))  # to say why not
    return pickle.dumps((False, RuntimeError(f"{type(value[1]).__name__}: {value[1]}")))


def _connected(address: Any) -> Connection:
    if not isinstance(address, tuple):
        return Client(address)
    with socket.create_connection(address, CONNECT_S) as reached:
        reached.settimeout(None)
        return Connection(reached.detach())


def _watched(connection: Connection) -> None:
    """Of another machine it is told when it has gone; what is short goes at once."""
    with _socket_of(connection) as same:
        if same.family == socket.AF_UNIX:
            return
        same.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        same.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        for name in ("TCP_KEEPIDLE", "TCP_KEEPALIVE", "TCP_KEEPINTVL"):
            if hasattr(socket, name):
                same.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), ALIVE_S)


def _await_answers(connection: Connection, limit_s: float) -> None:
    """Wait so long for each answer of another machine, 0: for ever; then there is a BlockingIOError."""
    with _socket_of(connection) as same:
        if same.family != socket.AF_UNIX:
            same.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, struct.pack("ll", *divmod(int(limit_s * 1e6), 1_000_000)))


@contextlib.contextmanager
def _socket_of(connection: Connection) -> Iterator[socket.socket]:
    with socket.socket(fileno=os.dup(connection.fileno())) as same:
        same.setblocking(True)  # after socket.setdefaulttimeout() it is not, and so the connection, which is the same one
        yield same


def _shown(address: Any) -> str:
    return f"{address[0]}:{address[1]}" if isinstance(address, tuple) else "its socket"

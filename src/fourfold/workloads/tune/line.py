"""The private line between a trial where it runs and the desk in the driver: a connection for each ticket.

On this thread and on threads the desk is called as it is. Elsewhere there is a socket, and both sides prove that they know a
key of this call before anything is unpickled: a socket of this machine without a name in the file system, or, for workers of
a cluster, one at the address by which they reach this machine.
"""

import contextlib
import os
import socket
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from multiprocessing import AuthenticationError
from multiprocessing.connection import Client, Connection, Listener
from typing import Any

from fourfold.errors import EngineError
from fourfold.workloads.tune.trial import Ask

KEY_BYTES = 32

BACKLOG = 128
"""Connections that wait to be accepted. Fewer: workers that begin at once are refused."""

Handle = Callable[[str, tuple[Any, ...]], Any]


class Here:
    """The line of a desk in this process. Pickled, it is one that leads back here.

    Args:
        handle: Does what is asked.
        hung_up: Called with a ticket when its connection has ended.
        reach: Gives the address by which workers reach this machine; None: they are on it.
    """

    def __init__(self, handle: Handle, hung_up: Callable[[int], None], reach: Callable[[], str | None]) -> None:
        self._handle, self._hung_up, self._reach = handle, hung_up, reach
        self._key = os.urandom(KEY_BYTES)
        self._listener: Listener | None = None
        self._folder: str | None = None
        self._connections: set[Connection] = set()
        self._lock = threading.Lock()
        self._is_closed = False

    @contextlib.contextmanager
    def opened(self, ticket: int) -> Iterator[Ask]:
        """See `fourfold.workloads.tune.trial.Line`."""
        try:
            yield lambda what, *args: self._handle(what, args)
        finally:
            self._hung_up(ticket)

    def __reduce__(self) -> tuple[Any, ...]:
        with self._lock:
            if self._listener is None:
                self._listen()
            assert self._listener is not None
            return There, (self._listener.address, self._key)

    def close(self) -> None:
        """End all connections."""
        with self._lock:
            self._is_closed = True
            listener, connections = self._listener, list(self._connections)
        if listener is not None:
            with contextlib.suppress(OSError):  # who waits for a caller is woken up by one
                _connected(listener.address).close()
            listener.close()
        for connection in connections:
            with contextlib.suppress(OSError), socket.socket(fileno=os.dup(connection.fileno())) as same:
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
        while True:
            try:
                connection = self._listener.accept()
            except OSError:
                return
            with self._lock:
                if self._is_closed:
                    connection.close()
                    return
                self._connections.add(connection)
            threading.Thread(target=self._serve, args=(connection,), name="fourfold-desk", daemon=True).start()

    def _serve(self, connection: Connection) -> None:
        ticket: int | None = None
        try:
            _prove(connection, self._key, asks_first=True)
            ticket = connection.recv()
            while True:
                what, args = connection.recv()
                try:
                    reply = True, self._handle(what, args)
                except Exception as error:
                    reply = False, error
                connection.send(reply)
        except (EOFError, OSError, AuthenticationError):
            pass
        finally:
            with self._lock:
                self._connections.discard(connection)
            connection.close()
            if ticket is not None:
                self._hung_up(ticket)


class There:
    """The line from another process.

    Args:
        address: Of the desk.
        key: To prove who one is.
    """

    def __init__(self, address: Any, key: bytes) -> None:
        self._address, self._key = address, key

    @contextlib.contextmanager
    def opened(self, ticket: int) -> Iterator[Ask]:
        """See `fourfold.workloads.tune.trial.Line`."""
        try:
            connection = _connected(self._address)
        except OSError as error:
            raise EngineError(
                f"a worker on {socket.gethostname()} cannot reach the driver at {self._address}: {error}. Trials ask the "
                "driver for their parameters: the machines of the cluster must be able to open a connection to it"
            ) from error
        with connection:
            _prove(connection, self._key, asks_first=False)
            connection.send(ticket)

            def ask(what: str, *args: Any) -> Any:
                connection.send((what, args))
                is_good, value = connection.recv()
                if is_good:
                    return value
                raise value

            yield ask


def _connected(address: Any) -> Connection:
    return Client(address)


def _prove(connection: Connection, key: bytes, asks_first: bool) -> None:
    """Each side lets the other one prove that it knows the key."""
    from multiprocessing.connection import answer_challenge, deliver_challenge

    if asks_first:
        deliver_challenge(connection, key)
        answer_challenge(connection, key)
    else:
        answer_challenge(connection, key)
        deliver_challenge(connection, key)

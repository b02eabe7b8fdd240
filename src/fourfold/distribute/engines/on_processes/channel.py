"""Small messages between the driver and one worker, in order, whole or not at all.

A SEQPACKET socket pair: the kernel keeps message boundaries, so a peer that is killed in the middle of a message leaves no
half frame. Messages are small by contract (everything large goes through segments), so that a send does not block while
few are in flight.
"""

import array
import marshal
import os
import socket
from typing import Any

import fourfold.system.seams as seams

MESSAGE_BYTES = 65536
"""Longest message. The kernel's default socket buffer (208 KiB) holds at least two of them."""

INLINE_BYTES = 32768
"""Payloads up to this size travel inside the message; larger ones go through a segment (benchmarks/constants.py)."""

_MAX_FDS = 4

_NO_SIGNAL, _CLOSE_ON_EXEC = int(getattr(socket, "MSG_NOSIGNAL", 0)), int(getattr(socket, "MSG_CMSG_CLOEXEC", 0))
"""As numbers, and flags of callers too: `|` between members of an enum takes 1.5 µs, three times for each ticket."""

Message = tuple[Any, ...]


class Garbled(Exception):
    """What came through a channel is no message."""


def pair() -> tuple[socket.socket, socket.socket]:
    """Two connected ends. Both are closed in programs that this process starts, unless passed on purpose."""
    kind = socket.SOCK_SEQPACKET if hasattr(socket, "SOCK_SEQPACKET") else socket.SOCK_DGRAM
    ends = socket.socketpair(socket.AF_UNIX, kind)
    for each in ends:
        each.setblocking(True)  # whatever the caller's socket.setdefaulttimeout() says: the other side inherits that
    return ends


def inherited(fd: int) -> socket.socket:
    """An end whose descriptor another process has passed."""
    end = socket.socket(fileno=fd)
    end.setblocking(True)  # modules that are imported here may set a default timeout
    return end


def send(end: socket.socket, message: Message, fds: tuple[int, ...] = (), flags: int = 0) -> None:
    """Send one message, with open file descriptors.

    Raises:
        BlockingIOError: `flags` has MSG_DONTWAIT and the other side has not read for long.
        OSError: The other side is gone.
    """
    data, flags = marshal.dumps(message), int(flags) | _NO_SIGNAL
    seams.hit("channel.send")
    if fds:
        rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))]
        end.sendmsg([data], rights, flags)
    else:
        end.send(data, flags)


def receive(end: socket.socket, flags: int = 0) -> tuple[Message, list[int]] | None:
    """Receive one message and its descriptors; None when the other side is gone.

    Raises:
        BlockingIOError: `flags` has MSG_DONTWAIT and there is no message.
        Garbled: What came is no message: something else has written into the channel.
    """
    room, flags = socket.CMSG_SPACE(4 * _MAX_FDS), int(flags) | _CLOSE_ON_EXEC
    try:
        data, rights, _, _ = end.recvmsg(MESSAGE_BYTES + 1024, room, flags)
    except ConnectionResetError:
        # Said once when the other side went without reading everything; what it had sent is still there.
        data, rights, _, _ = end.recvmsg(MESSAGE_BYTES + 1024, room, flags)
    if not data:
        return None
    fds = array.array("i")
    for level, kind, content in rights:
        if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
            fds.frombytes(content[: len(content) - len(content) % fds.itemsize])
    try:
        message = marshal.loads(data)
        if isinstance(message, tuple):
            return message, list(fds)
    except (EOFError, TypeError, ValueError):
        pass
    for fd in fds:
        os.close(fd)
    raise Garbled

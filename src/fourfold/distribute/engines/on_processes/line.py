"""The driver's end of the channel to one worker. Nothing here waits: what has no room goes when the worker reads again."""

import contextlib
import os
import socket
from collections import deque

from fourfold.distribute.engines.on_processes import channel
from fourfold.distribute.engines.on_processes.channel import Message


class Line:
    """Messages to a worker and from it.

    Args:
        end: The driver's end.
    """

    def __init__(self, end: socket.socket) -> None:
        self._end = end
        self._waiting: deque[tuple[Message, int]] = deque()
        self.hung_up = False
        """No more comes: the worker is gone, or can be told nothing."""
        self.garbled = False
        """The worker said what is no message."""

    def send(self, message: Message, fd: int = -1) -> None:
        """Send a message with a descriptor, now or when the worker reads again.

        Raises:
            OSError: It has to wait, and no open file is left to keep the descriptor.
        """
        if self._waiting or not self._send_now(message, fd):
            self._waiting.append((message, os.dup(fd) if fd >= 0 else -1))  # its owner may close it before that

    def _send_now(self, message: Message, fd: int) -> bool:
        """False when the worker has not read for so long that its buffer is full."""
        try:
            channel.send(self._end, message, (fd,) if fd >= 0 else (), socket.MSG_DONTWAIT)
        except BlockingIOError:
            return False
        except OSError:  # it is gone, or the system has no room for this message: the worker would wait for it for ever
            self.hang_up()
        return True

    def flush(self) -> bool:
        """Send what waits; False when some of it still has to."""
        while self._waiting:
            message, fd = self._waiting[0]
            if not self._send_now(message, fd):
                return False
            self._waiting.popleft()
            if fd >= 0:
                os.close(fd)
        return True

    def receive(self) -> tuple[Message, list[int]] | None:
        """The next message that is there, with its descriptors; None when there is none."""
        try:
            received = channel.receive(self._end, socket.MSG_DONTWAIT)
        except BlockingIOError:
            return None
        except channel.Garbled:
            self.garbled, received = True, None
        except OSError:
            received = None
        if received is None:
            self.hung_up = True
        return received

    def hang_up(self) -> None:
        """Nothing more is said: now poll() tells that the worker must be replaced."""
        self.hung_up = True
        with contextlib.suppress(OSError):
            self._end.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """Close the end, and what waits to be sent."""
        self._end.close()
        for _, fd in self._waiting:
            if fd >= 0:
                os.close(fd)

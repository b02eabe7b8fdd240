"""The workers' stderr, fd 2: passed on at once, and the end of it kept.

What Python code prints travels as records (execute/forward.py). This is for all others that write to fd 2: a C library that
gives up, a program that an item started. Each worker has a pipe there, and the template, which has nothing else to do, reads
it. Nobody waits for the driver, which may be busy; who writes faster than the driver's own stderr takes it has to wait for
that, as without a pipe.
"""

import os
import select
import time

from fourfold.distribute.engines.on_processes.page import WORDS_BYTES

BACKLOG_BYTES = 1 << 16
"""Bytes that wait to be passed on, at which no more are read. Less: writers wait earlier. More: memory. Not measured."""

PIECE_BYTES = select.PIPE_BUF
"""Bytes that a pipe with room takes at once."""

DRAINS = 4
"""Pieces that are read of a dead worker's pipe: more than a pipe holds. Without an end, a program that goes on writing would
be read for ever."""

LAST_S = 0.5
"""Seconds that the rest may take to be passed on when the driver is gone. Shorter: the end is lost when nobody reads for that
long. Longer: the template outlives its driver by as much, when its stderr is blocked. Not measured."""


class Stream:
    """The fd 2 of one worker and of the programs that it started: the end of the pipe that is read, and what came last."""

    __slots__ = ("fd", "words")

    def __init__(self, fd: int) -> None:
        self.fd = fd
        self.words = bytearray()


class Tee:
    """Reads the pipes and passes on what comes.

    Args:
        out: Where to: the driver's own fd 2, or -1 when it has none.
        poll: The template's; the descriptors that are registered there by the tee are for `attend`.
    """

    def __init__(self, out: int, poll: select.poll) -> None:
        self._out, self._poll = out, poll
        self._room = select.poll()
        if out >= 0:
            self._room.register(out, select.POLLOUT)
        self._streams: dict[int, Stream] = {}
        self._backlog = bytearray()
        self._reads, self._waits = True, False

    def open(self) -> tuple[Stream, int]:
        """A new pipe: the end that is read here, and the worker's."""
        read, write = os.pipe2(os.O_CLOEXEC)
        os.set_blocking(read, False)
        stream = self._streams[read] = Stream(read)
        if self._reads:
            self._poll.register(read, select.POLLIN)
        return stream, write

    def attend(self, fd: int) -> None:
        """The descriptor has something to read, or room; it may have been closed since."""
        if fd in self._streams:
            self._read(self._streams[fd])
        self._pass_on(0)
        self._choose_what_to_wait_for()

    def drain(self, stream: Stream) -> bytes:
        """The worker is dead: read what is there, and return its last words. Programs that it started may write on."""
        for _ in range(DRAINS):
            if not self._read(stream):
                break
        self._pass_on(0)
        self._choose_what_to_wait_for()
        return bytes(stream.words)

    def leave(self) -> None:
        """In a fork: close what is the template's."""
        for fd in self._streams:
            os.close(fd)

    def finish(self) -> None:
        """The driver is gone: pass on what there is, without waiting for long."""
        for stream in list(self._streams.values()):
            self.drain(stream)
        deadline = time.monotonic() + LAST_S
        while self._backlog and (left := deadline - time.monotonic()) > 0:
            self._pass_on(left)

    def _read(self, stream: Stream) -> bool:
        """Take in a piece; False when none is there."""
        if stream.fd not in self._streams:
            return False
        try:
            data = os.read(stream.fd, WORDS_BYTES)
        except BlockingIOError:
            return False
        if not data:
            if self._reads:
                self._poll.unregister(stream.fd)
            del self._streams[stream.fd]
            os.close(stream.fd)
            return False
        stream.words += data
        del stream.words[:-WORDS_BYTES]
        if self._out >= 0:
            self._backlog += data
        return True

    def _pass_on(self, patience_s: float) -> None:
        """Write what waits, as far as there is room, for which it may wait so many seconds."""
        while self._backlog and self._room.poll(patience_s * 1000):
            try:
                done = os.write(self._out, self._backlog[:PIECE_BYTES])
            except BlockingIOError:
                break
            except OSError:  # nobody reads it any more
                if self._waits:
                    self._poll.unregister(self._out)
                self._out, self._waits, done = -1, False, len(self._backlog)
            del self._backlog[:done]
            patience_s = 0

    def _choose_what_to_wait_for(self) -> None:
        """Room, while something waits for it; words, while not too much does."""
        waits = bool(self._backlog)
        if waits != self._waits:
            self._waits = waits
            if waits:
                self._poll.register(self._out, select.POLLOUT)
            else:
                self._poll.unregister(self._out)
        reads = len(self._backlog) <= BACKLOG_BYTES
        if reads != self._reads:
            self._reads = reads
            for fd in self._streams:
                if reads:
                    self._poll.register(fd, select.POLLIN)
                else:
                    self._poll.unregister(fd)

"""The workers of this process: started once, kept warm between calls, gone when the process ends."""

import atexit
import contextlib
import os
import subprocess
import sys
import threading
import time
from socket import socket

from fourfold.distribute.engines.on_processes import channel
from fourfold.distribute.engines.on_processes.handle import Worker, new_worker
from fourfold.errors import WorkerStartFailed

FAREWELL_S = 1.0
"""Seconds that workers get to end by themselves when this process ends; after that they are killed. Not measured."""

WORKER_MAIN = "fourfold.worker:main"


class Pool:
    """Lends workers to runs; a run has a worker for itself. Any thread may call."""

    def __init__(self) -> None:
        self._lock = threading.RLock()
        self._idle: list[Worker] = []
        self._lent: set[Worker] = set()
        self._template: subprocess.Popen[bytes] | None = None
        self._control: socket | None = None
        self._count = 0
        self._pid = os.getpid()

    def lend(self, count: int) -> list[Worker]:
        """Return `count` workers: warm ones first, the others still starting; fewer when descriptors run out.

        Raises:
            WorkerStartFailed: Not even one.
        """
        with self._lock:
            workers: list[Worker] = []
            while self._idle and len(workers) < count:
                worker = self._idle.pop()
                worker.hear()
                if worker.hung_up or not worker.flush():
                    worker.bury()
                else:
                    workers.append(worker)
            try:
                while len(workers) < count:
                    workers.append(self._spawn())
            except OSError as error:
                if not workers:
                    raise WorkerStartFailed(
                        f"not one worker process could be started: {error}. Check `ulimit -n` and `ulimit -u`, "
                        'or use engine="threads"'
                    ) from error
            self._lent.update(workers)
            return workers

    def warm(self) -> int:
        """How many workers are ready to be lent."""
        return sum(worker.ready for worker in self._idle)

    def take_back(self, worker: Worker) -> None:
        """The run does not need it any more; it is kept when it is fit, and idle."""
        with self._lock:
            self._lent.discard(worker)
            if worker.gone:
                return
            if worker.flights or worker.hung_up:
                worker.kill()
                worker.bury()
                return
            worker.rest()
            self._idle.append(worker)

    def _spawn(self) -> Worker:
        """Order one worker from the template.

        Raises:
            OSError: There are no descriptors or processes left.
        """
        if self._template is None or self._template.poll() is not None:
            self._start_template()
        assert self._control is not None
        self._count += 1
        worker, end, page_fd = new_worker(self._count)
        try:
            channel.send(self._control, (self._count,), (end.fileno(), page_fd))
        except OSError:
            worker.close()
            raise
        finally:
            end.close()
            os.close(page_fd)
        return worker

    def _start_template(self) -> None:
        self._end_template()
        ours, theirs = channel.pair()
        code = (
            f"import sys; sys.path[:] = {sys.path!r}\n"
            f"from {_TEMPLATE} import main; main({theirs.fileno()}, {os.getpid()}, {WORKER_MAIN!r})"
        )
        flags = subprocess._args_from_interpreter_flags()  # type: ignore[attr-defined]
        environment = {**os.environ, "FOURFOLD_ROLE": "worker"}
        try:
            self._template = subprocess.Popen(
                [sys.executable, *flags, "-c", code],
                stdin=subprocess.DEVNULL,
                pass_fds=[theirs.fileno()],
                env=environment,
            )
        except OSError:
            ours.close()
            raise
        finally:
            theirs.close()
        self._control = ours

    def _end_template(self) -> None:
        if self._control is not None:
            self._control.close()
            self._control = None
        if self._template is not None:
            try:
                self._template.wait(FAREWELL_S)
            except subprocess.TimeoutExpired:
                self._template.kill()
                self._template.wait()
            self._template = None

    def close(self) -> None:
        """End all workers and the template, also those that are lent. The next call starts anew."""
        with self._lock:
            workers = [*self._idle, *self._lent]
            self._idle.clear()
            self._lent.clear()
            for worker in workers:
                if worker.flights or not worker.ready:
                    worker.kill()
                with contextlib.suppress(OSError):
                    worker.end.shutdown(2)
            self._await_end(workers)
            self._end_template()
            for worker in workers:
                worker.close()

    def _await_end(self, workers: list[Worker]) -> None:
        deadline = time.monotonic() + FAREWELL_S
        for worker in workers:
            while worker.pid and not worker.gone and not worker.is_dead() and time.monotonic() < deadline:
                time.sleep(0.001)
            worker.kill()

    def forget(self) -> None:
        """This process is a fork of the one that owns the workers: leave them alone."""
        self._lock = threading.RLock()
        self._template = self._control = None
        for worker in [*self._idle, *self._lent]:
            worker.close()
        self._idle.clear()
        self._lent.clear()


_TEMPLATE = f"{__package__}.template"

POOL = Pool()
"""The one pool of this process."""

atexit.register(POOL.close)
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=POOL.forget)

"""The workers of this process: started once, kept warm between calls, gone when the process ends."""

import atexit
import contextlib
import os
import resource
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from socket import MSG_DONTWAIT, socket

import fourfold.system.environment as environment
import fourfold.system.seams as seams
from fourfold.distribute.engines.on_processes import channel, segments
from fourfold.distribute.engines.on_processes.handle import Worker, new_worker
from fourfold.distribute.engines.on_processes.program import SharedProgram
from fourfold.distribute.engines.on_processes.segments import Owner
from fourfold.distribute.engines.on_processes.template import END
from fourfold.errors import WorkerStartFailed
from fourfold.records import Parcel
from fourfold.system.imports import ONE_THREAD, Imports

FAREWELL_S = 1.0
"""Seconds that workers get to end by themselves when this process ends; after that they are killed. Not measured."""

WORKER_MAIN = "fourfold.worker:main"

KEEP_MEMORY = {
    "MALLOC_MMAP_THRESHOLD_": str(32 << 20),
    "MALLOC_TRIM_THRESHOLD_": str(128 << 20),
    "MALLOC_TOP_PAD_": str(1 << 20),
}
"""What glibc's malloc reads when a process starts: a worker keeps up to 128 MiB that were freed, for arrays of up to 32 MiB
(malloc allows no more). By default it gives back each large array and pays page faults for the next one: five times the time
of `x * 2` on 4 MB. The environment that an item sees does not have them."""

KEEP_ITEMS_BYTES = 64 << 20
"""Bytes of memory for items that idle workers have together. Less: the next run pays for fresh memory. Not measured."""

LARGE_BYTES = 1 << 20
LET_GO_S = 10.0
"""A program of at least LARGE_BYTES leaves its memory to the next one for LET_GO_S. Shorter: the next call pays for
fresh memory, four times the time of used memory. Longer: memory is held."""

WORKER_FDS = 13
"""Open files that this process may need for one worker: channel, pidfd, control page twice, and the segments of both
directions (before Python 3.13 a mapping holds a descriptor). Fewer: under a low `ulimit -n` no file may be left for a segment.
More: fewer workers under it."""

LOG_BYTES = 1 << 16
"""Bytes that are read of what a template says before it can start workers. Not measured: a traceback is a tenth of it."""

SPARE_FDS = 16
"""Open files left to the user's program when workers are limited by `ulimit -n`. Not measured."""


class Pool:
    """Lends workers to runs; a run has a worker for itself. Any thread may call."""

    def __init__(self) -> None:
        self._lock = threading.RLock()
        self._idle: list[Worker] = []
        self._lent: set[Worker] = set()
        self._template: subprocess.Popen[bytes] | None = None
        self._template_log = -1
        self._control: socket | None = None
        self._imported: frozenset[str] = frozenset()
        """What the template was asked to import for its workers."""
        self._refused: frozenset[str] = frozenset()
        """What a template could not import for its workers, and is not asked for again."""
        self._has_forked = False
        """The template has started a worker that came back since."""
        self._count = 0
        self._program_memory = Owner()
        self._program_count = 0
        self._let_go_timer: threading.Timer | None = None

    def lend(self, count: int, imports: Sequence[str] = (), *, fresh: bool = False) -> list[Worker]:
        """Return `count` workers: warm ones first, the others still starting; fewer when descriptors run out.

        Args:
            count: How many.
            imports: Modules that their work will import: once for those that are new, where that is possible.
            fresh: They must not have run anything before.

        Raises:
            WorkerStartFailed: Not even one.
        """
        with self._lock:
            self._bury_idle()
            imports = self._accepted(imports)
            if self._begins_anew(imports):
                if self._template is not None and not self._has_forked:
                    self._template.kill()  # it still imports, for nobody, and would not hear that it is to end
                self._end_template()  # it has no workers: one that imports what they need takes its place
            workers: list[Worker] = []
            while self._idle and len(workers) < count and not fresh:
                worker = self._idle.pop()
                worker.hear()
                if worker.line.hung_up or worker.outgrown_bytes or not worker.is_watched() or not worker.line.flush():
                    worker.kill()
                    worker.close()
                else:
                    workers.append(worker)
            try:
                while len(workers) < count and (not workers or self._has_room_beside(len(workers))):
                    workers.append(self._spawn(imports))
            except OSError as error:
                if not workers:
                    raise WorkerStartFailed(
                        f"not one worker process could be started: {error}. Check `ulimit -n` and `ulimit -u`, "
                        'or use engine="threads"'
                    ) from error
            self._lent.update(workers)
            return workers

    def lay_out(self, program: Parcel) -> SharedProgram:
        """Lay out a program for the workers of a run, in memory of an earlier one when it is free.

        Raises:
            OSError: There is no memory for it.
        """
        with self._lock:
            self._program_count += 1
            return SharedProgram(program, self._program_memory, self._program_count, self._lock)

    def end_program(self, program: SharedProgram) -> None:
        """The run is over. The program's memory is kept for the next one for some seconds when it is large."""
        with self._lock:
            program.close()
            if program.place.used_bytes >= LARGE_BYTES and self._let_go_timer is None:
                self._let_go_timer = threading.Timer(LET_GO_S, self._let_go)
                self._let_go_timer.name = "fourfold-let-go"
                self._let_go_timer.daemon = True
                self._let_go_timer.start()

    def _let_go(self) -> None:
        with self._lock:
            self._let_go_timer = None
            for worker in self._idle:
                worker.hear()  # of programs that they have dropped
            self._program_memory.trim(0)

    def warm(self) -> int:
        """How many workers are ready to be lent."""
        with self._lock:
            self._bury_idle()
            return sum(worker.ready for worker in self._idle)

    def _bury_idle(self) -> None:
        for worker in self._idle:
            worker.hear()
        for worker in [each for each in self._idle if each.line.hung_up]:
            self._idle.remove(worker)
            worker.bury(None)

    def take_back(self, worker: Worker) -> None:
        """The run does not need it any more; it is kept when it is fit, and idle."""
        with self._lock:
            self._lent.discard(worker)
            self._has_forked = self._has_forked or worker.gone or worker.is_forked()
            self._learn_of(worker)
            if worker.gone:
                return
            if not worker.has_loaded:
                worker.hear()  # it may have said so meanwhile
            is_busy = worker.flights or not worker.has_loaded or worker.is_ending
            if is_busy or worker.line.hung_up or not worker.is_watched():
                worker.kill()
                worker.close()
                return
            worker.rest(KEEP_ITEMS_BYTES // max(1, len(self._idle) + len(self._lent)))
            self._idle.append(worker)

    def dismiss(self, worker: Worker) -> None:
        """End a worker that is lent."""
        with self._lock:
            self._lent.discard(worker)
            self._has_forked = self._has_forked or worker.gone or worker.is_forked()
            self._learn_of(worker)
            if not worker.gone:
                worker.kill()
                worker.close()

    def close_unless_lent(self) -> None:
        """End all workers and the template, unless somebody uses workers now."""
        with self._lock:
            if not self._lent:
                self.close()

    def _has_room_beside(self, n_new: int) -> bool:
        """Whether one more worker leaves enough open files for all of them, and some for the user."""
        limit, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
        n_workers = n_new + len(self._lent) + len(self._idle)
        try:
            n_open = len(os.listdir("/dev/fd"))  # a worker that has run nothing yet has four of them
        except OSError:
            return True  # nobody can tell: opening what is too much will
        return n_open + (WORKER_FDS - 4) * n_workers + WORKER_FDS + SPARE_FDS <= limit

    def left_of(self, imports: Imports, count: int) -> Imports:
        """What is left of these imports for the `count` workers that would be lent next."""
        with self._lock:
            self._bury_idle()
            shared = self._accepted(imports.shared)
            if self._template is None or self._template.poll() is not None or self._begins_anew(shared):
                return Imports(imports.modules, shared)
            # The template stays as it is: those that are new begin with what it has, and each imports the rest.
            have = [each.imports if each.ready else self._imported - self._refused for each in self._idle[-count:]]
            if len(have) < count:
                have.append(self._imported - self._refused)
            return Imports(imports.modules, have=frozenset.intersection(*have))

    def _accepted(self, imports: Sequence[str]) -> tuple[str, ...]:
        """Those of them that a template may be asked for."""
        return tuple(name for name in imports if name not in self._refused)

    def _begins_anew(self, imports: Sequence[str]) -> bool:
        """Whether a template that has imported these takes the place of the one that there is."""
        return not self._idle and not self._lent and not self._imported.issuperset(imports)

    def _learn_of(self, worker: Worker) -> None:
        """A worker comes back: what it began with is what its template has."""
        if worker.ready and self._template is not None and worker.template_pid == self._template.pid:
            self._refused |= self._imported - worker.inherited

    def _spawn(self, imports: Sequence[str]) -> Worker:
        """Order one worker from the template; when there is none, from one that has imported these modules.

        Raises:
            OSError: There are no descriptors or processes left.
        """
        template = self._template
        if template is None or template.poll() is not None:
            template = self._start_template(imports)
        assert self._control is not None
        self._count += 1
        seams.hit("pool.spawn")
        worker, end, page_fd = new_worker(self._count, lambda: template.poll() is None, template.pid)
        try:
            channel.send(self._control, (self._count,), (end.fileno(), page_fd))
        except OSError:
            worker.close()
            raise
        finally:
            end.close()
            os.close(page_fd)
        return worker

    def _start_template(self, imports: Sequence[str]) -> "subprocess.Popen[bytes]":
        self._end_template()
        with contextlib.ExitStack() as stack:
            stderr_fd = -1
            with contextlib.suppress(OSError):  # it may be closed
                stderr_fd = os.dup(2)
                stack.callback(os.close, stderr_fd)
            self._template_log = segments.new_file(1)
            ours, theirs = channel.pair()
            stack.callback(theirs.close)
            code = (
                f"import sys; sys.path[:] = {[entry for entry in sys.path if isinstance(entry, str)]!r}\n"
                f"from {_TEMPLATE} import main; main({theirs.fileno()}, {os.getpid()}, {WORKER_MAIN!r}, {stderr_fd})"
            )
            flags = subprocess._args_from_interpreter_flags()  # type: ignore[attr-defined]
            surroundings = {**KEEP_MEMORY, **environment.for_workers(), "FOURFOLD_ROLE": "worker"}
            try:
                seams.hit("template.start")
                self._template = template = subprocess.Popen(
                    [sys.executable, *flags, "-c", code, *imports],
                    stdin=subprocess.DEVNULL,
                    stderr=self._template_log,
                    process_group=0,  # Ctrl-C in the terminal goes to the driver only
                    pass_fds=[fd for fd in (theirs.fileno(), stderr_fd) if fd >= 0],
                    env={**surroundings, **ONE_THREAD} if imports else surroundings,
                )
            except OSError:
                ours.close()
                raise
        self._control, self._imported = ours, frozenset(imports)
        return template

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
        self._imported, self._has_forked = frozenset(), False
        log, self._template_log = self._template_log, -1
        if log >= 0:
            os.close(log)

    def why_no_template(self) -> str:
        """What the template said when it could not start; "" when it could, or said nothing."""
        with self._lock:
            if self._template is None or self._template.poll() is None:
                return ""
            return self.words_of_template(self._template.pid)

    def words_of_template(self, pid: int) -> str:
        """What the template with this pid said so far, if it is still the one that starts workers."""
        with self._lock:
            if self._template is None or self._template.pid != pid:
                return ""
            return os.pread(self._template_log, LOG_BYTES, 0).decode("utf-8", "replace").strip("\0\n")

    def end_template(self, pid: int) -> str:
        """Kill the template with this pid, since it starts no workers; returns what it said."""
        with self._lock:
            words = self.words_of_template(pid)
            if self._template is not None and self._template.pid == pid:
                self._template.kill()
                self._template.wait()
            return words

    def close(self) -> None:
        """End all workers and the template, also those that are lent. The next call starts anew."""
        with self._lock:
            workers = [*self._idle, *self._lent]
            self._idle.clear()
            self._lent.clear()
            if self._control is not None:
                with contextlib.suppress(OSError):  # it is dead, or frozen
                    channel.send(self._control, (END,), (), MSG_DONTWAIT)
            template = self._template
            if template is not None and self._imported and not any(worker.is_forked() for worker in workers):
                template.kill()  # it is still importing, for nobody
            for worker in workers:
                if worker.flights or not worker.ready or not worker.has_loaded:
                    worker.kill()
                with contextlib.suppress(OSError):
                    worker.end.shutdown(2)
            self._await_end(workers)
            self._end_template()
            for worker in workers:
                worker.close()
            if self._let_go_timer is not None:
                self._let_go_timer.cancel()
                self._let_go_timer = None
            self._program_memory.close()

    def _await_end(self, workers: list[Worker]) -> None:
        deadline = time.monotonic() + FAREWELL_S
        for worker in workers:
            while worker.pid and not worker.gone and not worker.is_dead() and time.monotonic() < deadline:
                time.sleep(0.001)
            worker.kill()

    def forget(self) -> None:
        """This process is a fork of the one that owns the workers: leave them alone."""
        self._lock = threading.RLock()
        if self._template is not None:
            self._template.returncode = 0  # not this process's child: its destructor must not look for it
        if self._control is not None:
            self._control.close()
        self._template = self._control = None
        if self._template_log >= 0:
            os.close(self._template_log)
            self._template_log = -1
        for worker in [*self._idle, *self._lent]:
            worker.close()
        self._idle.clear()
        self._lent.clear()
        self._let_go_timer = None
        self._program_memory.close()


_TEMPLATE = f"{__package__}.template"

POOL = Pool()
"""The one pool of this process."""

atexit.register(POOL.close)
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=POOL.forget)

"""Worker processes of this machine, as an engine: one per run, on workers that the pool lends."""

import select
import time
from collections import deque
from collections.abc import Callable, Collection, Sequence
from typing import Any

from fourfold.distribute.engine import NO_NEED, EngineInfo, MemoryUse
from fourfold.distribute.engines.on_processes import stacks
from fourfold.distribute.engines.on_processes.handle import Worker
from fourfold.distribute.engines.on_processes.obituary import OutOfMemoryKills
from fourfold.distribute.engines.on_processes.page import LONGEST_NS
from fourfold.distribute.engines.on_processes.pool import POOL
from fourfold.distribute.engines.on_processes.program import SharedProgram
from fourfold.distribute.engines.on_processes.starts import Starts
from fourfold.distribute.watch import Stalls, Watch, Work
from fourfold.errors import EngineError, WorkerStartFailed
from fourfold.records import Kind, Need, Outcome, Parcel, Ticket
from fourfold.system.imports import Imports
from fourfold.system.interrupts import Shield

DEPTH = 2
"""Tickets that a worker has: one runs, one waits beside it."""

CLOSE_S = 1.0
"""Seconds that running items get to end when a run is given up; after that their workers are killed. Not measured."""

WATCH_S = 0.05
"""Seconds between looks at how large workers are, under `memory=`. A look takes 6 µs per worker. Smaller: more of the driver's
time. Larger: code that takes memory past its limit (at most some GB per second) gets further before it is stopped."""
START_TRIES = 3
"""Workers that may die or hang before they are ready, with none ready at all, before the engine gives up."""


class Processes:
    """Runs tickets in worker processes of this machine.

    Args:
        workers: How many.
        hear: Gets what workers print, log and warn.
        watch: None, or what says where workers are, when they take very long or somebody asks.
        imports: Tells what the program imports, when workers are to be opened.
    """

    info = EngineInfo(
        name="processes",
        takes_objects=False,
        honours=frozenset({"idempotent", "threads_per_worker", "timeout", "memory"}),
        measures_memory=True,
        loads_ahead=True,
    )

    def __init__(
        self,
        workers: int,
        hear: Callable[[tuple[Any, ...]], None],
        watch: Watch | None = None,
        imports: Callable[[], Imports] = Imports,
    ) -> None:
        self._wanted, self._hear_record, self._watcher, self._tell_imports = workers, hear, watch, imports
        self._imports = Imports()
        self._died_loading = ""
        """Of what the last worker died that died while it loaded a program and had no ticket."""
        self._timeout: float | None = None
        self._memory: int | None = None
        self._workers: list[Worker] = []
        self._queue: deque[Ticket] = deque()
        self._suspects: deque[Ticket] = deque()
        """Tickets that must run in a fresh worker."""
        self._makes_room: Worker | None = None
        """Gets nothing more while they wait, so that it can be exchanged for a fresh one."""
        self._programs: dict[str, SharedProgram] = {}
        self._outcomes: list[Outcome] = []
        self._poll = select.poll()
        self._by_fd: dict[int, Worker] = {}
        self._failed_starts = 0
        self._starts = Starts(watch)
        self._fails_in_worker = True
        self._watch_at = 0.0
        self._top_bytes = self._n_recycled = 0
        self._kills: OutOfMemoryKills | None = None
        self._stalls = Stalls()

    def open(self) -> None:
        """Borrow the workers from the pool; those that are not warm start in the background."""
        if self._workers:
            return
        with Shield():  # what it opens must be known to who closes it
            self._kills = OutOfMemoryKills()
            if self._watcher is not None:
                self._watcher.open(self._where)
            self._imports = self._tell_imports()
            for worker in POOL.lend(self._wanted, self._imports.shared):
                self._adopt(worker)

    def _adopt(self, worker: Worker) -> None:
        self._workers.append(worker)
        self._by_fd[worker.end.fileno()] = worker
        self._poll.register(worker.end, select.POLLIN)
        if worker.ready:
            self._watch(worker)

    def _watch(self, worker: Worker) -> None:
        if worker.pidfd >= 0:
            self._by_fd[worker.pidfd] = worker
            self._poll.register(worker.pidfd, select.POLLIN)

    def slots(self) -> int:
        """The workers that are ready."""
        return sum(worker.ready for worker in self._workers)

    def put(self, key: str, program: Parcel, need: Need = NO_NEED) -> None:
        """Lay out the program once; it travels to each worker before its first ticket.

        Raises:
            EngineError: There is no memory for it.
        """
        try:
            with Shield():
                self._programs[key] = POOL.lay_out(program)
        except OSError as error:
            raise EngineError(
                f"no memory or open file for {program.size_bytes} bytes of the function: {error}. Check `ulimit -n`, or use "
                'engine="threads"'
            ) from error
        self._timeout, self._memory = need.timeout, need.memory

    def load(self) -> bool:
        """Send the programs to all workers, also to those that are not ready yet.

        Raises:
            EngineError: One of them could not load its program, or died of it, or there is no open file left.
        """
        try:
            with Shield():  # what a worker was sent must be known
                for worker in self._workers:
                    for key, program in self._programs.items():
                        worker.load(key, program)
        except OSError as error:
            raise EngineError(f"no open file is left to send the function to workers: {error}. Check `ulimit -n`") from error
        if self._died_loading:
            raise EngineError(self._died_loading)
        for worker in self._workers:
            for why_not in worker.not_loaded.values():
                raise EngineError(f"{worker.name} could not load the function: {why_not}")
        return any(worker.ready and worker.has_loaded for worker in self._workers)

    def drop(self, key: str) -> None:
        """Forget the program everywhere."""
        program = self._programs.pop(key, None)
        if program is not None:
            for worker in self._workers:
                worker.drop(key)
            POOL.end_program(program)

    def submit(self, tickets: Sequence[Ticket]) -> None:
        """Give tickets to the workers with the fewest, or keep them until one has room."""
        for ticket in tickets:
            (self._suspects if ticket.fresh else self._queue).append(ticket)
        self._assign()

    def _assign(self) -> None:
        while self._suspects and (fresh := self._fresh_worker()) is not None:
            if not self._give(fresh, self._suspects):
                return
        while self._queue:
            ready = [worker for worker in self._workers if worker.is_fit() and not self._is_kept(worker)]
            worker = min(ready, key=lambda each: len(each.flights), default=None)
            if worker is None or len(worker.flights) >= DEPTH or not self._give(worker, self._queue):
                return

    def _is_kept(self, worker: Worker) -> bool:
        """Whether it is for one that must run in a fresh worker."""
        return bool(self._suspects) and (worker.is_new or worker is self._makes_room)

    def _fresh_worker(self) -> Worker | None:
        """A worker that has run nothing; when there is none and none comes, another one is exchanged as soon as it is idle."""
        fit = [worker for worker in self._workers if worker.is_fit()]
        fresh = next((worker for worker in fit if worker.is_new), None)
        if fresh is not None or not all(worker.ready for worker in self._workers) or not fit:
            return fresh
        if self._makes_room not in fit:
            self._makes_room = min(fit, key=lambda each: len(each.flights))
        if not self._makes_room.flights:
            return self._exchange(self._makes_room)
        return None

    def _exchange(self, worker: Worker) -> Worker | None:
        """Give an idle worker back for one that has run nothing; returns it when there is none to be had."""
        try:
            successor = POOL.lend(1, self._imports.shared, fresh=True)
        except WorkerStartFailed:
            return worker
        for key in self._programs:
            worker.drop(key)
        self._part_with(worker)
        POOL.take_back(worker)
        self._adopt(*successor)
        return None

    def _give(self, worker: Worker, queue: deque[Ticket]) -> bool:
        """Give the first of these tickets; False when there is no room for it now."""
        ticket = queue.popleft()
        try:
            worker.limit(self._memory if self._memory and self._fails_in_worker else 0)
            worker.give(ticket, self._programs[ticket.program])
        except OSError as error:
            if not any(each.flights for each in self._workers):
                raise EngineError(f"no memory, disk or open file is left to send items to workers: {error}") from error
            # Room comes back with each ticket that ends.
            queue.appendleft(ticket)
            return False
        return True

    def wait(self, timeout: float | None) -> list[Outcome]:
        """Take in what workers say; replaces workers that died."""
        slots = self.slots()
        if self._watcher is not None:
            self._notice_stalls(self._watcher)
        if self._timeout is not None:
            self._hear_late_words()
        deadline = None if timeout is None else time.monotonic() + timeout
        while True:
            left = None if deadline is None else max(0.0, deadline - time.monotonic())
            patience = 0.0 if self._outcomes else left
            if self._timeout is not None:
                look = min(
                    (worker.expire(self._timeout) for worker in self._workers if worker.flights or worker.is_ending),
                    default=self._timeout,
                )
                patience = look if patience is None else min(patience, look)
            if self._memory is not None:
                look = self._watch_sizes(self._memory)
                patience = look if patience is None else min(patience, look)
            start_look = self._starts.look(self._workers)
            if start_look is not None:
                patience = start_look if patience is None else min(patience, start_look)
            events = [(fd, self._by_fd.get(fd)) for fd, _ in self._poll.poll(None if patience is None else patience * 1000)]
            for fd, worker in events:
                # While earlier events were attended to, its number may have become that of another worker's file.
                if worker is not None and self._by_fd.get(fd) is worker:
                    self._attend(fd, worker)
            self._assign()
            if self._outcomes or self.slots() != slots or not self._workers or (left is not None and left <= 0):
                outcomes, self._outcomes = self._outcomes, []
                return outcomes

    def _watch_sizes(self, memory: int) -> float:
        """Kill workers that are too large; returns the seconds until the next look."""
        now = time.monotonic()
        if now >= self._watch_at:
            self._watch_at = now + WATCH_S
            for worker in self._workers:
                worker.kill_when_larger(memory)
        return self._watch_at - now

    def _notice_stalls(self, watch: Watch) -> None:
        """Tell of workers that have been at the same block for much longer than any before, once of each block."""
        if not self._stalls.is_time_to_look():
            return
        # Of the others the page tells what was before this run.
        longest_ns = max((int(worker.page.fields[LONGEST_NS]) for worker in self._workers if worker.has_begun), default=0)
        looked = [(worker, worker.look()) for worker in self._workers]
        for worker, stall in self._stalls.among(looked, longest_ns / 1e9):
            (stack,) = stacks.ask([(worker.pid, worker.pidfd, worker.page)])
            watch.stalled(stall, stack)

    def _where(self) -> list[tuple[str, Work | None, str]]:
        """Each worker's name, what it does, and the stack of those that do something."""
        found = [(worker, worker.look()) for worker in self._workers if worker.ready and not worker.gone]
        busy = [worker for worker, work in found if work is not None]
        said = dict(zip(busy, stacks.ask([(each.pid, each.pidfd, each.page) for each in busy]), strict=True))
        return [(worker.name, work, said.get(worker, "")) for worker, work in found]

    def _hear_late_words(self) -> None:
        """Workers whose words had no room may have stood still while the driver was elsewhere: their items are not late."""
        for fd, _ in self._poll.poll(0):
            worker = self._by_fd.get(fd)
            if worker is not None:
                worker.heard_at = time.monotonic()
                self._attend(fd, worker)

    def _attend(self, fd: int, worker: Worker) -> None:
        was_ready = worker.ready
        self._outcomes += worker.hear()
        if worker.ready and not was_ready:
            self._failed_starts = 0
            self._watch(worker)
        worker.line.flush()
        self._pass_on(worker)
        if worker.line.hung_up or fd == worker.pidfd:
            self._replace(worker)
        elif worker.outgrown_bytes and not worker.flights:
            self._recycle(worker)

    def _pass_on(self, worker: Worker) -> None:
        said, worker.said = worker.said, []
        for record in said:
            self._hear_record(record)

    def _recycle(self, worker: Worker) -> None:
        """Exchange a worker that has grown too large, and that has nothing to do, for a new one."""
        try:
            successor = POOL.lend(1, self._imports.shared)
        except WorkerStartFailed:
            worker.stay()
            return
        self._n_recycled += 1
        self._part_with(worker)
        worker.kill()
        worker.close()
        POOL.take_back(worker)
        self._adopt(*successor)

    def _part_with(self, worker: Worker) -> None:
        for fd in [fd for fd, each in self._by_fd.items() if each is worker]:
            del self._by_fd[fd]
            self._poll.unregister(fd)
        self._workers.remove(worker)
        self._stalls.forget(worker)
        self._top_bytes = max(self._top_bytes, worker.top_bytes)

    def memory(self, live: bool) -> MemoryUse:
        """What workers take beyond new ones, from what they publish; `live`: also what they have at this moment."""
        workers = [worker for worker in self._workers if worker.ready]
        held = [worker.private_bytes(live) for worker in workers]
        item = max([*held, *(worker.peak_bytes for worker in workers)], default=0)
        self._top_bytes = max(self._top_bytes, item, *(worker.top_bytes for worker in workers))
        return MemoryUse(item, self._top_bytes, sum(held), self._n_recycled)

    def _replace(self, worker: Worker) -> None:
        """Bury a dead worker and order another one."""
        self._part_with(worker)
        ready = worker.ready
        reason, was_running = "", False
        for outcome in worker.bury(self._kills):
            self._outcomes.append(outcome)
            reason = outcome.reason or reason
            was_running = was_running or outcome.kind in (Kind.LOST, Kind.EXPIRED)
            if self._memory is not None and outcome.kind is Kind.LOST and not outcome.out_of_memory:
                # It may be code that does not look whether it got its memory: without the limit inside the worker, and killed
                # from here when it is too large, the same death says whether it was memory.
                self._fails_in_worker = False
        self._pass_on(worker)
        POOL.take_back(worker)
        obituary = worker.obituary
        assert obituary is not None
        if not ready:
            self._failed_starts += self._starts.is_its_own_fault(worker)
            reason = f"workers died before they were ready; the last one: {obituary.reason}"
            if worker.has_failed_to_start:
                reason = f"workers could not start; {obituary.reason}"
            if obituary.evidence:
                reason += f"; the last that it said: {_last_line(obituary.evidence)}"
        elif not was_running and not worker.is_given_up:
            reason = worker.oversize or obituary.reason
            if not worker.has_loaded:
                self._died_loading = reason
            starved = bool(worker.oversize)
            self._outcomes.append(Outcome(-1, Kind.LOST, reason=reason, evidence=obituary.evidence, out_of_memory=starved))
        try:
            if self._failed_starts < START_TRIES:
                self._adopt(*POOL.lend(1, self._imports.shared))
        except WorkerStartFailed as error:
            reason = str(error)
        if not self._workers:
            said = "" if worker.has_failed_to_start else POOL.why_no_template()
            if said:
                reason = f"the process that starts workers could not start itself; the last that it said: {_last_line(said)}"
            self._go_down(f"{reason}. Run `fourfold doctor`")

    def _go_down(self, reason: str) -> None:
        open_ids = [ticket.id for ticket in [*self._suspects, *self._queue]] or [-1]
        self._suspects.clear()
        self._queue.clear()
        self._outcomes += [Outcome(id, Kind.ENGINE_DOWN, reason=reason) for id in open_ids]

    def cancel(self, ids: Collection[int] | None = None, *, hard: bool = False) -> None:
        """Waiting tickets never start; running ones end between items, or with their worker when `hard`."""
        for queue in (self._suspects, self._queue):
            for ticket in list(queue):
                if ids is None or ticket.id in ids:
                    queue.remove(ticket)
                    self._outcomes.append(Outcome(ticket.id, Kind.CANCELLED))
        for worker in self._workers:
            for id in worker.flights:
                if ids is None or id in ids:
                    worker.page.stop(id)
                    if hard and not worker.runs_another_than(id):
                        worker.is_given_up = True
                        worker.kill()

    def close(self) -> None:
        """Give the workers back to the pool; those that do not end their items within CLOSE_S are killed."""
        try:
            self._suspects.clear()
            self._queue.clear()
            self.cancel()
            deadline = time.monotonic() + CLOSE_S
            while any(worker.flights for worker in self._workers) and (left := deadline - time.monotonic()) > 0:
                self.wait(left)
            for worker in self._workers:
                self._pass_on(worker)
        finally:  # also when Ctrl-C comes a second time: then the pool kills those that still run
            for worker in self._workers:
                if worker.has_loaded and not worker.is_new:
                    worker.imports |= self._imports.modules
            for key in list(self._programs):
                self.drop(key)
            for worker in self._workers:
                POOL.take_back(worker)
            self._workers.clear()
            self._stalls = Stalls()
            self._makes_room = None
            if self._watcher is not None:
                self._watcher.close()
        self._outcomes.clear()
        self._by_fd.clear()
        self._poll = select.poll()

    def dismiss(self) -> None:
        """End the workers, whatever they do: nobody is to have them after this."""
        for worker in self._workers:
            POOL.dismiss(worker)
        self._workers.clear()
        self.close()


def _last_line(text: str) -> str:
    return next((line.strip() for line in reversed(text.splitlines()) if line.strip()), "")

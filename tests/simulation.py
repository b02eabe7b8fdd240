"""Whole runs under the simulated engine: a driver, a schedule and workers on paper, and all of it from one seed.

Case(seed)          what the run is like: items, options, faults
   | run            under a virtual clock, with each step of the schedule checked
Ran                 what came of it
   | judge          against the loop, and against the faults that were put in
"""

import random
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from typing import Any, ClassVar, NamedTuple
from unittest import mock

from fourfold.aggregate.failures import Failures
from fourfold.distribute import driver, inbox, schedule
from fourfold.distribute.admission import OOM_ALLOWED
from fourfold.distribute.blame import CRASHES_ALLOWED, DOUBT_S, LAST_TRIES
from fourfold.distribute.driver import GRACE_S
from fourfold.distribute.engines.simulated import Simulated
from fourfold.distribute.events import Cancel, Died, Finished, GraceOver, MemoryRoom, Partly, Settle, Stop, Submit, Unstarted
from fourfold.distribute.faults import Faults
from fourfold.distribute.respawn import LEAST
from fourfold.divide.source import Source
from fourfold.errors import EngineError
from fourfold.execute.chunk import Program
from fourfold.execute.objects import ObjectCodec
from fourfold.records import Outcome

STEPS = 500
"""Steps of the schedule that any run may take, and STEPS_PER_ITEM more for each item. Smaller: runs with many faults are called
endless. Larger: a run that goes round in circles is found later. 4,000 runs took at most 300 and 4 per item."""

STEPS_PER_ITEM = 20

STOPPING_S = GRACE_S + 15.0
"""Virtual seconds after which a stopping run must be over: the grace, what is told late (10 s), and workers that boot."""

IDLE = 30
"""Waits in a row with nothing under way, after which the run would wait for ever. A stopping run needs one to be given up."""


class Parts(NamedTuple):
    """The modules under test: those of fourfold, or copies of them with a bug."""

    schedule: Any = schedule
    driver: Any = driver
    inbox: Any = inbox


class Watch:
    """Checks one schedule after each of its steps. Looks at memory now and then, on paper."""

    def __init__(self, schedule: Any, engine: Simulated, n_items: int, looks: random.Random | None) -> None:
        self.schedule, self.engine, self.looks = schedule, engine, looks
        self.steps, self.most_steps = 0, STEPS + STEPS_PER_ITEM * n_items
        self.deaths_alone: Counter[int] = Counter()
        self.starved_alone: Counter[int] = Counter()
        self.fresh: set[int] = set()
        """Flights in a worker that has run nothing before."""
        self.not_sent: set[int] = set()
        """Positions that have died of something else than a signal which somebody must send."""
        self.died_fresh: set[int] = set()
        """Positions whose last death was in such a one."""
        self.doubt_since: float | None = None
        self.deaths_in_vain = 0
        """Deaths since an item last ended."""
        self.starved: set[int] = set()
        """Positions that died of memory, and must run alone next."""
        self.settled: set[int] = set()
        self.stopped_at: float | None = None
        self.is_given_up = False

    def step(self, event: Any) -> list[Any]:
        """Step, and check."""
        self.steps += 1
        assert self.steps < self.most_steps, f"the run does not end: {self.steps} steps"
        was_stopping, n_flights = self.schedule.stopping, len(self.schedule._flights)
        self._note(event)
        self._count_deaths(event)
        flight = self.schedule._flights.get(getattr(event, "id", None))
        hit = range(flight.start, flight.start + flight.count) if flight is not None else range(0)
        actions: list[Any] = self.schedule.step(event)
        self.fresh.update(one.id for one in actions if isinstance(one, Submit) and one.fresh)
        self.schedule.validate()
        self._check_blame(event, hit, actions)
        self._check_width(actions, n_flights)
        self._check_doubt()
        if self.schedule.stopping:
            if not was_stopping:
                self._check_wind_down(actions)
                most = max(LEAST, 2 * self.schedule.most_slots)
                is_hopeless = self.schedule.stopping != "dying" or self.deaths_in_vain > most
                assert is_hopeless, f"the run is given up after {self.deaths_in_vain} deaths in a row"
                self.stopped_at = self.engine.now
            took_s = self.engine.now - (self.stopped_at or 0.0)
            assert took_s < STOPPING_S, f"the run still stops after {took_s} s"
        if self.looks is not None and self.looks.random() < 0.05 and not any(isinstance(one, Stop) for one in actions):
            looks, self.looks = self.looks, None
            actions += self.step(MemoryRoom(looks.choice([0, 1, 2, 5, 100]), short=looks.random() < 0.3))
            self.looks = looks
        return actions

    def _note(self, event: Any) -> None:
        """Count deaths per cause, as far as they count against an item."""
        self.is_given_up = self.is_given_up or isinstance(event, GraceOver)
        id = getattr(event, "id", None)
        flight = self.schedule._flights.get(id)
        is_unstarted = isinstance(event, Unstarted) or (isinstance(event, Finished) and not event.done)
        if flight is None or is_unstarted or id in self.schedule._evicted:
            return
        n_told = event.done if isinstance(event, Partly) else flight.count
        self.starved.difference_update(range(flight.start, flight.start + n_told))
        if not isinstance(event, Died) or event.expired:
            return
        is_alone = flight.single
        if event.out_of_memory:
            first = flight.start + event.first
            self.starved.update(range(first, first + event.n_items))
            self.starved_alone[first] += is_alone and len(self.schedule._flights) == 1
        elif is_alone:
            self.deaths_alone[flight.start] += 1
            (self.died_fresh.add if id in self.fresh else self.died_fresh.discard)(flight.start)
            died = self.deaths_alone[flight.start]
            assert died <= self._deaths_allowed(flight.start), f"{flight.start} died alone {died} times and is not blamed"
            if not event.was_sent:
                self.not_sent.add(flight.start)

    def _deaths_allowed(self, position: int) -> int:
        allowed: int = self.schedule._blame.allowed()
        return allowed + LAST_TRIES * (position not in self.not_sent)

    def _count_deaths(self, event: Any) -> None:
        if getattr(event, "done", 0) or getattr(event, "first", 0):
            self.deaths_in_vain = 0
        if isinstance(event, Died) and not event.expired and event.id not in self.schedule._evicted:
            self.deaths_in_vain += 1

    def _check_blame(self, event: Any, hit: range, actions: list[Any]) -> None:
        """Of the items that the event befell, and of those whose blame was put off until now."""
        for action in actions:
            if not isinstance(action, Settle):
                continue
            position = action.position
            assert position not in self.settled, f"the failure of {position} is final twice"
            self.settled.add(position)
            if position not in hit:
                is_doubted = self.deaths_alone[position] > 0
                assert is_doubted, f"{position} is blamed for what befell another"
            elif not isinstance(event, Died) or event.expired or not self.schedule.rules.rerun_after_loss:
                continue
            if position in hit and event.out_of_memory:
                assert self.starved_alone[position] >= OOM_ALLOWED, f"{position} is blamed and never starved alone"
            else:
                died = self.deaths_alone[position]
                # Who may not run once more is told of as it is.
                is_cut = self.schedule.stopping and not self.schedule._may_go_on(position)
                allowed = self.schedule._blame.allowed() if is_cut else self._deaths_allowed(position)
                is_enough = died >= allowed >= CRASHES_ALLOWED
                assert is_enough, f"{position} is blamed after it died alone {died} times"
                assert position in self.died_fresh, f"{position} is blamed for a death in a worker that others have used"

    def _check_doubt(self) -> None:
        if not self.schedule.has_doubts():
            self.doubt_since = None
        elif self.doubt_since is None:
            self.doubt_since = self.engine.now
        else:
            lasts_s = self.engine.now - self.doubt_since
            assert lasts_s <= DOUBT_S + 1.0, f"a doubt has lasted for {lasts_s} s"

    def _check_width(self, actions: list[Any], n_before: int) -> None:
        flights = self.schedule._flights.values()
        n_after = len(flights)
        for flight in flights if self.starved else ():
            beside = n_after > 1 or flight.count > 1
            is_starved = beside and not self.starved.isdisjoint(range(flight.start, flight.start + flight.count))
            assert not is_starved, f"{flight} died of memory and does not run alone"
        if n_after > n_before and not self.schedule.stopping and any(isinstance(one, Submit) for one in actions):
            most = 2 * self.schedule.most_slots
            assert n_after <= most, f"{n_after} tickets are in flight, and {most} are the most"

    def _check_wind_down(self, actions: list[Any]) -> None:
        late = {id for id, flight in self.schedule._flights.items() if flight.start >= self.schedule._failed_at}
        cancelled = {id for one in actions if isinstance(one, Cancel) for id in one.ids}
        assert late <= cancelled, f"the run stops, and the tickets {sorted(late - cancelled)} go on"


class Clock:
    """What the driver takes for the time: the virtual one, which may jump."""

    def __init__(self, engine: Simulated, jumps: random.Random | None) -> None:
        self._engine, self._jumps, self._ahead_s = engine, jumps, 0.0

    def monotonic(self) -> float:
        if self._jumps is not None and self._jumps.random() < 0.02:
            self._ahead_s += 10 ** self._jumps.uniform(-3, 6)
        return self._engine.now + self._ahead_s

    perf_counter = monotonic


class Watched(Simulated):
    """Says when nothing would ever happen again, and lets something happen at calls of it: see `Cut`."""

    cut: "Cut | None" = None
    nudges: random.Random | None = None
    n_idle = 0
    is_open = False
    was_down = False

    def open(self) -> None:
        self.is_open = True
        super().open()

    def close(self) -> None:
        self.is_open, self.was_down = False, self.was_down or self.is_down
        super().close()

    def slots(self) -> int:
        self._meet("slots")
        return super().slots()

    def submit(self, tickets: Any) -> None:
        self._meet("submit")
        super().submit(tickets)

    def cancel(self, ids: Any = None, *, hard: bool = False) -> None:
        self._meet("cancel")
        super().cancel(ids, hard=hard)

    def wait(self, timeout: float | None) -> list[Outcome]:
        self._meet("wait")
        if self.nudges is not None and self.nudges.random() < 0.05:
            held = [ticket.id for worker in self._workers for ticket in worker.tickets]
            super().cancel([id for id in held if self.nudges.random() < 0.5], hard=self.nudges.random() < 0.1)
        is_idle = not self._events and not self._outcomes
        outcomes = super().wait(timeout)
        self.n_idle = self.n_idle + 1 if is_idle else 0
        assert self.n_idle < IDLE, "the run hangs: nothing is under way, and it waits"
        return outcomes

    def _meet(self, where: str) -> None:
        if self.cut is not None:
            self.cut.meet(where)


class Cut:
    """The run is ended from outside, at the `count`-th time that something happens `where`, and perhaps once more."""

    PLACES: ClassVar = ["consumer", "close", "wait", "slots", "submit", "cancel", "starting", "record", "judge", "beat"]

    def __init__(self, seed: int) -> None:
        pick = random.Random(~seed)
        self.where = pick.choice(self.PLACES)
        self._left = pick.choice([0, 1, 2, 5, pick.randrange(40)])
        self.error: BaseException = pick.choice([KeyboardInterrupt, OSError, EngineError])("cut")
        self._again_in = pick.choice([None, None, 0, 1]) if self.where != "consumer" else None
        self.keep = pick.random() < 0.5
        self.is_made = False

    def meet(self, where: str) -> None:
        """Something happens `where`; raises when its time has come."""
        if self.is_made:
            if self._again_in is not None and where in ("wait", "cancel"):
                self._again_in -= 1
                if self._again_in < 0:
                    self._again_in = None
                    raise KeyboardInterrupt("again")
        elif self.is_due(where):
            raise self.error

    def is_due(self, where: str) -> bool:
        """Whether the time has come, with what happens now."""
        if where == self.where and not self.is_made:
            self._left -= 1
            self.is_made = self._left < 0
            return self.is_made
        return False


class Case:
    """One random run: everything comes from the seed."""

    def __init__(self, seed: int, faults: bool) -> None:
        pick = random.Random(seed)
        self.seed = seed
        self.n = pick.choice([0, 1, 2, 3, 7, pick.randrange(1, 40), pick.randrange(1, 40), pick.randrange(1, 200)])
        if pick.random() < 0.02:
            self.n = pick.randrange(1, 800)
        self.workers = pick.choice([1, 2, 3, 8, pick.randrange(1, 50)])
        typical = 10 ** pick.uniform(-6, 1)
        spread = pick.choice([0.0, 0.5, 2.0])
        self.seconds = [typical * pick.lognormvariate(0, spread) for _ in range(self.n)]
        order = pick.choice(["given", "up", "down"])
        if order != "given":
            self.seconds.sort(reverse=order == "down")
        self.chunk = pick.choice([None, None, 1, 2, 7, 1000])
        self.with_cost = pick.random() < 0.3
        self.sized = pick.random() < 0.7
        self.bounded = pick.random() < 0.3
        self.boot_s = pick.choice([0.0, 0.1, 1.0])
        self.message_s = pick.choice([0.0, 1e-4])
        self.retries, self.on_error = 0, "raise"
        self.max_failures: int | float | None = None
        self.reruns = True
        self.fails: set[int] = set()
        self.fails_once: set[int] = set()
        self.poison: set[int] = set()
        self.late: set[int] = set()
        self.hogs: set[int] = set()
        self.timeout_s: float | None = None
        self.memory: int | None = None
        self.bytes = [0] * self.n
        self.faults = Faults()
        self.looks: random.Random | None = None
        self.nudges: random.Random | None = None
        self.jumps: random.Random | None = None
        if faults:
            self._put_faults(pick)

    def _put_faults(self, pick: random.Random) -> None:
        def some(*shares: float) -> set[int]:
            share = pick.choice(shares)
            return {i for i in range(self.n) if pick.random() < share} if share else set()

        self.retries = pick.choice([0, 0, 1, 3])
        self.on_error = pick.choice(["collect", "skip", "raise"])
        self.max_failures = pick.choice([None, None, None, 0, 3, 0.2]) if self.on_error != "raise" else None
        self.reruns = pick.random() < 0.85
        if not self.reruns:  # what every call does then
            self.chunk, self.retries = 1, 0
        self.fails = some(0, 0, 0.01, 0.3)
        self.fails_once = some(0, 0.05) if self.retries else set()
        self.poison = some(0, 0, 0.01, 0.1)
        longest = max(self.seconds, default=0.0)
        self.timeout_s = pick.choice([None, None, longest / 2, longest * 2])
        self.late = {i for i in range(self.n) if self.timeout_s is not None and self.seconds[i] > self.timeout_s}
        self.memory = pick.choice([None, None, 2, 5, 40])
        large, hogs = pick.choice([0, 0.1]), pick.choice([0, 0.01])
        self.bytes = pick.choices([1, 2, 100], [1, large, hogs], k=self.n)
        self.hogs = {i for i in range(self.n) if self.memory is not None and self.bytes[i] > self.memory}

        def rate(*rates: float) -> float:
            return pick.choice(rates) if pick.random() < 0.25 else 0.0

        self.faults = Faults(
            death=rate(0.05, 0.2),
            dies_before=rate(0.05, 0.2),
            dies_after=rate(0.05, 0.2),
            tie=rate(0.05, 0.2),
            cut=rate(0.2, 0.5),
            late=rate(0.2, 0.5),
            twice=rate(0.2, 1.0),
            skewed=rate(0.1),
            unmarked=rate(0.5, 1.0),
            boot=rate(0.1, 0.5),
        )
        self.looks, self.nudges, self.jumps = (random.Random(self.seed) if pick.random() < 0.25 else None for _ in range(3))
        self.faults = replace(self.faults, spoils=rate(0.05, 0.3))
        self.faults = replace(self.faults, keeps=rate(0.5, 1.0))
        self.faults = replace(self.faults, sent=rate(0.5, 1.0))

    @classmethod
    def blind(cls, seed: int) -> "Case":
        """A run with deadly items in large chunks, on an engine that never knows which item was running."""
        case, pick = cls(seed, faults=False), random.Random(~seed)
        case.n = pick.choice([17, 33, pick.randrange(1, 300), pick.randrange(1, 1500)])
        case.seconds, case.bytes = [10 ** pick.uniform(-6, -1)] * case.n, [0] * case.n
        case.chunk = pick.choice([None, 40, 1000, 1 << 16])
        case.on_error = pick.choice(["collect", "skip"])
        case.poison = set(pick.sample(range(case.n), min(case.n, pick.choice([0, 1, 1, 2, 4]))))
        case.faults = Faults(unmarked=1.0)
        return case

    @property
    def is_deadly(self) -> bool:
        """Whether workers die at random."""
        return bool(self.faults.death or self.faults.dies_before or self.faults.dies_after or self.nudges)

    def run(self, cut: Cut | None = None, parts: Parts = Parts()) -> "Ran":  # noqa: B008
        """Run it, under the virtual clock."""
        engine = Watched(
            self.workers,
            self.seconds.__getitem__,
            seed=self.seed,
            message_s=self.message_s,
            boot_s=self.boot_s,
            faults=self.faults,
            kills=self.poison.__contains__ if self.poison else None,
            timeout_s=self.timeout_s,
            item_bytes=self.bytes.__getitem__,
            memory_bytes=self.memory,
        )
        engine.nudges, engine.cut = self.nudges, cut
        ran = Ran(self, engine, cut, parts)
        # The bar is drawn in real time, which nobody looks at here: a wait ends when something happens.
        clock = Clock(engine, self.jumps)
        with mock.patch.multiple(parts.driver, time=clock, PATIENCE_S=1e9), mock.patch.object(parts.inbox, "time", clock):
            ran.go()
        return ran


class Ran:
    """A case that is run, and what came of it."""

    def __init__(self, case: Case, engine: Watched, cut: Cut | None, parts: Parts) -> None:
        self.case, self.engine, self.cut = case, engine, cut
        self.tries: Counter[int] = Counter()
        self.values: dict[int, list[Any]] = {}
        self.recorded: dict[int, list[Any]] = {}
        self.error: BaseException | None = None
        """What ended a run that was cut."""
        items: Any = list(range(case.n)) if case.sized else iter(range(case.n))
        self.source = Source(items, case.seconds.__getitem__ if case.with_cost else None)
        rules = parts.schedule.Rules(
            total=self.source.total,
            chunk=case.chunk,
            costs=self.source.costs,
            retries=case.retries,
            stop_at_failure=case.on_error == "raise",
            max_failures=case.max_failures,
            bounded=case.bounded,
            rerun_after_loss=case.reruns,
        )
        self.failures = Failures("fn", case.on_error, ValueError if case.retries else (), lambda data: None)
        self.schedule = parts.schedule.Schedule(rules)
        self.watch = Watch(self.schedule, engine, case.n, case.looks)
        self.driver = parts.driver.Driver(
            self.source,
            WatchedSchedule(self.schedule, self.watch),
            parts.driver.Lane(engine, ObjectCodec(), lambda: Program(self.fn)),
            self.failures,
            beat=self._meeting("beat"),
            starting=self._meeting("starting"),
            record=self.record if cut is None or cut.keep else None,
        )
        if cut is not None:
            self.failures.keep = self._meeting("judge")

    def fn(self, item: int) -> int:
        """What is run in parallel."""
        self.tries[item] += 1
        if item in self.case.fails or (item in self.case.fails_once and self.tries[item] == 1):
            raise ValueError(item)
        return item * item

    def _meeting(self, where: str) -> Callable[..., None]:
        return lambda *_: self.cut.meet(where) if self.cut is not None else None

    def go(self) -> None:
        """Run to the end, or to the cut."""
        run = self.driver.run()
        try:
            for segment in run:
                self.note(segment)
                if self.cut is not None:
                    self.cut.meet("consumer")
                    if self.cut.is_due("close"):
                        run.close()
        except BaseException as error:
            if self.cut is None:
                raise
            self.error = error
        finally:
            del run  # as a loop that fails lets go of it

    def record(self, segment: Any) -> None:
        """Values are there, and are about to come."""
        if self.cut is not None:
            self.cut.meet("record")
        for offset in range(segment.n_items):
            index = self.source.index_of(segment.start + offset)
            assert index not in self.recorded, f"item {index} was recorded twice"
            self.recorded[index] = segment.values[offset : offset + 1]

    def note(self, segment: Any) -> None:
        """Values came."""
        assert segment.n_items > 0
        if self.case.on_error == "collect":
            assert len(segment.values) == segment.n_items
        for offset in range(segment.n_items):
            index = self.source.index_of(segment.start + offset)
            assert index not in self.values, f"item {index} was delivered twice"
            self.values[index] = segment.values[offset : offset + 1]

    @property
    def reason(self) -> str:
        return self.driver.reason


class WatchedSchedule:
    """A schedule whose steps are watched, and that is the same in all else."""

    def __init__(self, schedule: Any, watch: Watch) -> None:
        self._schedule, self.step = schedule, watch.step

    def __getattr__(self, name: str) -> Any:
        return getattr(self._schedule, name)


def judge(case: Case, parts: Parts = Parts()) -> Ran | None:  # noqa: B008
    """Run a case to its end, and hold it against what the loop would give; None when no worker could be started."""
    try:
        ran = case.run(parts=parts)
    except EngineError:
        assert case.faults.boot, "the engine is down, and each worker could start"
        return None
    failed = {failure.index: failure for failure in ran.failures.all}
    assert len(failed) == len(ran.failures.all), "an item failed twice"
    assert not ran.engine.is_open, "the engine stays open"
    for index, value in ran.values.items():
        if index not in failed:
            assert value == [index * index], f"item {index} has the value of another"
    assert ran.recorded == {index: value for index, value in ran.values.items() if index not in failed}, "not all is recorded"
    for failure in failed.values():
        _judge_failure(case, ran, failure)
    most = case.retries + 1
    if not case.reruns:
        assert all(tries <= most for tries in ran.tries.values()), "what must not run twice did"
    _judge_end(case, ran, set(failed))
    return ran


def _judge_failure(case: Case, ran: Ran, failure: Any) -> None:
    index = failure.index
    if failure.kind == "raised":
        assert index in case.fails | case.fails_once, f"item {index} did not raise"
        if not ran.reason:
            assert index in case.fails, f"item {index} had another try"
            assert failure.attempts == case.retries + 1, f"item {index} had {failure.attempts} attempts"
    elif failure.kind == "timed out":
        assert index in case.late | ran.engine.tied, f"item {index} had time"
        assert failure.attempts == 1, f"item {index} was tried again"
    elif failure.kind == "out of memory":
        assert index in case.hogs or not case.reruns, f"item {index} died of its neighbours"
        assert failure.attempts > 1 or not case.reruns, f"item {index} never ran alone"
    else:
        assert failure.kind == ("crashed" if case.reruns else "indeterminate")
        assert index in case.poison or case.is_deadly or not case.reruns, f"item {index} is innocent"


def _judge_end(case: Case, ran: Ran, failed: set[int]) -> None:
    guilty = case.fails | case.poison | case.late | case.hogs
    if case.on_error == "raise":
        assert ran.reason in ("", "failed", "dying")
        assert not (guilty and ran.reason == ""), "a failure did not stop the run"
    if ran.reason == "":
        assert set(ran.values) == set(range(case.n)), "items have no outcome"
        assert guilty <= failed, f"items {sorted(guilty - failed)} cannot have a value"
    if ran.reason == "failed":
        assert case.on_error == "raise"
        assert failed, "nothing failed"
        is_in_order = case.reruns and not (case.with_cost or case.is_deadly or case.faults.tie or ran.watch.is_given_up)
        assert not is_in_order or min(failed) == min(guilty), "the loop would have met another failure first"
    if ran.reason == "too many":
        limit = case.max_failures
        assert limit is not None
        assert len(failed) > (limit if isinstance(limit, int) else 0), f"{len(failed)} failures are too many"
    elif isinstance(case.max_failures, int):
        assert len(failed) <= case.max_failures or ran.reason, f"{len(failed)} failures are not too many"
    if ran.reason == "dying":
        assert ran.engine.deaths > 3, f"given up after {ran.engine.deaths} deaths"


def judge_cut(case: Case, cut: Cut) -> bool:
    """Run a case that is cut; returns whether it was, since it may have been over before."""
    ran = case.run(cut)
    assert not ran.engine.is_open, "the engine stays open"
    failed = {failure.index for failure in ran.failures.all}
    if cut.keep:
        assert ran.values.keys() <= ran.recorded.keys() | failed, "values came that were not recorded"
    for index, value in [*ran.values.items(), *ran.recorded.items()]:
        assert value == [index * index] or index in failed, f"item {index} has the value of another"
    told = [cut.error] if cut.is_made and cut.where != "close" else [None]
    is_expected = any(ran.error is error for error in told) or str(ran.error) == "again" or ran.engine.was_down
    if not is_expected:
        raise AssertionError(f"not {told[0]!r} ended the run") from ran.error
    return cut.is_made

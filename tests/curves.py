"""Studies made of learning curves whose ranking is known, and workers that run them in simulated time."""

import heapq
import random
from dataclasses import dataclass
from functools import cached_property

from fourfold.workloads.tune.rungs import Decision, Rungs, resources

N_TRIALS, MAX_RESOURCE = 81, 81

NOISE = 0.01
"""The deviation of a first report, which falls to 0 at the end; the ends of all trials lie between 0 and 1."""


@dataclass
class Curves:
    """Trials of one study: each climbs by a power law, at its own rate, to an end of its own; so the curves cross.

    Args:
        seed: Of all that is drawn.
        n_trials: How many there are.
    """

    seed: int
    n_trials: int = N_TRIALS

    def __post_init__(self) -> None:
        rng = random.Random(self.seed)
        self.ends = [rng.random() for _ in range(self.n_trials)]
        self._rates = [rng.uniform(0.3, 1.0) for _ in range(self.n_trials)]
        self._climbs = [rng.uniform(0.2, 0.6) for _ in range(self.n_trials)]
        self.seconds_per_step = [rng.lognormvariate(0, 0.5) for _ in range(self.n_trials)]
        self._noise: dict[tuple[int, int], float] = {}
        self._rng = rng

    @cached_property
    def best(self) -> int:
        """The trial that ends highest."""
        return max(range(self.n_trials), key=self.ends.__getitem__)

    def value(self, number: int, resource: int) -> float:
        """What a trial reports when it has had so much."""
        key = number, resource
        if key not in self._noise:
            self._noise[key] = random.Random(f"{self.seed} {key}").gauss(0, NOISE)
        to_climb = resource ** -self._rates[number] - MAX_RESOURCE ** -self._rates[number]
        return self.ends[number] - self._climbs[number] * to_climb + self._noise[key] * (1 - resource / MAX_RESOURCE)


@dataclass
class Ended:
    """What came of a simulated study.

    Args:
        found: The best of the trials that came to their end.
        used: The share of the resource that all trials would have had.
        log: Who reported what, who went on, in order.
    """

    found: int
    used: float
    log: list[tuple[int, int, str]]


def run_with_workers(curves: Curves, rungs: Rungs, levels: list[int], workers: int) -> Ended:
    """Workers take turns as `ff.optimize` has them: what is promotable, a new trial, at last the best that wait."""
    stops = [*levels, MAX_RESOURCE]
    had, n_begun, complete, log = [0] * curves.n_trials, 0, {}, []
    running: list[tuple[float, int, int]] = []

    def start(number: int, now: float) -> None:
        stop = next(each for each in stops if each > had[number])
        heapq.heappush(running, (now + (stop - had[number]) * curves.seconds_per_step[number], number, stop))

    now = 0.0
    while True:
        while len(running) < workers:
            number = rungs.promotable()
            if number is None and n_begun < curves.n_trials:
                number, n_begun = n_begun, n_begun + 1
            if number is None and not running:
                number = rungs.promotable(is_last=True)
            if number is None:
                break
            start(number, now)
        if not running:
            break
        now, number, stop = heapq.heappop(running)
        had[number] = stop
        value = curves.value(number, stop)
        decision = rungs.report(number, stop - 1, value)
        log.append((number, stop, decision.value))
        if stop == MAX_RESOURCE:
            complete[number] = value
            rungs.end(number)
        elif decision is Decision.PAUSE:
            rungs.pause(number)
        else:
            start(number, now)
    return Ended(max(complete, key=complete.__getitem__), sum(had) / (curves.n_trials * MAX_RESOURCE), log)


def halve_in_step(curves: Curves, min_resource: int, factor: int) -> Ended:
    """The control: all trials at each rung, before the best third of them goes on."""
    alive, used, last = list(range(curves.n_trials)), 0, 0
    for resource in [*resources(min_resource, MAX_RESOURCE, factor), MAX_RESOURCE]:
        used += (resource - last) * len(alive)
        last = resource
        alive.sort(key=lambda number: -curves.value(number, resource))
        if resource < MAX_RESOURCE:
            del alive[max(1, len(alive) // factor) :]
    return Ended(alive[0], used / (curves.n_trials * MAX_RESOURCE), [])

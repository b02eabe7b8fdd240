"""An engine around another one, whose outcomes come late, in another order, and sometimes twice."""

import random
import time
from collections.abc import Collection, Sequence
from typing import Any

from fourfold.distribute.engine import NO_NEED, Engine, MemoryUse
from fourfold.records import Need, Outcome, Ticket

LOOK_S = 0.01
"""Seconds of a wait for the engine inside, while outcomes are held. Smaller: more waits. Larger: slower tests."""


class Chaos:
    """Runs tickets on another engine, and tells of their ends as a bad network would: late, in any order, some of them twice.

    What is told first of a ticket holds, and nothing else: a call on it must give what the loop gives.

    Args:
        engine: It runs the tickets.
        seed: Of what happens to outcomes.
        twice: The share of outcomes that come twice.
        late: The share that is held back, for up to `waits` waits; the rest comes at once, but shuffled.
        waits: See there.

    Attributes:
        n_twice: How many outcomes came a second time.
        n_late: How many were held back.
    """

    def __init__(self, engine: Engine, seed: int = 0, *, twice: float = 0.3, late: float = 0.5, waits: int = 5) -> None:
        self._engine, self._twice, self._late, self._waits = engine, twice, late, waits
        self._random = random.Random(seed)
        self._held: list[tuple[int, Outcome]] = []
        self._n_waits = 0
        self.n_twice = self.n_late = 0
        self.info = engine.info
        self.most: int | None = getattr(engine, "most", None)

    def open(self) -> None:
        """Open the engine."""
        self._engine.open()

    def slots(self) -> int:
        """As the engine says."""
        return self._engine.slots()

    def put(self, key: str, program: Any, need: Need = NO_NEED) -> None:
        """Give it to the engine."""
        self._engine.put(key, program, need)

    def drop(self, key: str) -> None:
        """Pass it on."""
        self._engine.drop(key)

    def submit(self, tickets: Sequence[Ticket]) -> None:
        """Give them to the engine."""
        self._engine.submit(tickets)

    def wait(self, timeout: float | None) -> list[Outcome]:
        """Take what has come from the engine, and give out what is due of all that is held."""
        deadline = None if timeout is None else time.monotonic() + timeout
        while True:
            for outcome in self._engine.wait(self._patience_s(deadline)):
                self._hold(outcome)
            self._n_waits += 1
            due = [outcome for at, outcome in self._held if at <= self._n_waits]
            self._held = [(at, outcome) for at, outcome in self._held if at > self._n_waits]
            if due or not self._held or (deadline is not None and time.monotonic() >= deadline):
                self._random.shuffle(due)
                return due

    def _patience_s(self, deadline: float | None) -> float | None:
        left = None if deadline is None else max(0.0, deadline - time.monotonic())
        return left if not self._held else LOOK_S if left is None else min(left, LOOK_S)

    def _hold(self, outcome: Outcome) -> None:
        """Choose when it is told, and whether it is told once more. What is nobody's ticket is told at once, and once."""
        is_late = outcome.id >= 0 and self._random.random() < self._late
        self.n_late += is_late
        at = self._n_waits + 1 + (self._random.randint(1, self._waits) if is_late else 0)
        self._held.append((at, outcome))
        if outcome.id >= 0 and self._random.random() < self._twice:
            self.n_twice += 1
            self._held.append((at + self._random.randint(0, self._waits), outcome))

    def cancel(self, ids: Collection[int] | None = None, *, hard: bool = False) -> None:
        """Pass it on: what has ended by then, and is held, is told as it was."""
        self._engine.cancel(ids, hard=hard)

    def memory(self, live: bool) -> MemoryUse:
        """As the engine says, where it measures memory."""
        use: MemoryUse = self._engine.memory(live)  # type: ignore[attr-defined]
        return use

    def close(self) -> None:
        """Close the engine, and forget what is held."""
        self._held.clear()
        self._engine.close()

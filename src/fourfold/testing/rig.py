"""An engine with what a driver puts around it, and gates at which items wait: what the tests of engines are made with."""

import contextlib
import itertools
import os
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from pathlib import Path
from typing import Any, Self

import psutil
import pytest

from fourfold.call import Call
from fourfold.distribute.engine import Engine
from fourfold.distribute.lane import Codec
from fourfold.execute.objects import ObjectCodec
from fourfold.execute.parcels import ParcelCodec
from fourfold.options import resolve
from fourfold.records import Chunk, ChunkResult, Kind, Outcome, Ticket, Trouble

PATIENCE_S = 60.0
"""Seconds until a test gives an engine up. Smaller: fails on a busy machine. Larger: a broken engine is told later."""


class Rig:
    """An engine with what a driver puts around it: chunks in, results out, each outcome noted."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self._codec: Codec = ObjectCodec() if engine.info.takes_objects else ParcelCodec()
        self._ids = itertools.count()
        self._submitted: set[int] = set()
        self.outcomes: list[Outcome] = []
        """All that came so far, in the order in which they came."""

    def __enter__(self) -> Self:
        self.engine.open()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.engine.close()

    def put(self, fn: Callable[..., Any], key: str = "program", init: tuple[Any, ...] = ()) -> None:
        """Give the engine the program that runs `fn`, made as every call makes it."""
        call = Call(fn, (), resolve({"engine": self.engine, "init": init}))
        self.engine.put(key, call._lane.program())

    def submit(self, *chunks: Sequence[Any], key: str = "program", fresh: bool = False) -> list[int]:
        """Submit one ticket for each chunk, all at once; returns their ids."""
        tickets = []
        for items in chunks:
            payload, _ = self._codec.pack(Chunk(0, items))
            tickets.append(Ticket(next(self._ids), key, payload, len(items), fresh))
        ids = [ticket.id for ticket in tickets]
        self._submitted.update(ids)
        self.engine.submit(tickets)
        return ids

    def wait(self, timeout: float | None) -> list[Outcome]:
        """Wait once; returns what came of tickets. Id -1 tells of an idle worker's death, and is no ticket's."""
        came = [outcome for outcome in self.engine.wait(timeout) if outcome.id >= 0]
        self.outcomes += came
        return came

    def outcomes_of(self, ids: Collection[int]) -> list[Outcome]:
        """Wait until all these tickets have an outcome; returns them in the order of `ids`."""
        deadline = time.monotonic() + PATIENCE_S
        while missing := set(ids) - {outcome.id for outcome in self.outcomes}:
            assert time.monotonic() < deadline, f"no outcome of the tickets {sorted(missing)} in {PATIENCE_S} s"
            self.wait(0.1)
        found = {outcome.id: outcome for outcome in self.outcomes}
        return [found[id] for id in ids]

    def run(self, *chunks: Sequence[Any], key: str = "program") -> list[ChunkResult]:
        """Run chunks, all of which must be done."""
        return [self.result(outcome) for outcome in self.outcomes_of(self.submit(*chunks, key=key))]

    def result(self, outcome: Outcome) -> ChunkResult:
        """The result in an outcome, which must be DONE."""
        assert outcome.kind is Kind.DONE, outcome
        result, _ = self._codec.unpack(outcome.data)
        return result

    def trouble(self, outcome: Outcome) -> Trouble:
        """What an outcome BAD_PROGRAM or BAD_TICKET tells."""
        return self._codec.trouble(outcome.data)

    def await_slots(self, count: int = 1) -> int:
        """Wait until so many tickets can run at once; returns how many can."""
        deadline = time.monotonic() + PATIENCE_S
        while (slots := self.engine.slots()) < count:
            assert time.monotonic() < deadline, f"{slots} slots and not {count} in {PATIENCE_S} s"
            self.wait(0.1)
        return slots

    def kinds(self, ids: Collection[int]) -> list[Kind]:
        """What became of these tickets."""
        return [outcome.kind for outcome in self.outcomes_of(ids)]


class Gate:
    """Items stop at it, wherever they run, until the test opens it. A pipe with a name: nobody polls, nobody sleeps."""

    def __init__(self, path: Path) -> None:
        os.mkfifo(path)
        self.path = str(path)
        self._fd = -1

    def await_arrival(self) -> None:
        """Wait until an item stands at the gate."""
        self._fd = os.open(self.path, os.O_WRONLY)

    def open(self) -> None:
        """Let the item go on."""
        os.close(self._fd)


def _travelling() -> Callable[[str], None]:
    # A function inside a function travels by value: workers need not import this module, and pytest with it.
    def stop_at(path: str) -> None:
        """Stop at the gate of this path; an empty one is no gate."""
        if path:
            with open(path) as pipe:
                pipe.read()

    return stop_at


stop_at = _travelling()


def await_end(pid: int, seconds: float) -> None:
    """Wait until a process, which need not be a child of this one, is gone or a zombie."""
    deadline = time.monotonic() + seconds
    with contextlib.suppress(psutil.NoSuchProcess):
        while psutil.Process(pid).status() != psutil.STATUS_ZOMBIE:
            assert time.monotonic() < deadline, f"process {pid} is still there after {seconds} s"
            time.sleep(0.005)


def await_text(path: Path, text: str) -> None:
    """Wait until a file has this text."""
    deadline = time.monotonic() + PATIENCE_S
    while not path.exists() or path.read_text() != text:
        assert time.monotonic() < deadline, f"{path} is not {text!r} after {PATIENCE_S} s"
        time.sleep(0.005)


class Fixtures:
    """What all tests of an engine take."""

    @pytest.fixture
    def make_engine(self) -> Callable[[], Engine]:
        """Makes an engine of two workers or more, where it can have them. Each call makes another one."""
        raise NotImplementedError("override make_engine")

    @pytest.fixture
    def rig(self, make_engine: Callable[[], Engine]) -> Iterator[Rig]:
        """One open engine."""
        with Rig(make_engine()) as rig:
            yield rig

    @pytest.fixture
    def gates(self, tmp_path: Path) -> Callable[[int], list[Gate]]:
        """Makes gates."""
        return lambda count: [Gate(tmp_path / f"gate-{number}") for number in range(count)]

    @pytest.fixture
    def beside(self, make_engine: Callable[[], Engine]) -> None:
        """For tests of what happens while items run."""
        if make_engine().info.inline:
            pytest.skip("not applicable: this engine runs items inside wait, and nothing happens beside them")

"""Interrupts at every moment: a driver that is interrupted has noted what it was about to note."""

import os
import random
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

import pytest

import fourfold as ff
from fourfold.runs.story import story_of
from fourfold.system.interrupts import ECHO_S, Shield

HOUSE = str(Path(ff.__file__).parent / "distribute")
N_ITEMS = 12
N_MOMENTS = 40


def interrupt_at(moment: int) -> tuple[Callable[[FrameType, str, Any], Any], list[str]]:
    """A trace function that sends Ctrl-C before line number `moment` that the driver and its engine run; and where that was."""
    n_lines, places = 0, []

    def line(frame: FrameType, event: str, arg: Any) -> Any:
        nonlocal n_lines
        if event == "line":
            n_lines += 1
            if n_lines == moment:
                places.append(f"{frame.f_code.co_qualname} {frame.f_lineno}")
                os.kill(os.getpid(), signal.SIGINT)
        return line

    def call(frame: FrameType, event: str, arg: Any) -> Any:
        return line if frame.f_code.co_filename.startswith(HOUSE) else None

    return call, places


@pytest.mark.slow
@pytest.mark.fault("F40")
@pytest.mark.parametrize("engine", ["processes", "threads"])
def test_ctrl_c_at_any_line_of_the_driver_keeps_all_that_finished(tmp_path: Path, engine: str) -> None:
    def fn(item: int) -> int:
        time.sleep(0.004)
        with open(tmp_path / "ended", "a") as file:
            file.write(f"{item}\n")
        return item

    def n_ended(moment: int, run: Path) -> tuple[int, list[str]]:
        (tmp_path / "ended").write_text("")
        trace, places = interrupt_at(moment)
        before = sys.gettrace()
        sys.settrace(trace)
        try:
            ff.map(fn, range(N_ITEMS), run=run, engine=engine, workers=2, chunk=1, progress=False)
        except KeyboardInterrupt:
            pass
        finally:
            sys.settrace(before)
        return len((tmp_path / "ended").read_text().split()), places

    chance = random.Random(engine)
    n_all = n_cut = 0
    last = 3000
    for number in range(N_MOMENTS):
        run = tmp_path / f"run-{number}"
        ended, places = n_ended(chance.randrange(last), run)
        if not places:  # it was over before: the next ones are earlier
            last = last * 3 // 4
            continue
        n_cut += 1
        n_all += ended
        n_recorded = story_of(run).n_done if (run / "journal.sqlite").exists() else 0
        assert n_recorded == ended, f"{ended} items ended, {n_recorded} are recorded: Ctrl-C came at {places}"
    assert n_cut > N_MOMENTS / 2
    assert n_all > N_MOMENTS


@pytest.fixture
def usual() -> Iterator[list[int]]:
    """What the usual handler of Ctrl-C hears; it raises."""
    heard: list[int] = []

    def hear(number: int, frame: FrameType | None) -> None:
        heard.append(number)
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGINT, hear)
    yield heard
    signal.signal(signal.SIGINT, before)


@contextmanager
def interrupted() -> Iterator[None]:
    try:
        yield
    except KeyboardInterrupt:
        return
    pytest.fail("there was no interrupt")


def test_an_interrupt_is_raised_when_the_block_ends(usual: list[int]) -> None:
    shield, steps = Shield(), []
    handler = signal.getsignal(signal.SIGINT)
    with interrupted(), shield:
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)  # its echo
        steps.append("noted")
        assert usual == []
    assert (steps, usual) == (["noted"], [signal.SIGINT])
    assert signal.getsignal(signal.SIGINT) is handler
    with shield:
        steps.append("again")
    assert usual == [signal.SIGINT]


def test_a_second_interrupt_ends_a_block_that_is_stuck(usual: list[int]) -> None:
    with interrupted(), Shield():
        signal.raise_signal(signal.SIGINT)
        time.sleep(ECHO_S + 0.05)
        signal.raise_signal(signal.SIGINT)
        pytest.fail("nobody heard it")


def test_a_lifted_part_is_interrupted_as_usual(usual: list[int]) -> None:
    shield, steps = Shield(), []
    with shield:
        with interrupted(), shield.lifted():
            signal.raise_signal(signal.SIGINT)
            pytest.fail("nobody heard it")
        steps.append("shielded")
        with interrupted():
            signal.raise_signal(signal.SIGINT)
            steps.append("noted")
            with shield.lifted():
                pytest.fail("what was held back comes first")
    assert (steps, usual) == (["shielded", "noted"], [signal.SIGINT] * 2)


def test_a_handler_that_does_not_raise_is_told_as_well() -> None:
    heard: list[int] = []
    before = signal.signal(signal.SIGINT, lambda number, frame: heard.append(number))
    try:
        shield = Shield()
        with shield:
            signal.raise_signal(signal.SIGINT)
            assert heard == []
        assert (heard, shield.heard_at) == ([signal.SIGINT], None)
    finally:
        signal.signal(signal.SIGINT, before)


def test_another_signal_soon_after_is_no_echo(usual: list[int]) -> None:
    before = signal.signal(signal.SIGTERM, lambda number, frame: usual.append(number))
    try:
        with interrupted(), Shield():
            signal.raise_signal(signal.SIGINT)
            signal.raise_signal(signal.SIGTERM)
            assert usual == []
        assert usual == [signal.SIGINT, signal.SIGTERM]
    finally:
        signal.signal(signal.SIGTERM, before)


def test_a_handler_that_is_set_in_a_lifted_part_stays(usual: list[int]) -> None:
    heard: list[int] = []

    def hear(number: int, frame: FrameType | None) -> None:
        heard.append(number)

    shield = Shield()
    with shield:
        with shield.lifted():
            signal.signal(signal.SIGINT, hear)
        signal.raise_signal(signal.SIGINT)
        assert heard == []
    assert heard == [signal.SIGINT]
    assert signal.getsignal(signal.SIGINT) is hear
    with shield, shield.lifted():
        signal.signal(signal.SIGINT, signal.SIG_IGN)
    assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN


def test_who_looks_for_the_handler_in_a_lifted_part_finds_the_usual_one(usual: list[int]) -> None:
    """A source that sets a handler, and puts back what it found when it is closed: by then there is no shield any more."""

    def items() -> Iterator[int]:
        found = signal.signal(signal.SIGINT, lambda number, frame: None)
        try:
            yield from range(100)
        finally:
            signal.signal(signal.SIGINT, found)

    before = signal.getsignal(signal.SIGINT)
    stream = ff.imap(abs, items(), engine="threads", workers=2, chunk=1)
    next(stream)
    stream.close()
    assert signal.getsignal(signal.SIGINT) is before


def test_one_signal_wakes_an_event_loop_once(usual: list[int]) -> None:
    """Its handler of Ctrl-C runs for each byte that comes through its descriptor."""
    here, there = socket.socketpair()
    here.setblocking(False)
    before = signal.set_wakeup_fd(here.fileno())
    try:
        with interrupted(), Shield():
            signal.raise_signal(signal.SIGINT)
    finally:
        signal.set_wakeup_fd(before)
    assert there.recv(10) == bytes([signal.SIGINT])
    here.close()
    there.close()


def test_what_was_held_back_is_told_also_when_another_signal_comes_at_the_end(usual: list[int]) -> None:
    before = signal.signal(signal.SIGTERM, lambda number, frame: usual.append(number))
    shield = Shield()
    put_back = shield._put_back

    def interrupted_meanwhile() -> None:
        put_back()
        signal.raise_signal(signal.SIGINT)

    try:
        with interrupted(), shield:
            signal.raise_signal(signal.SIGTERM)
            shield._put_back = interrupted_meanwhile  # type: ignore[method-assign]
        assert usual == [signal.SIGINT, signal.SIGTERM]
    finally:
        signal.signal(signal.SIGTERM, before)


@pytest.mark.fault("F40")
def test_a_stream_that_is_closed_is_deaf_to_no_ctrl_c(tmp_path: Path) -> None:
    """Only after a first one another one may be its echo."""
    began = threading.Event()

    def fn(x: int) -> int:
        if x >= 2:
            began.set()
        time.sleep(0.01 if x < 2 else 1.0)
        return x

    stream = ff.imap(fn, range(10), run=tmp_path / "run", engine="threads", chunk=1)
    next(stream)
    assert began.wait(30)
    timer = threading.Timer(0.15, os.kill, (os.getpid(), signal.SIGINT))
    timer.start()
    with interrupted():
        stream.close()
    timer.join()


class Interrupts:
    """Sends Ctrl-C while it is recorded, once."""

    def __init__(self, item: int, armed: Path) -> None:
        self.item, self.armed = item, armed

    def __reduce__(self) -> Any:
        if self.item == 3 and self.armed.exists():
            self.armed.unlink()
            os.kill(os.getpid(), signal.SIGINT)
        return Interrupts, (self.item, self.armed)


@pytest.mark.fault("F40")
@pytest.mark.parametrize("engine", ["serial", "threads"])
def test_ctrl_c_while_a_value_is_recorded_does_not_lose_it(tmp_path: Path, engine: str) -> None:
    armed = tmp_path / "armed"
    armed.touch()
    options = {"run": tmp_path / "run", "engine": engine, "workers": 1, "idempotent": False}
    with interrupted():
        ff.map(lambda item: Interrupts(item, armed), range(6), **options)
    assert not armed.exists()
    results = ff.map(lambda item: Interrupts(item, armed), range(6), on_error="collect", **options)
    assert [result.item for result in results] == [*range(6)]


def test_other_threads_and_other_handlers_are_left_alone(usual: list[int]) -> None:
    handlers = []

    def run() -> None:
        with Shield():
            handlers.append(signal.getsignal(signal.SIGINT))

    before = signal.getsignal(signal.SIGINT)
    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    with Shield():
        handlers.append(signal.getsignal(signal.SIGINT))
    signal.signal(signal.SIGINT, before)
    assert handlers == [before, signal.SIG_IGN]


def test_shields_nest(usual: list[int]) -> None:
    """A source of items may use fourfold itself."""
    outer, steps = Shield(), []
    with interrupted(), outer:
        with outer.lifted(), Shield():
            signal.raise_signal(signal.SIGINT)
            steps.append("noted")
        pytest.fail("the inner block has ended, and the outer one was lifted")
    assert (steps, usual) == (["noted"], [signal.SIGINT])

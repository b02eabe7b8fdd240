"""The ways to run a call. Each of them must give the plain loop's answer.

A test module takes the fixture as its own with `way = ways.way`; a test that names `way` then runs once in each way:

    ff.map(fn, items, **way)
"""

import os

import pytest

import fourfold as ff
from fourfold.distribute import chooser, verdict
from fourfold.distribute.driver import Lane
from fourfold.distribute.engines.on_processes.pool import POOL
from fourfold.system import machine

NAMES = ("serial", "threads", "processes", "auto", "auto that moves")
OTHER_PROCESSES = ("processes", "auto that moves")


@pytest.fixture(params=NAMES)
def way(request, monkeypatch):
    """The options of one way to run a call."""
    return options_of(request.param, monkeypatch)


@pytest.fixture(params=OTHER_PROCESSES)
def way_to_processes(request, monkeypatch):
    """The options of one way that ends in other processes."""
    return options_of(request.param, monkeypatch)


def options_of(name, monkeypatch):
    if name == "auto that moves":
        move_at_once(monkeypatch)
        return {"engine": "auto", "workers": 2}
    return {"engine": name, "workers": 2}


def move_at_once(monkeypatch):
    """Let `engine="auto"` find after its first chunk that workers pay, on a machine with a single core too."""
    while not POOL.warm():
        ff.map(abs, [1], engine="processes", workers=2)
    monkeypatch.setattr(chooser, "FIRST_LOOK_S", 0.0)
    monkeypatch.setattr(chooser, "SAMPLE_SHARE", 1e9)
    monkeypatch.setattr(verdict, "WARM_START_S", -1e9)
    monkeypatch.setattr(verdict, "COLD_START_S", -1e9)
    monkeypatch.setattr(machine, "cores", lambda: machine.Cores(2, "two, for a test"))
    # Most items of tests take no time: they would all be done before a worker has loaded the function.
    monkeypatch.setattr(Lane, "is_loaded", lambda lane: lane.engine.load() or True)


class Notebook:
    """A file to which any process appends lines: what happened, without a shared object. One write is one line."""

    def __init__(self, path):
        self.path = str(path)

    def write(self, *words):
        end = os.open(self.path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
        os.write(end, (" ".join(map(str, words)) + "\n").encode())
        os.close(end)

    def lines(self):
        if not os.path.exists(self.path):
            return []
        with open(self.path) as file:
            return file.read().splitlines()


@pytest.fixture
def notebook(tmp_path):
    return Notebook(tmp_path / "notebook")

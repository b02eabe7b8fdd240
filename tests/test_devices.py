"""Each task that takes GPUs has its own, also where its cluster only counts them."""

import contextlib
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from running import started

from fourfold.errors import EngineError
from fourfold.system import devices
from fourfold.system.devices import devices_for

_really_of_this_machine = devices._of_this_machine


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The folder of locks: empty again in the end. And a machine on which no device can be seen."""
    place = tmp_path / "tmp"
    place.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(place))
    monkeypatch.setenv("TMPDIR", str(place))
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setattr(devices, "_of_this_machine", lambda: map(str, range(8)))
    yield place
    assert os.listdir(place) == []


def test_tasks_at_the_same_time_have_each_their_own() -> None:
    with devices_for(1) as one, devices_for(2) as two, devices_for(1) as three:
        assert (one, two, three) == ("0", "1,2", "3")
    with devices_for(1) as again:
        assert again == "0"


def test_those_of_other_processes_are_theirs(tmp_path: Path) -> None:
    text = """
        import sys
        from fourfold.system.devices import devices_for

        with devices_for(2) as mine:
            print(mine, flush=True)
            sys.stdin.readline()
    """
    with started(text, folder=tmp_path) as other:
        assert other.read_line() == "0,1"
        with devices_for(1) as one:
            assert one == "2"
        other.process.kill()  # its locks go with it
        other.process.wait()
        with devices_for(2) as two:
            assert two == "0,1"


def test_they_are_of_those_that_the_worker_was_given(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "GPU-3, 5")
    with devices_for(1) as one, devices_for(1) as two:
        assert (one, two) == ("GPU-3", "5")


def test_devices_that_the_cluster_has_chosen_are_taken_as_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1,0")
    with devices_for(2) as one, devices_for(2) as other:  # as two workers whose owner wants them to share
        assert one == other == "1,0"


def test_a_task_without_gpus_sees_what_its_worker_sees(monkeypatch: pytest.MonkeyPatch) -> None:
    with devices_for(0) as seen:
        assert seen == ""
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1")
    with devices_for(0) as seen:
        assert seen == "0,1"


def test_one_for_which_a_process_is_ready_comes_first(monkeypatch: pytest.MonkeyPatch) -> None:
    with devices_for(1, ["", "5", "6"]) as one, devices_for(1, ["5"]) as other:
        assert (one, other) == ("5", "0")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "b,a,c")
    with devices_for(1, ["5", "a"]) as one:
        assert one == "a"


def test_the_same_devices_come_in_the_same_order(monkeypatch: pytest.MonkeyPatch) -> None:
    with devices_for(2, ["1"]) as seen:
        assert seen == "0,1"
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "b,a,c")
    with devices_for(2, ["a"]) as seen:
        assert seen == "b,a"


@pytest.mark.parametrize(("given", "of"), [("0,1", "of 0,1"), ("", "of those of its machine")])
def test_more_than_there_are_is_an_error_that_says_what_to_do(monkeypatch: pytest.MonkeyPatch, given: str, of: str) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", given)
    n_given = len(given.replace(",", ""))
    with contextlib.ExitStack() as held:
        for _ in range(n_given):
            held.enter_context(devices_for(1))
        with pytest.raises(EngineError, match=rf"with 0 to give, {of}: give workers no more of the resource GPU"):
            held.enter_context(devices_for(1))


def test_a_lock_that_its_last_owner_has_just_removed_is_made_anew(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    really_open = os.open

    def open_and_lose(path: str, *how: int) -> int:
        fd = really_open(path, *how)
        if not lost:
            os.unlink(path)
            lost.append(path)
        return fd

    path, lost = str(place / "lock"), list[str]()
    with monkeypatch.context() as patch:
        patch.setattr(os, "open", open_and_lose)
        fd = devices._lock(path)
    assert lost
    assert os.path.samestat(os.fstat(fd), os.stat(path))
    os.close(fd)
    os.unlink(path)


def test_a_lock_that_is_a_link_is_not_followed(place: Path) -> None:
    link = place / f"fourfold-{os.getuid()}-gpu-0"
    link.symlink_to("/dev/null")
    with pytest.raises(OSError, match="symbolic link"), devices_for(1):
        pass
    link.unlink()


def test_the_devices_of_a_machine_are_those_that_have_a_file(monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(os, "listdir", lambda folder: ["null", "nvidia4", "nvidiactl", "nvidia7", "nvidia-uvm"])
        assert list(_really_of_this_machine()) == ["0", "1"]

"""Commands beside each other (`scripts/beside.py`): what `make test` runs its parts with."""

import io
import os
import signal
import sys
import textwrap
from pathlib import Path

import pytest
from running import started

SCRIPTS = str(Path(__file__).parents[1] / "scripts")
sys.path.insert(0, SCRIPTS)

import beside  # noqa: E402
import run_tests  # noqa: E402
from beside import Lanes, Part  # noqa: E402


def sh(name: str, text: str) -> Part:
    return Part(name, ["sh", "-c", text])


def run(*lanes: list[Part]) -> tuple[list[str], str]:
    """The names of the parts that failed, and all that was printed."""
    out = io.StringIO()
    tests = Lanes(lanes, out)
    tests.run()
    return tests.failed, out.getvalue()


def test_lanes_are_beside_each_other_and_a_lane_is_one_part_after_another(tmp_path: Path) -> None:
    for name in ("there", "back"):
        os.mkfifo(tmp_path / name)
    one = sh("one", f"cd {tmp_path} && cat back && echo over > there && touch done")  # each waits for the other one
    other = sh("other", f"cd {tmp_path} && echo come > back && cat there")
    after = sh("after", f"test -e {tmp_path}/done")
    failed, out = run([one, after], [other])
    assert failed == []
    assert "It said:\ncome\n" in out
    assert "It said:\nover\n" in out
    assert [line for line in out.splitlines() if line.startswith("after")] == ["after: started"]


def test_what_a_part_prints_comes_in_one_piece_on_both_streams(tmp_path: Path) -> None:
    for name in ("there", "back"):
        os.mkfifo(tmp_path / name)
    # They print in turns.
    one = sh("one", f"cd {tmp_path}; echo 1; echo > there; cat back; echo 3 >&2")
    other = sh("other", f"cd {tmp_path}; cat there; echo 2; echo > back; echo 4")
    _, out = run([one], [other])
    assert "It said:\n1\n\n3\n" in out
    assert "It said:\n\n2\n4\n" in out


def test_a_part_that_fails_is_named_and_the_others_run(tmp_path: Path) -> None:
    failed, out = run([sh("bad", "echo why; exit 3"), sh("good", "echo fine")], [Part("none", ["/no/such/command"])])
    assert sorted(failed) == ["bad", "none"]
    assert "==== none ended with code 127 after 0 s. It said:\n" in out
    assert "No such file or directory: '/no/such/command'" in out
    assert "==== bad ended with code 3 after 0 s. It said:\nwhy\n" in out
    assert "==== good passed after 0 s. It said:\nfine\n" in out


def test_a_part_has_a_folder_for_temporary_files_that_goes_with_it(tmp_path: Path) -> None:
    run([sh("one", f'touch "$TMPDIR/mine" && echo "$TMPDIR" > {tmp_path}/name')], [sh("other", "true")])
    folder = Path((tmp_path / "name").read_text().strip())
    assert folder.parent == Path(os.environ["TMPDIR"])
    assert not folder.exists()


def test_who_is_left_of_a_part_is_ended_and_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(beside, "SETTLE_S", 0.3)
    failed, out = run([sh("one", f"setsid sleep 1000 >/dev/null 2>&1 & echo $! > {tmp_path}/pid")])
    pid = int((tmp_path / "pid").read_text())
    assert failed == []
    assert f"one left this behind, ended now: {pid} sleep 1000" in out
    assert not Path(f"/proc/{pid}/cmdline").exists() or Path(f"/proc/{pid}/cmdline").read_bytes() == b""


LATE = """
    from pathlib import Path

    def test_that_is_late_the_first_time():
        was_here = Path("seen").exists()
        Path("seen").touch()
        assert was_here

    def test_that_is_in_time():
        with open("ran", "a") as file:
            file.write("x")
"""


@pytest.mark.parametrize("is_late_alone_too", [False, True])
def test_what_failed_in_company_has_failed_when_it_fails_alone_too(
    is_late_alone_too: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    text = textwrap.dedent(LATE)
    Path("test_late.py").write_text(
        text.replace("was_here = Path", "was_here = False and Path") if is_late_alone_too else text
    )
    part = Part("late", [sys.executable, "-m", "pytest", "-q", "-c", os.devnull, "--rootdir=.", "-o", "cache_dir=mine"])
    assert run([part])[0] == ["late"]
    assert run_tests.passes_alone([part]) is not is_late_alone_too
    assert Path("ran").read_text() == "x", "what has passed does not run again"


STOPPED = f"""
    import sys
    sys.path.insert(0, {SCRIPTS!r})
    import beside
    from beside import Lanes, Part

    beside.GRACE_S = float(sys.argv[1])
    tidy = "trap 'echo tidied; exit 7' INT; echo > tidy; while true; do sleep 0.01; done"
    deaf = "trap '' INT; setsid sleep 1000 & echo > deaf; sleep 1000"
    try:
        Lanes([[Part("deaf", ["sh", "-c", deaf]), Part("never", ["true"])], [Part("tidy", ["sh", "-c", tidy])]]).run()
    except KeyboardInterrupt:
        print("all have ended")
"""


@pytest.mark.parametrize(("number", "grace"), [(signal.SIGINT, 0.5), (signal.SIGTERM, 0.5), (signal.SIGINT, 60)])
def test_an_interrupt_lets_parts_end_in_good_order_and_then_ends_all(
    number: signal.Signals, grace: float, tmp_path: Path
) -> None:
    pipes = [tmp_path / "tidy", tmp_path / "deaf"]
    for pipe in pipes:
        os.mkfifo(pipe)
    with started(STOPPED, str(grace), folder=tmp_path) as script:
        for pipe in pipes:
            assert pipe.read_text() == "\n"  # it is there
        script.process.send_signal(number)
        said = [script.read_line() for _ in range(4)]
        if grace > 1:
            script.process.send_signal(number)  # who does not want to wait types it again
        ended = script.end()
    assert (ended.code, ended.survivors) == (0, [])
    assert said[3] == "tidied"
    assert said[2].startswith("==== tidy ended with code 7 ")
    assert "==== deaf ended with code -9" in ended.stdout
    assert ended.stdout.endswith("all have ended\n")
    assert "never" not in "".join(said) + ended.stdout

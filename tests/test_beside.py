"""Commands beside each other (`scripts/beside.py`): what `make test` runs its parts with."""

import fnmatch
import io
import os
import re
import signal
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from cases import one_case_each
from running import SCALE, started, until

SCRIPTS = str(Path(__file__).parents[1] / "scripts")
sys.path.insert(0, SCRIPTS)

import again  # noqa: E402
import beside  # noqa: E402
import run_tests  # noqa: E402
from beside import Lanes, Part  # noqa: E402


def sh(name: str, text: str) -> Part:
    return Part(name, ["sh", "-c", text])


def run_in(*lanes: Iterable[Part]) -> tuple[Lanes, str]:
    """These lanes when all have ended, and all that was printed."""
    out = io.StringIO()
    tests = Lanes(lanes, out)
    tests.run()
    return tests, out.getvalue()


def run(*lanes: Iterable[Part]) -> tuple[list[str], str]:
    """The names of the parts that failed, and all that was printed."""
    tests, out = run_in(*lanes)
    return [part.name for part in tests.failed], out


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


@pytest.fixture
def left(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> tuple[Part, Path]:
    """A part that passes and leaves a process behind, and the file where the pid of that one is."""
    monkeypatch.setattr(beside, "SETTLE_S", 0.3)  # nobody has a reason to end
    return sh("one", f"setsid sleep 1000 >/dev/null 2>&1 & echo $! > {tmp_path}/pid"), tmp_path / "pid"


def test_who_is_left_of_a_part_is_ended_and_named(left: tuple[Part, Path]) -> None:
    part, note = left
    failed, out = run([part, sh("tidy", "true")])
    pid = int(note.read_text())
    assert failed == []
    assert "==== one left processes behind after " in out
    assert f"one left this behind, ended now: {pid} sleep 1000" in out
    assert "==== tidy passed after " in out
    assert not Path(f"/proc/{pid}/cmdline").exists() or Path(f"/proc/{pid}/cmdline").read_bytes() == b""


@pytest.mark.parametrize("is_tidy", [False, True])
def test_a_part_that_passes_and_leaves_somebody_behind_fails_the_run(
    is_tidy: bool, left: tuple[Part, Path], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(run_tests, "lane", lambda names: [sh("one", "true") if is_tidy else left[0]])
    assert run_tests.main(["one"]) == (0 if is_tidy else 1)
    said = "failed: one left processes behind: which ones stands above, at the end of what each part said\n"
    assert capsys.readouterr().out.endswith(said) is not is_tidy


def test_a_part_that_leaves_somebody_behind_when_it_runs_again_fails_the_run_too(left: tuple[Part, Path]) -> None:
    late = Part(
        "late", ["sh", "-c", 'if [ "$0" = again ]; then ' + left[0].command[-1] + "; else exit 1; fi"], again=["again"]
    )
    tests, _ = run_in([late])
    assert (tests.failed, tests.untidy) == ([late], [])
    assert not again.passes_alone(tests)


def test_what_comes_next_in_a_lane_is_decided_when_the_part_before_has_ended(tmp_path: Path) -> None:
    made = tmp_path / "made"

    def lane() -> Iterator[Part]:
        yield sh("make", f"touch {made}")
        if made.exists():
            yield sh("use", "true")

    failed, out = run(lane())
    assert (failed, "==== use passed" in out) == ([], True)


def test_an_error_of_a_lane_itself_is_raised_when_the_others_have_run(tmp_path: Path) -> None:
    def lane() -> Iterator[Part]:
        yield sh("one", "true")
        raise LookupError("what comes next is not known")

    with pytest.raises(LookupError, match="what comes next"):
        run(lane(), [sh("other", f"touch {tmp_path}/done")])
    assert (tmp_path / "done").exists()


def test_spark_is_left_out_by_name_where_there_is_no_java(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(run_tests, "is_java_here", lambda: False)
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    (only,) = run_tests.lane(["spark", "spark-connect", "here a-e"])
    assert only.name == "here a-e"
    out = capsys.readouterr().out
    assert "spark: SKIPPED, there is no Java" in out
    assert "spark-connect: SKIPPED, there is no Java" in out


def test_java_is_installed_in_the_lane_of_spark_where_that_is_allowed(monkeypatch: pytest.MonkeyPatch) -> None:
    is_here = False
    monkeypatch.setattr(run_tests, "is_java_here", lambda: is_here)
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    monkeypatch.setattr(run_tests.shutil, "which", lambda name: "/usr/bin/apt-get" if name == "apt-get" else None)
    parts = run_tests.lane(["spark", "spark-connect"])
    assert "openjdk-17-jre-headless" in next(parts).command[-1]
    is_here = True  # as that part has made it
    assert [part.name for part in parts] == ["spark", "spark-connect"]


def test_another_python_is_left_out_by_name_where_it_is_not_here(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(run_tests.ROOT)
        patch.setattr(run_tests, "VERSIONS", ("3.99",))
        assert list(run_tests.lane(["3.99"])) == []
    assert capsys.readouterr().out == "python 3.99: SKIPPED, it is not here\n"


def test_what_lanes_need_is_installed_beside_the_check(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run_tests, "java", lambda: iter([sh("Java", "true")]))
    monkeypatch.setattr(run_tests, "environment_of", lambda version: iter([sh(version, "true")]))
    check, environments, java = [[part.name for part in lane] for lane in run_tests.preparations()]
    assert (check, environments, java) == (["check"], run_tests.other_versions(), ["Java"])


def test_all_parts_are_in_some_lane_once_and_those_of_spark_that_are_asked_for_in_one() -> None:
    lanes = run_tests.lanes_of([])
    names = [name for lane in lanes for name in lane]
    assert len(lanes) == run_tests.N_LANES
    assert sorted(names) == sorted(
        [run_tests.TORCH, *run_tests.SHARES, *run_tests.other_versions(), *run_tests.SPARKS, *run_tests.OTHER_CLUSTERS]
    )
    assert run_tests.lanes_of(["3.12", "spark", "ray", "spark-connect"]) == [["spark", "spark-connect"], ["3.12"], ["ray"]]


def test_a_lane_that_has_ended_what_it_had_takes_what_waits() -> None:
    first, second, *others = map(iter, run_tests.lanes_of([]))
    of_several, waiting = [*run_tests.OF_SEVERAL], [part for part in run_tests.all_parts() if part not in run_tests.OF_SEVERAL]
    begun = [next(second), *(next(lane) for lane in others)]
    assert begun == waiting[: len(begun)]
    assert [next(first) for _ in of_several] == of_several
    assert [next(second), next(first), next(second)] == waiting[len(begun) :][:3]
    assert [*first] == waiting[len(begun) + 3 :]
    assert [*second] == []


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


def pytest_part(name: str) -> Part:
    """A pytest of the tests in this folder, which remembers what failed where the script looks."""
    command = [sys.executable, "-m", "pytest", "-q", "-c", os.devnull, "--rootdir=.", "-p", "conftest"]
    return Part(
        name,
        [*command, "-o", f"cache_dir={again.memory_of(name)}"],
        again=["--last-failed", "--last-failed-no-failures=none"],
    )


def test_a_part_that_has_not_run_all_its_tests_has_failed_whatever_passes_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parent))
    Path("test_ends.py").write_text("import os\n\ndef test_that_is_the_end_of_its_process():\n    os._exit(1)\n")
    tests, _ = run_in([pytest_part("ends")])
    assert not again.passes_alone(tests)
    assert capsys.readouterr().out == "failed: ends\n"


ENDS = {
    "is interrupted": """
        import pytest

        def test_that_fails(): assert False
        def test_that_is_interrupted(): raise KeyboardInterrupt
        def test_that_never_ran(): pass
    """,
    "cannot be collected": """
        import does_not_exist
    """,
    "has failed as a whole": """
        import conftest, pytest

        @pytest.fixture(autouse=True, scope="session")
        def nothing_stays(pytestconfig):
            yield
            pytestconfig.stash[conftest._notes].is_final = True
            assert False

        def test_that_passes(): pass
    """,
}


@pytest.mark.slow
@pytest.mark.parametrize("how", ENDS)
def test_a_part_that_was_stopped_before_its_end_has_failed_whatever_passes_alone(
    how: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parent))
    Path("test_ends.py").write_text(textwrap.dedent(ENDS[how]))
    tests, _ = run_in([pytest_part("ends")])
    assert [part.name for part in tests.failed] == ["ends"]
    assert again.failed_again(tests.failed) == []
    assert not again.passes_alone(tests)


def test_what_was_late_runs_again_without_the_folder_that_it_is_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("tests_there").mkdir()
    note = Path(again.memory_of("x"), *again.NOTED)
    note.mkdir(parents=True)
    Path(note, "late").write_text('["tests_there/test_a.py::test_b"]')
    (part,) = again.late_again([Part("x", ["pytest", "tests_there", "--cluster=x"], again=["--last-failed"])])
    assert part.command == ["pytest", "--cluster=x", "tests_there/test_a.py::test_b"]


@pytest.mark.parametrize("is_late_alone_too", [False, True])
def test_what_failed_in_company_has_failed_when_it_fails_alone_too(
    is_late_alone_too: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    text = textwrap.dedent(LATE)
    Path("test_late.py").write_text(
        text.replace("was_here = Path", "was_here = False and Path") if is_late_alone_too else text
    )
    part = pytest_part("late")
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parent))
    tests, _ = run_in([part])
    assert tests.failed == [part]
    assert again.passes_alone(tests) is not is_late_alone_too
    assert again.KEPT.exists() is not is_late_alone_too, "what fails alone, too, is no race"
    assert Path("ran").read_text() == "x", "what has passed does not run again"


RACY = """
    from pathlib import Path
    import pytest
    from running import is_in_time

    @pytest.mark.parametrize("number", range(N_FAIL))
    def test_that_fails_once(number):
        was_here = Path(f"seen-{number}").exists()
        Path(f"seen-{number}").touch()
        assert was_here, f"number {number} met somebody"

    @pytest.mark.parametrize("number", range(9))
    def test_that_is_late_once(number):
        was_here = Path(f"late-{number}").exists()
        Path(f"late-{number}").touch()
        assert is_in_time(elapsed_s=0.5 if was_here else 1000.0, bound_s=1.0)
"""


@pytest.mark.slow
@pytest.mark.parametrize(("n_fail", "is_well"), [(3, True), (4, False)])
def test_more_than_three_tests_that_fail_in_company_and_are_not_late_fail_the_run(
    n_fail: int, is_well: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("test_racy.py").write_text(textwrap.dedent(RACY).replace("N_FAIL", str(n_fail)))
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parent))
    tests, _ = run_in([pytest_part("racy")])
    assert [part.name for part in tests.failed] == ["racy"]
    assert again.passes_alone(tests) is is_well
    end = capsys.readouterr().out
    assert "that_is_late" not in end
    assert [f"racy: test_racy.py::test_that_fails_once[{k}]\n" in end for k in range(n_fail)] == [True] * n_fail
    assert [f"number {k} met somebody" in again.KEPT.read_text() for k in range(n_fail)] == [True] * n_fail
    assert ("failed: 4 tests fail in company though they are not late, and 3 may\n" in end) is not is_well


def test_what_was_said_in_company_is_kept_until_the_next_run(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert again.told({"here": {"test_a": "why\nso"}})
    assert again.KEPT.read_text() == "==== here: test_a\nwhy\nso\n"
    assert "\nhere: test_a\n    why\n    so\n" in capsys.readouterr().out
    assert again.told({"here": {}})
    assert not again.KEPT.exists()


def test_each_test_of_this_python_is_in_one_part() -> None:
    assert run_tests.lanes_of(["here", "3.12"]) == [[share] for share in [*run_tests.SHARES, "3.12"]]
    words = [word for words in run_tests.SHARES.values() for word in words]
    assert [word for word in words if not word.startswith("--ignore")] == [], (
        "with a path, it would all run again with what was late"
    )
    ignored = [word.rpartition("/")[2] for word in words if "=tests/" in word]
    for path in Path(__file__).parent.glob("test_*.py"):
        assert [fnmatch.fnmatch(path.name, glob) for glob in ignored].count(False) == 1, path.name
    assert ["--ignore=src" in share for share in run_tests.SHARES.values()].count(False) == 1


def test_the_words_of_a_kind_of_cluster_choose_what_is_about_its_machines() -> None:
    words = [word for kind in run_tests.SPARKS for word in kind.partition(":")[2].split(",") if word]
    folder = Path(__file__).parents[1] / "tests_on_clusters"
    names = {path.name: re.findall(r"^def (test_\w+)", path.read_text(), re.M) for path in folder.glob("test_*.py")}
    chosen = {word: {file for file, tests in names.items() for test in tests if word in test} for word in words}
    wanted = {"gpu": {"test_promises.py"}, "costs_no": {"test_deaths.py", "test_optimize.py"}}
    assert chosen == {word: wanted.get(word, {"test_deaths.py"}) for word in words}, (
        "others start what another part starts, too"
    )


def test_the_other_door_to_an_engine_gets_one_case_of_each_test_of_the_contract() -> None:
    commands = {kind: next(run_tests.parts_of(kind)).command for kind in (*run_tests.SPARKS, *run_tests.OTHER_CLUSTERS)}
    assert [kind for kind, command in commands.items() if "--one-case-of=contract" in command] == ["spark-connect"]
    left_out = {kind: [word.partition("=")[2] for word in command if "--ignore" in word] for kind, command in commands.items()}
    assert [kind for kind, files in left_out.items() if files] == ["spark-connect"]
    assert all((run_tests.ROOT / file).exists() for file in left_out["spark-connect"])


def test_what_any_kind_of_cluster_can_run_is_run_by_one() -> None:
    commands = {kind: next(run_tests.parts_of(kind)).command for kind in (*run_tests.SPARKS, *run_tests.OTHER_CLUSTERS)}
    assert [kind for kind, command in commands.items() if "not of_any_kind" not in command] == [run_tests.OF_ANY_KIND]


class Case(NamedTuple):
    nodeid: str
    path: Path


def test_another_python_runs_one_case_of_each_test_and_all_of_those_about_python() -> None:
    there = Path("tests")
    names = [
        "pickling.py::test_a[0]",
        "pickling.py::test_a[1-x[y]]",
        "map.py::test_a[0]",
        "map.py::test_a[1]",
        "map.py::test_b",
    ]
    items = [Case(name, there / f"test_{name.partition('::')[0]}") for name in names]
    kept = [item.nodeid for item in one_case_each(items, ["pickling", "exit"])]
    assert kept == [names[0], names[1], names[2], names[4]]


@pytest.mark.parametrize(
    ("here", "others", "between"),
    [("3.11", ["3.12", "3.13"], "3.12"), ("3.13", ["3.11", "3.12"], "3.12"), ("3.11", ["3.12"], ""), ("3.12", ["3.13"], "")],
)
def test_a_python_between_two_that_are_tested_runs_what_is_about_python_only(
    here: str, others: list[str], between: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(run_tests.ROOT)
    monkeypatch.setattr(run_tests, "this_version", lambda: here)
    monkeypatch.setattr(run_tests, "found_python", lambda version: version if version in others else "")
    all_files = {path.stem.removeprefix("test_") for path in Path("tests").glob("test_*.py")}
    for version in others:
        ignored = {word.removeprefix("--ignore=") for word in run_tests.tests_of(version) if word.startswith("--ignore=")}
        wanted = {*run_tests.DIFFERENT} if version == between else all_files - {*run_tests.ALIKE}
        assert {name for name in all_files if f"tests/test_{name}.py" not in ignored} == wanted
        assert ("src" in ignored) == (version == between)


def test_the_files_of_another_python_exist() -> None:
    for name in (*run_tests.ALIKE, *run_tests.DIFFERENT):
        assert (Path(__file__).parent / f"test_{name}.py").exists(), name


SLOW = """
    import os
    from pathlib import Path
    from running import is_in_time

    def test_takes_longer_than_it_may_where_it_has_company():
        with open("ran", "a") as file:
            file.write(os.environ["FOURFOLD_TIME_SCALE"])
        assert is_in_time(elapsed_s=2.0 if len(Path("ran").read_text()) <= N_LATE else 0.5, bound_s=1.0)

    def test_that_is_in_time():
        assert is_in_time(0.5, 1.0)
"""


@pytest.mark.slow
@pytest.mark.parametrize("n_late", [1, 2])
def test_what_was_late_in_company_runs_again_alone_with_the_bound_that_is_promised(
    n_late: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("test_slow.py").write_text(textwrap.dedent(SLOW).replace("N_LATE", str(n_late)))
    Path("pytest.ini").touch()
    command = [sys.executable, "-m", "pytest", "-q", "-p", "conftest", "-o", f"cache_dir={again.memory_of('one')}"]
    monkeypatch.setattr(run_tests, "ROOT", tmp_path)
    monkeypatch.setattr(run_tests, "lane", lambda names: [Part("one", command, again=["--last-failed"])])
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parent))
    monkeypatch.delenv("FOURFOLD_TIME_SCALE", raising=False)
    assert run_tests.main(["one"]) == n_late - 1
    assert Path("ran").read_text() == "31", "once in company, and once alone"


def test_what_cannot_be_run_again_has_failed_at_once(capsys: pytest.CaptureFixture[str]) -> None:
    tests, _ = run_in([sh("an environment", "exit 2")])
    assert not again.passes_alone(tests)
    assert capsys.readouterr().out == "failed: an environment\n"


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


@pytest.mark.parametrize(("number", "grace"), [(signal.SIGINT, 1), (signal.SIGTERM, 1), (signal.SIGINT, 60)])
def test_an_interrupt_lets_parts_end_in_good_order_and_then_ends_all(
    number: signal.Signals, grace: float, tmp_path: Path
) -> None:
    pipes = [tmp_path / "tidy", tmp_path / "deaf"]
    for pipe in pipes:
        os.mkfifo(pipe)
    with started(STOPPED, str(grace * SCALE), folder=tmp_path) as script:
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
    # Its shell may hear that what it waits for was killed (137) before it is killed itself.
    assert re.search(r"^==== deaf ended with code (-9|137) ", ended.stdout, re.M)
    assert ended.stdout.endswith("all have ended\n")
    assert "never" not in "".join(said) + ended.stdout


@pytest.mark.parametrize("grace_s", [60.0, 0.0])
def test_a_part_that_is_about_to_start_when_all_is_stopped_is_stopped_too(
    grace_s: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(beside, "GRACE_S", grace_s)
    out, waits = io.StringIO(), threading.Event()
    heeds = f"trap 'exit 7' INT; touch {tmp_path}/there; while true; do sleep 0.01; done"
    tests = Lanes([[sh("one", heeds if grace_s else "trap '' INT; " + heeds.partition(";")[2])]], out)
    start, sleep = subprocess.Popen, time.sleep

    def start_late(*given: Any, **named: Any) -> Any:
        """It runs, and nobody knows of it until all that ran was stopped."""
        process = start(*given, **named)
        until((tmp_path / "there").exists, "the part runs")
        os.kill(os.getpid(), signal.SIGINT)
        assert waits.wait(20 * SCALE)
        return process

    def sleep_after_stop(seconds: float) -> None:
        if tests._stopped.is_set():
            waits.set()
        sleep(seconds)

    monkeypatch.setattr(beside.subprocess, "Popen", start_late)
    monkeypatch.setattr(beside.time, "sleep", sleep_after_stop)
    with pytest.raises(KeyboardInterrupt):
        tests.run()
    assert f"==== one ended with code {7 if grace_s else -9} " in out.getvalue()


@pytest.mark.parametrize(
    ("report", "is_at_hand"),
    [
        ('{"install": [{"download_info": {"url": "file:///wheels/torch.whl"}}]}', True),
        ('{"install": [{"download_info": {"url": "https://elsewhere/torch.whl"}}]}', False),
        (None, False),
    ],
)
def test_torch_is_installed_where_pip_has_a_file_of_it_and_else_named_and_left_out(
    report, is_at_hand, tmp_path, monkeypatch, capsys
):
    monkeypatch.delenv(run_tests.TORCH_NAME, raising=False)
    monkeypatch.chdir(tmp_path)
    code = 0 if report else 1
    monkeypatch.setattr(run_tests.subprocess, "run", lambda *_, **__: subprocess.CompletedProcess([], code, report or ""))
    parts = run_tests.lane(["torch"])
    first = next(parts, None)
    assert (first is not None and first.name == "environment with torch") == is_at_hand
    assert ("torch: SKIPPED" in capsys.readouterr().out) != is_at_hand
    if is_at_hand:
        (tmp_path / ".venv-torch").mkdir()
        (tmp_path / ".venv-torch" / ".test-ready").touch()
        (tests,) = parts
        assert (tests.name, "tests/test_torch.py" in tests.command) == ("torch", True)
    monkeypatch.setenv(run_tests.TORCH_NAME, "1")
    assert run_tests.is_torch_at_hand()

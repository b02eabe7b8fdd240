"""The commands for recorded runs: runs, show, resume, rerun, replay, trust, clean."""

import contextlib
import dataclasses
import fcntl
import json
import os
import re
import shutil
import signal
import sqlite3
import subprocess
import sys
import textwrap

import prompt
import pytest

import fourfold as ff
from fourfold.cli.resume import _type_again, is_map_command, own_words
from fourfold.cli.runs import runs_command
from fourfold.runs.story import story_of
from fourfold.runs.upkeep import sweep

SCRIPT = """
    import os, sys
    import fourfold as ff

    def score(item):
        if item % 10 == 7 and not os.path.exists("mended"):
            raise ValueError(f"no price for {item}")
        if item == 3 and not os.path.exists("mended"):
            return {}["rate"]
        with open("ran", "a") as file:
            print(item, file=file)
        return int(item * ff.rng().integers(10))

    if __name__ == "__main__":
        results = ff.map(score, range(30), run="run", seed=4, on_error=sys.argv[1], engine="serial", chunk=1)
        print(sum(results))
"""


@pytest.fixture(autouse=True, scope="module")
def _prompt():
    with prompt.served():
        yield


def fourfold(folder, *words, stdin="", **environment):
    return prompt.fourfold(*words, stdin=stdin, cwd=folder, **environment)


@pytest.fixture
def scored(tmp_path):
    """A folder with a run in it: 30 items, of which four have failed."""
    (tmp_path / "script.py").write_text(textwrap.dedent(SCRIPT))
    done = subprocess.run([sys.executable, "script.py", "skip"], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert done.stdout
    return tmp_path


@pytest.fixture
def failed(tmp_path):
    """A folder with a run in it that the fourth item ended."""
    (tmp_path / "script.py").write_text(textwrap.dedent(SCRIPT))
    done = subprocess.run([sys.executable, "script.py", "raise"], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert "See it again: fourfold replay run --item 3" in done.stderr
    return tmp_path


def test_runs_lists_what_is_there(scored):
    ff.map(abs, [-1], run=scored / "deep" / "er")
    assert [line.split() for line in fourfold(scored, "runs").stdout.splitlines()] == [
        ["deep/er", "done", "1", "of", "1", "items", "abs"],
        ["run", "done", "30", "of", "30", "items,", "4", "failed", "score"],
    ]
    listed = json.loads(fourfold(scored, "runs", "--json").stdout)
    assert [(each["folder"], each["n_done"], each["n_failed"]) for each in listed] == [("deep/er", 1, 0), ("run", 26, 4)]


def test_runs_in_an_empty_folder_and_in_none(tmp_path):
    assert fourfold(tmp_path, "runs").stdout == "no runs in .\n"
    done = fourfold(tmp_path, "runs", "nowhere")
    assert (done.returncode, done.stderr) == (2, "fourfold: nowhere is no folder\n")


def test_show_groups_failures_by_type_and_line(scored):
    said = fourfold(scored, "show", "run").stdout
    assert "score: done, 30 of 30 items, 4 failed" in said
    assert "3 items: ValueError at script.py:7 in score; the first is item 7: no price for 7" in said
    assert "1 item: KeyError at script.py:9 in score; item 3: 'rate'" in said
    assert "fourfold replay run --item 7" in said
    assert "fourfold rerun run --failed" in said
    assert said.index("ValueError") < said.index("KeyError")


def test_show_as_json_has_everything_that_can_be_read(scored):
    told = json.loads(fourfold(scored, "show", "run", "--json").stdout)
    assert [failure["item"] for failure in told["failures"]] == [3, 7, 17, 27]
    assert told["failures"][1]["traceback"].endswith("ValueError: no price for 7\n")
    assert told["options"]["seed"] == "4"
    assert [event["kind"] for event in told["events"]] == ["opened", "done"]


def test_show_of_what_is_no_run_says_where_runs_are(scored):
    done = fourfold(scored, "show", ".")
    assert (done.returncode, done.stderr) == (2, "fourfold: . is no run; there are runs in run\n")
    done = fourfold(scored, "show", "nothing")
    assert "`fourfold runs` lists those below this folder" in done.stderr


def test_resume_types_the_command_again(failed):
    done = fourfold(failed, "resume", "run")
    assert done.returncode == 1
    assert "KeyError" in done.stderr
    (failed / "mended").touch()
    before = (failed / "ran").read_text()
    done = fourfold(failed, "resume", "run")
    assert (done.returncode, done.stderr.count("script.py raise")) == (0, 1)
    ran = (failed / "ran").read_text()
    assert ran.startswith(before)
    assert sorted(map(int, ran.split())) == list(range(30))
    whole = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(SCRIPT).replace('run="run", ', "").replace("sys.argv[1]", "'raise'")],
        cwd=failed,
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout == whole.stdout


def test_a_run_that_is_done_is_not_resumed(scored):
    done = fourfold(scored, "resume", "run")
    assert (done.returncode, "is done" in done.stderr, "rerun run --failed" in done.stderr) == (2, True, True)


def test_resume_takes_changes_only_when_it_is_told_to(failed):
    script = failed / "script.py"
    script.write_text(script.read_text().replace("item % 10 == 7", "item % 10 == 8").replace('return {}["rate"]', "return 0"))
    done = fourfold(failed, "resume", "run")
    assert done.returncode == 1
    assert "__main__.score has other" in done.stderr
    assert "fourfold resume run --accept-changes" in done.stderr
    done = fourfold(failed, "resume", "run", "--accept-changes")
    assert "no price for 8" in done.stderr
    assert "RunChanged" not in done.stderr


def test_rerun_runs_the_failed_items_and_no_others(scored):
    before = (scored / "ran").read_text()
    (scored / "mended").touch()
    done = fourfold(scored, "rerun", "run", "--failed")
    assert (done.returncode, "4 failed items of run run again" in done.stderr) == (0, True)
    assert (scored / "ran").read_text() == before + "3\n7\n17\n27\n"
    done = fourfold(scored, "rerun", "run", "--failed")
    assert (done.returncode, done.stderr) == (2, "fourfold: no item of run has failed\n")
    assert fourfold(scored, "rerun", "run").stderr == "fourfold: say which items: --failed\n"


def test_a_run_of_an_interactive_session_says_what_to_do(tmp_path):
    text = "import fourfold as ff\nff.map(int, ['1', 'x'], run='run')\n"
    subprocess.run([sys.executable, "-"], cwd=tmp_path, input=text, text=True, capture_output=True, check=False)
    told = "fourfold: run was made in an interactive session: now make the same call again, with run='run'\n"
    done = fourfold(tmp_path, "resume", "run")
    assert (done.returncode, done.stderr) == (0, told)
    other = text.replace("int", "lambda x: int(x) if x != 'x' else 0")
    again = [sys.executable, "-"]
    refused = subprocess.run(again, cwd=tmp_path, input=other, text=True, capture_output=True, check=False)
    assert "RunChanged" in refused.stderr
    assert fourfold(tmp_path, "resume", "run", "--accept-changes").returncode == 0
    accepted = subprocess.run(again, cwd=tmp_path, input=other, text=True, capture_output=True, check=False)
    assert (accepted.returncode, accepted.stderr) == (0, "")


@pytest.mark.parametrize(
    ("command", "typed"),
    [
        (["/bin/python", "/env/bin/fourfold", "map", "m:f", "-"], "fourfold map m:f -"),
        (["/bin/python", "-X", "dev", "-u", "-m", "fourfold", "predict", "m.joblib"], "fourfold predict m.joblib"),
        (["/bin/python", "train.py", "/env/bin/fourfold", "map"], ""),
        (["/bin/python", "-m", "mine", "fourfold", "map"], ""),
        (["/bin/python"], ""),
    ],
)
def test_a_command_of_fourfold_is_told_as_somebody_types_it(command, typed):
    assert " ".join(own_words(command)) == typed
    assert is_map_command(command) == typed.startswith("fourfold map")


def test_a_run_of_standard_input_says_which_command_to_type(tmp_path):
    done = fourfold(
        tmp_path,
        "map",
        "builtins:int",
        "-",
        "--format",
        "text",
        "-o",
        "out.csv",
        "--on-error",
        "raise",
        "--run",
        "run",
        stdin="x",
    )
    assert done.returncode == 1
    words = "fourfold map builtins:int - --format text -o out.csv --on-error raise --run run"
    told = f"run was made from standard input, which is gone: type its command again, in {tmp_path}: {words}"
    assert fourfold(tmp_path, "resume", "run").stderr == f"fourfold: {told}\n"


def of_map(tmp_path, **facts):
    """What is known of a run of `fourfold map` that was begun with standard input, or has gone otherwise."""
    ff.map(abs, [1], run=tmp_path / "run", engine="serial")
    command = [sys.executable, "/bin/fourfold", "map", "m:f", "in.csv", "-o", "out.csv", "--run", "run"]
    return dataclasses.replace(story_of(tmp_path / "run"), **{"command": command, "working_folder": str(tmp_path), **facts})


def test_a_run_whose_folder_is_gone_says_to_make_it_first(tmp_path, capsys):
    gone = str(tmp_path / "gone")
    _type_again(of_map(tmp_path, working_folder=gone, state="failed"))
    words = "fourfold map m:f in.csv -o out.csv --run run"
    told = f"was made in {gone}, which is gone: make that folder again, and type its command again, in {gone}: {words}\n"
    assert capsys.readouterr().err == f"fourfold: {tmp_path / 'run'} {told}"


@pytest.mark.parametrize(("state", "end"), [("done", "--run run --overwrite\n"), ("failed", "--run run\n")])
@pytest.mark.parametrize("is_typed_by", ["us", "you"])
def test_a_command_whose_output_is_there_is_told_with_the_option_that_replaces_it(
    is_typed_by, state, end, tmp_path, capsys, monkeypatch
):
    typed = []
    monkeypatch.setattr(os, "execv", lambda program, command: typed.extend(command))
    monkeypatch.chdir(tmp_path)
    story = of_map(tmp_path, state=state)
    if is_typed_by == "you":
        story = dataclasses.replace(story, command=["-" if word == "in.csv" else word for word in story.command])
    _type_again(story)
    assert capsys.readouterr().err.endswith(end)
    assert bool(typed) == (is_typed_by == "us")


def test_replay_raises_what_was_raised_at_the_same_line(scored):
    done = fourfold(scored, "replay", "run", "--item", "17")
    assert done.returncode == 1
    assert done.stderr.startswith("fourfold: item 17 is 17; it failed with ValueError: no price for 17\n")
    assert 'script.py", line 7, in score\n' in done.stderr
    assert done.stderr.endswith("ValueError: no price for 17\n")
    assert "site-packages" not in done.stderr
    assert "fourfold/replay.py" not in done.stderr


def test_replay_has_the_seed_of_the_item(scored):
    (scored / "mended").touch()
    done = fourfold(scored, "replay", "run", "--item", "17")
    expected = ff.map(lambda item: int(item * ff.rng().integers(10)), range(30), seed=4)[17]
    assert (done.returncode, done.stderr.splitlines()[-1]) == (0, f"fourfold: this time it returned {expected}")


def test_replay_stops_in_the_debugger_where_it_raised(scored):
    done = fourfold(scored, "replay", "run", "--item", "7", "--pdb", stdin="p item * 100\nq\n")
    assert "700" in done.stdout
    assert "score()" in done.stdout


def test_replay_of_another_item_names_those_that_failed(scored):
    done = fourfold(scored, "replay", "run", "--item", "5")
    assert (done.returncode, done.stderr) == (
        2,
        "fourfold: item 5 of run has no recorded failure; items are kept when they fail: 3, 7, 17, 27\n",
    )


def test_replay_of_a_class_builds_it_and_of_a_crash_shows_the_stack(tmp_path):
    text = """
        import faulthandler, os
        import fourfold as ff

        class Model:
            def __init__(self, scale):
                self.scale = scale
            def __call__(self, item):
                if item == 2:
                    os.abort()
                return 1 / (item * self.scale)

        if __name__ == "__main__":
            print(len(ff.map(Model, [1, 0, 2], init=(3,), run="run", engine="processes", on_error="collect").failures))
    """
    (tmp_path / "script.py").write_text(textwrap.dedent(text))
    done = subprocess.run([sys.executable, "script.py"], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.stdout == "2\n", done.stderr
    assert "ZeroDivisionError" in fourfold(tmp_path, "replay", "run", "--item", "1").stderr
    crashed = fourfold(tmp_path, "replay", "run", "--item", "2")
    assert crashed.returncode < 0
    assert "in __call__" in crashed.stderr


ODD = """
    import itertools, os, sys, time
    import fourfold as ff

    def wait():
        print("it waits", flush=True)
        time.sleep(1000)

    def work(item):
        if item == 0:
            sys.exit(3)
        if item == 1:
            wait()
        if item == 2:
            sum(itertools.repeat(1, 10**12))
        raise ValueError(sys.argv)

    if __name__ == "__main__":
        ff.map(work, range(4), run="run", engine="processes", workers=4, timeout=0.3, on_error="collect")
"""


@pytest.fixture(scope="module")
def odd(tmp_path_factory):
    """A folder with a run in it whose items fail in other ways than by an exception."""
    folder = tmp_path_factory.mktemp("odd")
    (folder / "script.py").write_text(textwrap.dedent(ODD))
    subprocess.run([sys.executable, "-W", "error", "script.py", "--fast", "x"], cwd=folder, check=True)
    return folder


def test_replay_of_an_item_that_leaves_by_sys_exit_ends_with_its_traceback(odd):
    done = fourfold(odd, "replay", "run", "--item", "0")
    assert (done.returncode, done.stderr.splitlines()[-1]) == (1, "SystemExit: 3")
    assert 'script.py", line 11, in work' in done.stderr


def test_replay_has_the_arguments_of_the_run(odd):
    done = fourfold(odd, "replay", "run", "--item", "3")
    assert done.stderr.splitlines()[-1] == "ValueError: ['script.py', '--fast', 'x']"


@pytest.mark.fault("F18")
def test_replay_of_an_item_that_timed_out_stops_where_it_hangs(odd):
    done = fourfold(odd, "replay", "run", "--item", "1", "--pdb", stdin="p item\nw\nq\n")
    assert done.returncode == 1
    assert "fourfold: it is stopped after 0.3 s here as well" in done.stderr
    *_, frame, _, said = done.stderr.splitlines()
    assert frame.endswith('script.py", line 7, in wait')
    assert said == "fourfold.errors.ItemTimeout: ran longer than timeout=0.3 seconds, as in the run"
    assert "(Pdb)" in done.stdout
    assert "> " + os.fspath(odd / "script.py") + "(7)wait()" in done.stdout


@pytest.mark.slow
@pytest.mark.fault("F18")
def test_replay_of_an_item_that_timed_out_in_c_code_ends_with_its_stack(odd):
    done = fourfold(odd, "replay", "run", "--item", "2")
    assert done.returncode == 1
    assert "Timeout (0:00:02.3" in done.stderr
    assert 'script.py", line 15 in work' in done.stderr


@pytest.mark.parametrize(("options", "code", "end"), [((), 130, "KeyboardInterrupt"), (("--pdb",), 130, "KeyboardInterrupt")])
def test_ctrl_c_during_a_replay_shows_where_it_is(odd, options, code, end):
    command = [sys.executable, "-m", "fourfold", "replay", "run", "--item", "1", *options]
    pipes = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.PIPE)
    with contextlib.closing(sqlite3.connect(odd / "run" / "journal.sqlite")) as database, database:
        database.execute("update failure set kind = 'crashed' where item = 1")  # nothing else stops it
    process = subprocess.Popen(command, cwd=odd, text=True, **pipes)
    assert process.stdout.readline() == "it waits\n"
    process.send_signal(signal.SIGINT)
    stdout, stderr = process.communicate("p 'here', item if 'item' in dir() else 0\nup\np item * 100\nq\n", timeout=30)
    with contextlib.closing(sqlite3.connect(odd / "run" / "journal.sqlite")) as database, database:
        database.execute("update failure set kind = 'timed out' where item = 1")
    assert (process.returncode, stderr.splitlines()[-1]) == (code, end)
    assert ("100" in stdout) == bool(options)


@pytest.mark.parametrize("command", [["resume", "run"], ["rerun", "run", "--failed"], ["replay", "run", "--item", "3"]])
def test_a_run_with_another_key_is_shown_and_not_run_until_it_is_trusted(failed, command, monkeypatch):
    monkeypatch.setenv("FOURFOLD_KEY", "that of another machine")
    before = (failed / "ran").read_text()
    done = fourfold(failed, *command)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("fourfold: the run ")
    assert "was recorded with another key" in done.stderr
    assert (failed / "ran").read_text() == before
    assert "score: failed" in fourfold(failed, "show", "run").stdout
    assert "failed" in fourfold(failed, "runs").stdout
    for _ in range(2):
        done = fourfold(failed, "trust", "run")
        assert (done.returncode, done.stdout) == (0, "")
        assert re.fullmatch(
            r"fourfold: run: \d+ parcels, the command and the function are sealed with your key \(\w+\)\n", done.stderr
        )
    (failed / "mended").touch()
    done = fourfold(failed, *command)
    assert done.returncode == 0, done.stderr


def test_trust_of_what_is_no_run_is_an_error(tmp_path):
    done = fourfold(tmp_path, "trust", ".")
    assert (done.returncode, done.stderr.startswith("fourfold: . is no run")) == (2, True)


def test_a_command_that_somebody_changed_is_not_run(failed):
    with contextlib.closing(sqlite3.connect(failed / "run" / "journal.sqlite")) as database, database:
        database.execute("update run set value = ? where name = 'command'", (json.dumps(["/usr/bin/touch", "touched"]),))
    for command in (["resume", "run"], ["rerun", "run", "--failed"], ["resume", "run", "--accept-changes"]):
        done = fourfold(failed, *command)
        assert (done.returncode, "the command of the run should be" in done.stderr) == (1, True)
    assert not (failed / "touched").exists()
    fourfold(failed, "trust", "run")
    fourfold(failed, "resume", "run")
    assert (failed / "touched").exists()


def test_a_secret_in_the_address_of_a_cluster_is_not_shown(tmp_path):
    secret = "hunter2-4711"
    (tmp_path / "script.py").write_text(textwrap.dedent(SCRIPT))
    command = [sys.executable, "script.py", "skip", f"sc://host/;token={secret}"]
    subprocess.run(command, cwd=tmp_path, capture_output=True, check=True)
    for arguments in (["show", "run"], ["show", "run", "--json"], ["rerun", "run", "--failed"]):
        done = fourfold(tmp_path, *arguments)
        assert "sc://host/;token=" in done.stdout + done.stderr
        assert secret not in done.stdout + done.stderr


def test_clean_removes_what_dead_drivers_left_and_nothing_else(scored):
    orphan = scored / "run" / "values-0042.part"
    orphan.touch(mode=0o600)
    dead, living = (scored / f".out.jsonl.{letter * 16}.part" for letter in "ab")
    dead.touch()
    (scored / ".hidden.part").touch()
    before = sorted(os.listdir(scored / "run"))
    with open(living, "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        done = fourfold(scored, "clean")
    assert sorted(done.stdout.split()) == [dead.name, "run/values-0042.part"]
    assert living.exists()
    assert (scored / ".hidden.part").exists()
    assert sorted(os.listdir(scored / "run")) == [name for name in before if name != orphan.name]
    assert fourfold(scored, "clean").stderr == "fourfold: 1 files removed\n"
    assert "nothing to clean" in fourfold(scored, "clean").stderr


@pytest.fixture
def damaged(scored):
    """The same folder with runs in it that cannot be read: damaged, of another version, writable for others; and a good one behind."""
    for name in ("a-damaged", "b-old", "c-shared", "z-good"):
        shutil.copytree(scored / "run", scored / name)
    (scored / "a-damaged" / "journal.sqlite").write_bytes(b"SQLite format 3\0" + bytes(5000))
    with contextlib.closing(sqlite3.connect(scored / "b-old" / "journal.sqlite")) as database, database:
        database.execute("pragma user_version = 1")
        database.execute("drop table done")
    os.chmod(scored / "c-shared", 0o777)
    return scored


def test_runs_lists_the_others_when_one_cannot_be_read_and_says_why(damaged):
    done = fourfold(damaged, "runs")
    assert [line.split()[0] for line in done.stdout.splitlines()] == ["c-shared", "run", "z-good"]
    assert done.returncode == 1
    first, second = done.stderr.splitlines()
    assert first.startswith("fourfold: a-damaged: a-damaged/journal.sqlite cannot be read")
    assert second.startswith("fourfold: b-old: b-old/journal.sqlite cannot be read: no such table: done")
    done = fourfold(damaged, "runs", "--json")
    listed = json.loads(done.stdout)
    assert [(each["folder"], "error" in each) for each in listed] == [
        ("c-shared", False),
        ("run", False),
        ("z-good", False),
        ("a-damaged", True),
        ("b-old", True),
    ]
    assert done.returncode == 1


def test_clean_goes_on_when_a_run_cannot_be_read_and_says_why(damaged):
    for name in ("c-shared", "z-good"):
        (damaged / name / "values-0042.part").touch(mode=0o600)
    done = fourfold(damaged, "clean")
    assert (done.returncode, done.stdout) == (1, "z-good/values-0042.part\n")
    *reasons, last = done.stderr.splitlines()
    assert [reason.split(": ")[1] for reason in reasons] == ["a-damaged", "b-old", "c-shared"]
    assert "others may write to" in reasons[2]
    assert last == "fourfold: 1 files removed; 3 stay as they are, for the reasons above"
    assert (damaged / "c-shared" / "values-0042.part").exists()


def test_a_folder_that_nobody_may_look_into_is_named(scored, monkeypatch, capsys):
    (scored / "closed").mkdir()
    scan = os.scandir

    def refuse(path):  # root may look into every folder
        if os.fspath(path).endswith("closed"):
            raise PermissionError(13, "Permission denied", os.fspath(path))
        return scan(path)

    monkeypatch.setattr(os, "scandir", refuse)
    told = [(swept.path, type(swept.error)) for swept in sweep(scored)]
    assert told == [(str(scored / "closed"), PermissionError)]
    monkeypatch.chdir(scored)
    with pytest.raises(SystemExit, match="1"):
        runs_command(".")
    said = capsys.readouterr()
    assert said.out.split()[0] == "run"
    assert "closed: PermissionError" in said.err


def test_clean_removes_code_that_no_worker_uses(tmp_path):
    used, unused = (tmp_path / f"fourfold-{os.getuid()}-{letter * 32}" for letter in "ab")
    for home in (used, unused):
        (home / "package").mkdir(parents=True)
    held = os.open(used, os.O_RDONLY)
    fcntl.flock(held, fcntl.LOCK_SH)
    done = fourfold(tmp_path, "clean", TMPDIR=str(tmp_path))
    os.close(held)
    assert done.stdout == f"{unused}\n"
    assert f"1 folders of unpacked code removed in {tmp_path}" in done.stderr
    assert os.listdir(tmp_path) == [used.name]


def test_clean_leaves_a_living_run_alone(tmp_path):
    stream = ff.imap(abs, range(10), run=tmp_path / "run", engine="serial")
    next(stream)
    (tmp_path / "run" / "values-0042.part").touch(mode=0o600)
    assert "nothing to clean" in fourfold(tmp_path, "clean").stderr
    stream.close()


def test_a_killed_command_leaves_a_part_that_clean_removes(tmp_path):
    (tmp_path / "kill.py").write_text(
        "import os\n\ndef fn(row):\n    if row == '5':\n        os.kill(os.getpid(), 9)\n    return row\n"
    )
    (tmp_path / "rows.txt").write_text("1\n5\n")
    fourfold(tmp_path, "map", "kill:fn", "rows.txt", "-o", "out.jsonl", "--engine", "serial")
    assert len(list(tmp_path.glob(".out.jsonl.*.part"))) == 2  # values, and failures
    assert "2 files removed" in fourfold(tmp_path, "clean").stderr
    assert not list(tmp_path.glob(".*.part"))


def test_map_goes_on_where_it_failed_and_writes_all(tmp_path):
    (tmp_path / "functions.py").write_text(
        "import os\n\ndef fn(row):\n    if row == '77' and not os.path.exists('mended'):\n        raise ValueError('no 77')\n    return int(row)\n"
    )
    (tmp_path / "rows.txt").write_text("".join(f"{number}\n" for number in range(200)))
    command = ["map", "functions:fn", "rows.txt", "-o", "out.jsonl", "--run", "run", "--on-error"]
    assert fourfold(tmp_path, *command, "raise").returncode == 1
    (tmp_path / "mended").touch()
    done = fourfold(tmp_path, "resume", "run")
    assert (done.returncode, "recorded before" in done.stderr) == (0, True)
    assert [int(line) for line in (tmp_path / "out.jsonl").read_text().split()] == list(range(200))


def test_rerun_of_map_replaces_its_output(tmp_path):
    (tmp_path / "functions.py").write_text(
        "import os\n\ndef fn(row):\n    if row == '7' and not os.path.exists('mended'):\n        raise ValueError('no 7')\n    return int(row)\n"
    )
    (tmp_path / "rows.txt").write_text("".join(f"{number}\n" for number in range(20)))
    assert fourfold(tmp_path, "map", "functions:fn", "rows.txt", "-o", "out.jsonl", "--run", "run").returncode == 3
    (tmp_path / "mended").touch()
    done = fourfold(tmp_path, "rerun", "run", "--failed")
    assert (done.returncode, done.stderr.count("20 of 20 items written")) == (0, 1)
    assert [int(line) for line in (tmp_path / "out.jsonl").read_text().split()] == list(range(20))
    assert not (tmp_path / "out.jsonl.failures.jsonl").exists()


def test_failures_of_a_command_are_told_by_kind(tmp_path):
    (tmp_path / "functions.py").write_text(
        "def fn(row):\n    if row in '12':\n        raise ValueError('small')\n    return {}[row]\n"
    )
    (tmp_path / "rows.txt").write_text("1\n2\n3\n4\n5\n")
    done = fourfold(tmp_path, "map", "functions:fn", "rows.txt", "-o", "out.jsonl")
    assert done.returncode == 3
    assert "  3 x rows.txt:3: KeyError: '3'" in done.stderr
    assert "  2 x rows.txt:1: ValueError: small" in done.stderr

"""The command line, as real processes: exit codes, stderr, and what is left on the disk."""

import contextlib
import json
import os
import pathlib
import re
import shutil
import signal
import subprocess
import sys
import textwrap
import time

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from prompt import fourfold, served

from fourfold.runs.story import story_of

FUNCTIONS = '''
"""Functions for the tests."""
import os, sys, threading, time


def length(text):
    return {"text": text, "length": len(text)}


def same(item):
    return item


def number(row):
    return {"n": int(row["n"])}


def odd_columns(row):
    return {"n": row["n"]} if row["n"] != "3" else {"n": 3, "extra": 4}


def as_bytes(row):
    return b"x" if row["n"] == "2" else "x"


def not_a_number(row):
    return float("nan")


def size(path):
    return {"name": os.path.basename(path), "size": os.path.getsize(path)}


def pid(item):
    time.sleep(0.001)
    return os.getpid()


def stop(item):
    if item == "stop":
        os.kill(os.getpid(), 0)
        open("reached", "w").close()
        for _ in range(3000):  # one long wait would not hear of a signal that comes just before it, in any Python program
            time.sleep(0.02)
    return item


class Deaf:
    def __del__(self):
        open("reached", "w").close()
        threading.Event().wait(1)


def drop(item):
    """The signal that ends it comes while a destructor runs, where Python drops exceptions."""
    if item == "stop":
        Deaf()
        for _ in range(3000):
            time.sleep(0.02)
    return item


class Multiply:
    def __init__(self, factor="1"):
        self.factor = int(factor)

    def __call__(self, row):
        return {"n": int(row["n"]) * self.factor}


def fatal(row):
    """Kills its worker: item 13 once, item 30 always."""
    if row["n"] == 30 or (row["n"] == 13 and not os.path.exists("died")):
        open("died", "w").close()
        os.kill(os.getpid(), 9)
    return {"n": row["n"], "m": 3 * row["n"]}


not_a_function = 3
'''


@pytest.fixture(autouse=True, scope="module")
def _prompt():
    with served():
        yield


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    """A folder with functions.py and some inputs, which is the current one."""
    monkeypatch.chdir(tmp_path)
    pathlib.Path("functions.py").write_text(FUNCTIONS)
    pathlib.Path("texts.txt").write_text("a\nbb\nccc\n")
    pathlib.Path("numbers.csv").write_text("n\n1\n2\n3\n")
    pathlib.Path("broken.csv").write_text("n\n1\nx\n3\n")
    pathlib.Path("empty.jsonl").touch()
    # A worker imports functions.py again: its cache would be a file that no test expects.
    monkeypatch.setenv("PYTHONDONTWRITEBYTECODE", "1")
    return tmp_path


def run(*arguments, stdin=None):
    """`fourfold map` on this thread, where a test does not say otherwise."""
    engine = [] if "--engine" in arguments else ["--engine", "serial"]
    return fourfold("map", *arguments, *engine, stdin=stdin)


def refused(*arguments, code, stdin=None):
    """The one line on stderr of a command that ends with `code` and writes nothing."""
    before = sorted(os.listdir())
    done = run(*arguments, stdin=stdin)
    assert done.returncode == code, done.stderr
    assert done.stdout == ""
    assert sorted(os.listdir()) == before
    (line,) = done.stderr.splitlines()
    assert line.startswith("fourfold: ")
    return line.removeprefix("fourfold: ")


def failures(output):
    return [json.loads(line) for line in pathlib.Path(f"{output}.failures.jsonl").read_text().splitlines()]


# ---- what it does


def test_a_dict_per_line_of_text_becomes_csv():
    done = run("functions:length", "texts.txt", "-o", "out.csv")
    assert done.returncode == 0
    assert pathlib.Path("out.csv").read_text() == "text,length\na,1\nbb,2\nccc,3\n"
    lines = done.stderr.splitlines()
    assert lines[0] == "fourfold: out.csv: 3 of 3 items written"
    assert lines[1].startswith("fourfold: the loop, as asked: 3 items")
    assert len(lines) == 2
    assert not os.path.exists("out.csv.failures.jsonl")


@pytest.mark.slow
def test_every_format_reads_what_it_writes():
    for source, output in (("numbers.csv", "a.jsonl"), ("a.jsonl", "b.parquet"), ("b.parquet", "c.csv")):
        assert run("functions:same", source, "-o", output).returncode == 0
    assert pathlib.Path("c.csv").read_text() == "n\n1\n2\n3\n"


@pytest.mark.parametrize("output", ["out.jsonl", "out.csv", "out.parquet"])
def test_no_items_make_an_empty_output(output):
    done = run("functions:same", "empty.jsonl", "-o", output)
    assert done.returncode == 0
    assert "0 of 0 items written" in done.stderr
    assert os.path.exists(output)


def test_stdin_is_read():
    done = run("functions:number", "-", "--format", "jsonl", "-o", "out.jsonl", stdin='{"n": 1}\n{"n": "2"}\n')
    assert done.returncode == 0
    assert pathlib.Path("out.jsonl").read_text() == '{"n": 1}\n{"n": 2}\n'


def test_a_folder_and_a_glob_are_read_in_order():
    pathlib.Path("d").mkdir()
    for name in ("b", "a", "c"):
        pathlib.Path(f"d/{name}.txt").write_text(f"{name}\n")
    assert run("functions:same", "d", "d/[ab]*", "-o", "out.jsonl").returncode == 0
    assert pathlib.Path("out.jsonl").read_text().split() == ['"a"', '"b"', '"c"', '"a"', '"b"']


def test_items_can_be_the_paths():
    done = run("functions:size", "*.txt", "numbers.csv", "--items", "paths", "-o", "out.csv")
    assert done.returncode == 0
    assert pathlib.Path("out.csv").read_text() == "name,size\ntexts.txt,9\nnumbers.csv,8\n"


def test_a_class_is_built_with_init():
    assert run("functions:Multiply", "numbers.csv", "-o", "out.csv", "--init", "10").returncode == 0
    assert pathlib.Path("out.csv").read_text() == "n\n10\n20\n30\n"


@pytest.mark.parametrize("size", [0, 1, 2, 3, 5000])
def test_workers_write_the_same_file_as_the_loop(size):
    pathlib.Path("in.jsonl").write_text("".join(f'{{"n": {k}}}\n' for k in range(size)))
    for engine in ("serial", "processes"):
        done = run(
            "functions:Multiply", "in.jsonl", "-o", f"{engine}.jsonl", "--engine", engine, "--init", "3", "--workers", "2"
        )
        assert done.returncode == 0, done.stderr
    assert pathlib.Path("serial.jsonl").read_text() == pathlib.Path("processes.jsonl").read_text()
    assert len(pathlib.Path("serial.jsonl").read_text().splitlines()) == size


@pytest.mark.slow
@pytest.mark.contract(33, "processes")
@pytest.mark.parametrize("output", ["out.jsonl", "out.parquet"])
def test_a_reader_of_the_output_finds_each_item_once_though_workers_die(output):
    pathlib.Path("in.jsonl").write_text("".join(f'{{"n": {k}}}\n' for k in range(50)))
    workers = ("--engine", "processes", "--workers", "2", "--chunk", "4")
    done = run("functions:fatal", "in.jsonl", "-o", output, "--run", "record", *workers)
    assert done.returncode == 3, done.stderr
    assert [each["index"] for each in failures(output)] == [30]
    if output == "out.parquet":
        rows = pq.read_table(output).to_pylist()
    else:
        rows = [json.loads(line) for line in pathlib.Path(output).read_text().splitlines()]
    assert rows == [{"n": n, "m": 3 * n} for n in range(50) if n != 30]
    assert story_of(pathlib.Path("record")).n_done == 49


def test_workers_find_modules_of_this_folder_under_the_installed_command():
    command = os.path.join(os.path.dirname(sys.executable), "fourfold")
    if not os.path.exists(command):
        pytest.skip("the command fourfold is not installed beside this Python")
    arguments = ["map", "functions:pid", "texts.txt", "-o", "out.jsonl", "--engine", "processes"]
    done = subprocess.run([command, *arguments], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    assert "processes, as asked" in done.stderr


def test_nan_is_null_in_jsonl_and_said():
    done = run("functions:not_a_number", "texts.txt", "-o", "out.jsonl")
    assert pathlib.Path("out.jsonl").read_text() == "null\n" * 3
    assert "fourfold: 3 numbers were NaN or infinite, which JSON cannot hold: they are null\n" in done.stderr


# ---- items that fail


def test_a_failed_item_is_left_out_and_listed_with_its_line():
    done = run("functions:number", "broken.csv", "-o", "out.csv")
    assert done.returncode == 3
    assert pathlib.Path("out.csv").read_text() == "n\n1\n3\n"
    (failure,) = failures("out.csv")
    assert failure["traceback"].startswith("Traceback (most recent call last):\n")
    assert "in number" in failure.pop("traceback")
    assert failure == {
        "index": 1,
        "source": "broken.csv",
        "line": 3,
        "kind": "raised",
        "error_type": "ValueError",
        "message": "invalid literal for int() with base 10: 'x'",
        "item": "{'n': 'x'}",
        "attempts": 1,
        "place": "functions.py:15 in number",
    }
    assert done.stderr.splitlines()[:2] == [
        "fourfold: out.csv: 2 of 3 items written",
        "fourfold: 1 failed, listed in out.csv.failures.jsonl; the first: broken.csv:3: ValueError: "
        "invalid literal for int() with base 10: 'x'",
    ]


def test_the_row_of_a_failure_in_parquet_is_named():
    pq.write_table(pa.table({"n": ["1", "x"]}), "in.parquet")
    assert run("functions:number", "in.parquet", "-o", "out.csv").returncode == 3
    (failure,) = failures("out.csv")
    assert (failure["source"], failure["row"]) == ("in.parquet", 1)


def test_skip_means_the_same_as_collect():
    assert run("functions:number", "broken.csv", "-o", "out.csv", "--on-error", "skip").returncode == 3
    assert len(failures("out.csv")) == 1


@pytest.mark.slow
def test_all_items_failed():
    pathlib.Path("bad.csv").write_text("n\nx\ny\n")
    for output in ("out.csv", "out.jsonl", "out.parquet"):
        assert run("functions:number", "bad.csv", "-o", output).returncode == 3
        assert [failure["line"] for failure in failures(output)] == [2, 3]


def test_raise_stops_at_the_first_failure():
    line = refused("functions:number", "broken.csv", "-o", "out.csv", "--on-error", "raise", code=1)
    assert line.startswith("ValueError: invalid literal for int() with base 10: 'x'; ")
    assert "item 1 of number" in line
    assert line.endswith("(--traceback shows where)")


def test_traceback_shows_where():
    done = run("functions:number", "broken.csv", "-o", "out.csv", "--on-error", "raise", "--traceback")
    assert done.returncode == 1
    assert 'return {"n": int(row["n"])}' in done.stderr
    assert done.stderr.splitlines()[-1].startswith("fourfold: ValueError")


def test_too_many_failures_stop_the_run():
    pathlib.Path("bad.csv").write_text("n\n" + "x\n" * 10)
    line = refused("functions:number", "bad.csv", "-o", "out.csv", "--max-failures", "2", code=1)
    assert "--max-failures 2" in line


def test_an_old_list_of_failures_goes_when_nothing_fails_any_more():
    run("functions:number", "broken.csv", "-o", "out.csv")
    assert run("functions:same", "broken.csv", "-o", "out.csv", "--overwrite").returncode == 0
    assert not os.path.exists("out.csv.failures.jsonl")


# ---- what is refused, in one line


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["functions", "texts.txt"], "'functions' is not MODULE:FUNCTION"),
        (["functions.py:length", "texts.txt"], "for the file functions.py type functions:length"),
        (["functions:lenght", "texts.txt"], "module 'functions' has no 'lenght'; did you mean 'length'?"),
        (["functionz:length", "texts.txt"], "no module named 'functionz'"),
        (["functionz:length", "texts.txt"], "did you mean 'functions'?"),
        (["functions:not_a_function", "texts.txt"], "functions:not_a_function is of type int, and no function"),
        (["functions:zzz", "texts.txt"], "module 'functions' has no 'zzz'; it has: Deaf, Multiply, as_bytes, drop"),
        (["functions:same", "nope.txt"], "input not found: nope.txt"),
        (["functions:same", "*.nope"], "no file matches '*.nope'"),
        (["functions:same", "functions.py"], "cannot tell the format of functions.py"),
        (["functions:same", "-"], "standard input has no extension"),
        (["functions:same", "-", "--format", "parquet"], "parquet cannot be read from a pipe"),
        (["functions:same", "texts.txt", "--format", "yaml"], "unknown format 'yaml'"),
        (["functions:same", "-", "--items", "paths"], "use - --format text"),
        (["functions:same", "texts.txt", "--items", "paths", "--format", "text"], "leave one out"),
        (["functions:same", "texts.txt", "--workers", "0"], "--workers 0 must be at least 1"),
        (["functions:same", "texts.txt", "--engine", "procceses"], "did you mean 'processes'?"),
        (["functions:same", "texts.txt", "--chunk", "many"], "--chunk many: not a number"),
        (["functions:same", "texts.txt", "--max-failures", "1.5"], "--max-failures 1.5"),
        (["functions:same", "texts.txt", "--init", "1"], "init=('1',) is for classes"),
    ],
)
def test_a_wrong_argument_is_a_usage_error(arguments, said):
    assert said in refused(*arguments, "-o", "out.jsonl", code=2)


@pytest.mark.parametrize(
    ("output", "said"),
    [
        ("out", "cannot tell the output format of 'out'"),
        ("out.txt", "use one of .jsonl"),
        ("no/out.csv", "/no does not exist; make it first: mkdir -p /"),
        (".", "'.' is a folder"),
        ("numbers.csv", "'numbers.csv' is there already: choose another -o, or add --overwrite"),
    ],
)
def test_an_output_that_cannot_be_is_a_usage_error(output, said):
    assert said in refused("functions:same", "texts.txt", "-o", output, code=2)


def test_a_missing_option_is_a_usage_error():
    done = run("functions:same", "texts.txt")
    assert done.returncode == 2
    assert "'--output' / '-o'" in done.stderr


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("a.jsonl", '1\n{"a": \n', "a.jsonl:2: not valid JSON"),
        ("a.csv", "a,b\n1\n", "a.csv:2: 1 value where the header has 2"),
        ("a.parquet", "no", "a.parquet: not a readable parquet file"),
        ("a.txt.gz", "no", "a.txt.gz: not a whole gzip file"),
    ],
)
def test_a_broken_input_is_one_line_with_file_and_line(name, content, said):
    pathlib.Path(name).write_text(content)
    assert refused("functions:same", name, "-o", "out.jsonl", code=1).startswith(said)


@pytest.mark.parametrize(
    ("function", "output", "said"),
    [
        ("odd_columns", "out.csv", "numbers.csv:4: item 2: its result has the column 'extra'"),
        ("odd_columns", "out.parquet", "numbers.csv:4: item 2: its result has the column 'extra'"),
        ("as_bytes", "out.csv", "numbers.csv:3: item 1, column 'value': bytes cannot be written"),
        ("as_bytes", "out.jsonl", "numbers.csv:3: item 1: its result cannot be written as JSON: result: bytes"),
        ("as_bytes", "out.parquet", "item 1, column 'value': b'x' (bytes) does not fit the values before it: "),
    ],
)
def test_a_result_that_the_format_cannot_hold_names_its_item(function, output, said):
    assert refused(f"functions:{function}", "numbers.csv", "-o", output, code=1).startswith(said)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("import nothing_of_this_name", "importing module failed: No module named 'nothing_of_this_name'"),
        ("1 / 0", "importing module failed: ZeroDivisionError: division by zero"),
        ("x = (", "importing module failed: SyntaxError"),
        ("import sys; sys.exit(4)", 'ended with sys.exit(4): put what the script runs under if __name__ == "__main__":'),
    ],
)
def test_a_module_that_cannot_be_imported_says_why(content, said):
    pathlib.Path("module.py").write_text(content)
    assert said in refused("module:f", "texts.txt", "-o", "out.jsonl", code=1)


def test_the_place_of_an_import_error_is_named():
    pathlib.Path("module.py").write_text("a = 1\nimport nothing_of_this_name\n")
    assert "module.py:2)" in refused("module:f", "texts.txt", "-o", "out.jsonl", code=1)


def test_a_module_missing_in_a_package_is_answered_with_the_nearest():
    pathlib.Path("package").mkdir()
    pathlib.Path("package/__init__.py").touch()
    pathlib.Path("package/features.py").touch()
    said = refused("package.feature:f", "texts.txt", "-o", "out.jsonl", code=2)
    assert "did you mean 'package.features'?" in said


# ---- interrupted and killed


@contextlib.contextmanager
def held(engine, function="stop"):
    """A run that has reached its item "stop" and will not leave it."""
    pathlib.Path("stop.txt").write_text("a\nb\nstop\nc\n")
    command = [
        sys.executable,
        "-m",
        "fourfold",
        "map",
        f"functions:{function}",
        "stop.txt",
        "-o",
        "out.jsonl",
        "--engine",
        engine,
    ]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, start_new_session=True)
    try:
        deadline = time.monotonic() + 30
        while not os.path.exists("reached"):
            assert time.monotonic() < deadline, "the run did not reach its item"
            assert process.poll() is None, process.communicate()
            os.sched_yield()
        yield process
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate()


def left_behind():
    return sorted(
        set(os.listdir()) - {"functions.py", "texts.txt", "numbers.csv", "broken.csv", "empty.jsonl", "stop.txt", "reached"}
    )


@pytest.mark.contract(20, "serial", "processes")
@pytest.mark.slow
@pytest.mark.parametrize("engine", ["serial", "processes"])
@pytest.mark.fault("F40")
def test_an_interrupt_leaves_nothing_and_exits_130(engine):
    with held(engine) as process:
        os.killpg(process.pid, signal.SIGINT)
        _, told = process.communicate(timeout=30)
        assert process.returncode == 130, told
    assert told == "fourfold: interrupted: out.jsonl was not written; the same command starts again\n"
    assert left_behind() == []


@pytest.mark.slow
@pytest.mark.parametrize("engine", ["serial", "processes"])
@pytest.mark.fault("F41")
def test_a_terminated_run_leaves_nothing(engine):
    with held(engine) as process:
        process.terminate()
        _, told = process.communicate(timeout=30)
        assert process.returncode == 128 + signal.SIGTERM, told
    assert left_behind() == []


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_that_comes_inside_a_destructor_is_not_lost(number, code):
    with held("serial", "drop") as process:
        process.send_signal(number)
        _, told = process.communicate(timeout=30)
    assert (process.returncode, told.count("\n")) == (code, 1), told


@pytest.mark.fault("F42")
def test_a_killed_run_leaves_no_output():
    with held("serial") as process:
        process.kill()
        process.communicate(timeout=30)
    assert all(name.startswith(".out.jsonl") and name.endswith(".part") for name in left_behind())
    assert run("functions:same", "texts.txt", "-o", "out.jsonl").returncode == 0


def test_an_old_output_stays_when_a_run_fails():
    pathlib.Path("out.csv").write_text("old")
    assert run("functions:odd_columns", "numbers.csv", "-o", "out.csv", "--overwrite").returncode == 1
    assert pathlib.Path("out.csv").read_text() == "old"


def test_an_output_may_replace_its_own_input():
    assert run("functions:number", "numbers.csv", "-o", "numbers.csv", "--overwrite").returncode == 0
    assert pathlib.Path("numbers.csv").read_text() == "n\n1\n2\n3\n"


def test_a_full_disk_is_one_line():
    limit = "import resource, signal; signal.signal(signal.SIGXFSZ, signal.SIG_IGN); "
    limit += "resource.setrlimit(resource.RLIMIT_FSIZE, (2000, 2000)); from fourfold.cli import main; main()"
    pathlib.Path("long.txt").write_text("x" * 5000 + "\n")
    arguments = ["map", "functions:same", "long.txt", "-o", "out.jsonl", "--engine", "serial"]
    done = subprocess.run([sys.executable, "-c", limit, *arguments], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 1
    assert done.stderr == "fourfold: out.jsonl cannot be written: File too large\n"
    assert left_behind() == ["long.txt"]


@pytest.mark.parametrize(
    "words",
    [
        ["map", "functions:number", "broken.csv", "-o", "OUT.csv", "--engine", "serial"],
        ["map", "functions:number", "-", "--format", "jsonl", "-o", "OUT.jsonl", "--engine", "processes", "--run", "OUT.run"],
        ["map", "functions:none", "texts.txt", "-o", "OUT.csv"],
        ["runs", "--help"],
    ],
    ids=["some fail", "workers", "usage", "help"],
)
def test_a_command_does_the_same_whichever_way_it_starts(words):
    def said(of, **how):
        done = fourfold(*[word.replace("OUT", of) for word in words], stdin='{"n": 1}\n', **how)
        text = re.sub(r"[\d.,]+ (m|µ)?s\b", "SOME TIME", done.stdout + done.stderr).replace(of, "OUT")
        return done.returncode, text.splitlines()[:1], written(of)

    def written(of):
        files = [path for path in pathlib.Path().rglob(f"{of}*") if path.is_file()]
        return {path.name.replace(of, "OUT"): path.read_bytes() for path in files}

    assert said("there") == said("here", PYTHONUTF8="1"), "what Python itself reads is not for a fork: it starts by itself"


# ---- help, doctor, bench


def test_help_names_every_command():
    done = fourfold("--help")
    assert done.returncode == 0
    for command in ("map", "doctor", "demo", "bench"):
        assert f"\n  {command} " in done.stdout


def test_help_imports_nothing_heavy():
    code = "import sys, fourfold.cli; print(*{'numpy', 'pyarrow', 'pandas', 'rich', 'psutil', 'tqdm'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.split() == []


def test_no_command_shows_the_help():
    done = fourfold()
    assert done.returncode == 2
    assert "Commands:" in done.stdout + done.stderr


def test_doctor_prints_where_each_figure_comes_from():
    done = fourfold("doctor")
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    for what in ("cores", "memory", "shared memory", "open files", "start method", "BLAS", "engine processes", "java"):
        assert f"\n{what} " in done.stdout


def test_doctor_prints_json_with_units_in_its_names():
    figures = json.loads(fourfold("doctor", "--json").stdout)
    assert figures["cores"]["n_cores"] >= 1
    assert figures["cores"]["source"]
    assert figures["memory"]["limit_bytes"] > 0
    assert {engine["name"] for engine in figures["engines"]} >= {"serial", "threads", "processes", "spark", "ray", "dask"}
    assert isinstance(figures["advice"], list)


@pytest.mark.parametrize(("platform", "name"), [("linux", "forkserver"), ("darwin", "untested"), ("win32", "none")])
def test_doctor_says_on_which_systems_workers_can_start(monkeypatch, platform, name):
    from fourfold.cli import doctor

    monkeypatch.setattr(sys, "platform", platform)
    if platform == "win32":
        monkeypatch.delattr(os, "fork")
    found = doctor._start_method()
    assert found["name"] == name
    assert ("serial and threads work" in found["source"]) == (platform != "linux")


def test_doctor_counts_the_cores_of_the_affinity_mask():
    one = min(os.sched_getaffinity(0))
    code = f"import os; os.sched_setaffinity(0, {{{one}}}); from fourfold.cli import main; main()"
    done = subprocess.run(
        [sys.executable, "-c", code, "doctor", "--json"], capture_output=True, text=True, timeout=60, check=True
    )
    figures = json.loads(done.stdout)
    assert figures["cores"]["n_cores"] == 1
    if (os.cpu_count() or 1) > 1:
        assert "affinity" in figures["cores"]["source"]


def test_doctor_says_what_to_mend():
    code = textwrap.dedent("""
        import os, resource
        os.environ["OMP_NUM_THREADS"] = "7"
        hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
        resource.setrlimit(resource.RLIMIT_NOFILE, (64, hard))
        from fourfold.cli import main
        main()
    """)
    done = subprocess.run([sys.executable, "-c", code, "doctor"], capture_output=True, text=True, timeout=60, check=True)
    assert "only 64 open files are allowed\n      ulimit -n " in done.stdout
    assert "unset OMP_NUM_THREADS" in done.stdout


def test_bench_outside_a_checkout_says_what_to_do():
    done = fourfold("bench")
    assert done.returncode == 1
    assert done.stderr.startswith("fourfold: no benchmarks/run.py of fourfold in ")
    assert "clone the repository" in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_bench_runs_the_script_above_with_the_arguments():
    os.makedirs("checkout/src/fourfold")
    os.makedirs("checkout/benchmarks/deeper")
    pathlib.Path("checkout/benchmarks/run.py").write_text("import sys; print(sys.argv[1:]); sys.exit(7)")
    done = fourfold("bench", "--quick", "P1", cwd="checkout/benchmarks/deeper")
    assert (done.returncode, done.stdout) == (7, "['--quick', 'P1']\n")


# ---- docs/command-line.md and examples/

HOUSE = pathlib.Path(__file__).parents[1]


def shown_commands():
    """Every command of the guide with the output that it shows."""
    text = (HOUSE / "docs/command-line.md").read_text(encoding="utf-8")
    for block in re.findall(r"```console\n(.*?)```", text, re.DOTALL):
        for part in re.split(r"^\$ ", block, flags=re.MULTILINE)[1:]:
            command, _, output = part.partition("\n")
            yield command, output


@pytest.mark.slow
def test_every_command_of_the_guide_prints_what_it_shows():
    shutil.copytree(HOUSE / "examples", "copy")
    this = f'fourfold() {{ {sys.executable} -m fourfold "$@"; }}'
    code = 0
    for command, output in shown_commands():
        done = subprocess.run(
            ["bash", "-c", f"{this}; (exit {code}); {command}"],
            cwd="copy",
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=60,
            check=False,
        )
        code = done.returncode
        expected = re.escape(output).replace("…", ".*")
        assert re.fullmatch(expected, done.stdout, re.DOTALL), f"$ {command}\n{done.stdout}"


def test_the_guide_shows_the_function_of_the_example():
    text = (HOUSE / "docs/command-line.md").read_text(encoding="utf-8")
    (shown,) = re.findall(r"```python\n.*?(def statistics.*?)```", text, re.DOTALL)
    assert shown in (HOUSE / "examples/texts.py").read_text(encoding="utf-8")


@pytest.mark.slow
@pytest.mark.parametrize("name", ["squares.py", "primes.py"])
def test_the_example_runs(name):
    done = subprocess.run([sys.executable, HOUSE / "examples" / name], capture_output=True, text=True, timeout=60, check=True)
    assert done.stderr == ""
    assert done.stdout

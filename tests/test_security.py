"""What others on the machine, or on the network, can see of a run: nothing. And what is never done with text, or with pickles
that this user's own drivers have not made.

That a run's folder is private is tested in test_journal.py. Outputs of `fourfold map` follow the user's umask on purpose: they are
the user's files, like those of any other program.
"""

import ast
import contextlib
import hashlib
import json
import os
import pickle
import shutil
import sqlite3
import stat
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
from running import SCALE, run_script, started, until

import fourfold as ff
from fourfold.errors import JournalCorrupt, JournalError, RunInUse, UntrustedRun
from fourfold.execute.pickling import dump, dump_by_name
from fourfold.replay import prepare_replay
from fourfold.runs import seal, upkeep
from fourfold.runs.story import check_command, failures_of, story_of
from fourfold.runs.values import ValueWriter
from fourfold.system import seams

SOURCE = Path(__file__).parents[1] / "src" / "fourfold"

SECRET = "hunter2-4711-correct-horse"


def on_processes(fn, items, **options):
    return ff.map(fn, items, **{"engine": "processes", "workers": 2, **options})


# ---- no door


def bound_sockets():
    """All sockets on the machine that others could find: TCP and UDP ports, and Unix sockets with a name."""
    lines = set()
    for name in ("tcp", "tcp6", "udp", "udp6", "raw"):
        path = Path(f"/proc/net/{name}")
        if path.exists():
            lines |= {(name, line.split()[1], line.split()[9]) for line in path.read_text().splitlines()[1:]}
    unix = Path("/proc/net/unix").read_text().splitlines()[1:]
    return lines | {("unix", line.split()[7], line.split()[6]) for line in unix if len(line.split()) > 7}


def owned(sockets):
    """Those of them that this process or one under it holds."""
    family = [psutil.Process(), *psutil.Process().children(recursive=True)]
    inodes = set()
    for process in family:
        for entry in Path(f"/proc/{process.pid}/fd").iterdir():
            try:
                target = os.readlink(entry)
            except OSError:
                continue
            if target.startswith("socket:"):
                inodes.add(target[len("socket:[") : -1])
    return {each for each in sockets if each[2] in inodes}


def test_during_a_run_there_is_no_socket_that_anybody_could_find():
    before = bound_sockets()
    stream = ff.imap(lambda x: x, range(100), engine="processes", workers=2, chunk=1)
    next(stream)
    assert owned(bound_sockets() - before) == set()
    stream.close()


def test_a_socket_that_could_be_found_is_seen():
    import socket

    before = bound_sockets()
    with socket.socket() as tcp, socket.socket(socket.AF_UNIX) as unix:
        tcp.bind(("127.0.0.1", 0))
        tcp.listen()
        unix.bind("\0of-a-test")
        assert {kind for kind, _, _ in owned(bound_sockets() - before)} == {"tcp", "unix"}


def test_during_a_run_no_shared_memory_and_no_temporary_file_has_a_name():
    import tempfile

    def names():
        folders = {"/dev/shm", "/dev/mqueue", tempfile.gettempdir()}
        return {f"{folder}/{name}" for folder in folders if os.path.isdir(folder) for name in os.listdir(folder)}

    before = names()
    stream = ff.imap(lambda x: bytes(x), [3_000_000] * 6, engine="processes", workers=2, chunk=1)
    next(stream)
    assert not [name for name in names() - before if "fourfold" in name or "shm" in name]
    memory = [
        os.readlink(f"/proc/self/fd/{fd}") for fd in os.listdir("/proc/self/fd") if os.path.exists(f"/proc/self/fd/{fd}")
    ]
    assert not [target for target in memory if target.startswith("/dev/shm") and not target.endswith("(deleted)")]
    stream.close()


WATCHER = """
import os, sys

WORDS = "socket.connect socket.bind socket.getaddrinfo socket.gethostbyname socket.sendto urllib.Request".split()

def note(*words):
    end = os.open(os.environ["NOTES"], os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    os.write(end, (" ".join(map(str, (os.getpid(), *words))) + "\\n").encode())
    os.close(end)

def hook(event, arguments):
    if event in WORDS or event.startswith(("http.", "ftplib.", "smtplib.")):
        note(event, repr(arguments))

sys.addaudithook(hook)
note("begins")
"""
"""Python imports this before anything else, in every interpreter that has its folder on PYTHONPATH. Forks inherit the hook."""

WATCHED = """
    import os
    import fourfold as ff
    import fourfold.cli, fourfold.replay, fourfold.testing

    for engine in ("serial", "threads", "processes", "auto"):
        ff.map(abs, range(50), engine=engine, workers=2, run="run-" + engine)
    pids = set(ff.map(lambda x: os.getpid(), range(20), engine="processes", workers=2, chunk=1))
    print(os.getpid(), *pids)
    MORE
"""

CONNECTS = 'import socket; socket.socket(socket.AF_INET, socket.SOCK_DGRAM).connect(("127.0.0.1", 9))'


def watched(folder, more=""):
    """Run it under a hook that sees every process from its first line on; returns what it prints and the notes of the hook."""
    (folder / "watcher").mkdir()
    (folder / "watcher" / "sitecustomize.py").write_text(WATCHER)
    paths = {"PYTHONPATH": str(folder / "watcher"), "NOTES": str(folder / "notes")}
    ended = run_script(WATCHED.replace("MORE", more), folder=folder, **paths)
    assert (ended.code, ended.stderr, ended.survivors) == (0, "", [])
    return ended.stdout.split(), [line.split(maxsplit=2) for line in (folder / "notes").read_text().splitlines()]


def test_neither_import_nor_the_start_of_workers_nor_runs_use_the_network(tmp_path):
    (driver, *_), notes = watched(tmp_path)
    assert [what for _, what, *_ in notes] == ["begins", "begins"], "the driver's interpreter, and the template's"
    assert notes[0][0] == driver != notes[1][0]


@pytest.mark.parametrize("where", ["driver", "worker"])
def test_the_network_would_be_seen(tmp_path, where):
    more = CONNECTS if where == "driver" else f"ff.map(lambda x: exec({CONNECTS!r}), [1], engine='processes', workers=2)"
    (driver, *workers), notes = watched(tmp_path, more)
    ((pid, event, _),) = [note for note in notes if note[1] != "begins"]
    assert event == "socket.connect"
    assert pid in ([driver] if where == "driver" else workers)


# ---- no secret on the way


HOLDS_A_SECRET = """
    import logging, os, sys
    import fourfold as ff

    logging.basicConfig(level=logging.DEBUG, stream=sys.stderr)
    secret = os.environ["TOKEN"]

    class Login:
        def __init__(self, word):
            self.word = word

        def __repr__(self):
            return "Login(" + "x" * 500 + self.word + ")"

    def use(login):
        open("runs", "w").close()
        while not os.path.exists("go"):
            pass
        if login.word.endswith("?"):
            raise ValueError("no")
        return len(login.word)

    print(ff.map(use, [Login(secret), Login(secret + "?")], engine="processes", workers=2, chunk=1, run="run", on_error="skip"))
"""


def test_a_secret_is_in_no_command_line_no_log_and_not_in_what_is_told_of_a_run(tmp_path):
    with started(HOLDS_A_SECRET, folder=tmp_path, TOKEN=SECRET) as script:
        until(lambda: (tmp_path / "runs").exists(), "items run")
        commands = [Path(f"/proc/{each.pid}/cmdline").read_bytes() for each in script._family()]
        assert len(commands) >= 3
        assert not [command for command in commands if SECRET.encode() in command]
        (tmp_path / "go").touch()
        ended = script.end()
    assert (ended.code, ended.stdout) == (0, f"[{len(SECRET)}]\n")
    assert SECRET not in ended.stderr
    told = [
        path for path in (tmp_path / "run").iterdir() if path.name.startswith("journal") or path.suffix in (".json", ".txt")
    ]
    assert told
    assert not [path.name for path in told if SECRET.encode() in path.read_bytes()]


def test_items_and_arguments_are_shown_clipped():
    class Login:
        def __init__(self, word):
            self.word = word

        def __repr__(self):
            return "Login(" + "x" * 500 + self.word + ")"

        def __call__(self, x):
            raise ValueError("no")

    (failure,) = on_processes(lambda login: 1 / 0, [Login(SECRET)], on_error="collect").failures
    assert SECRET not in failure.item
    assert SECRET not in str(failure)
    with pytest.raises(ZeroDivisionError) as caught:
        on_processes(lambda login: 1 / 0, [Login(SECRET)])
    assert SECRET not in "".join(caught.value.__notes__)
    assert SECRET not in str(caught.value.__cause__)


# ---- no text is run


def calls_of(tree, names):
    return [
        node.lineno
        for node in ast.walk(tree)
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in names
    ]


@pytest.mark.parametrize("path", sorted(SOURCE.rglob("*.py")), ids=lambda path: str(path.relative_to(SOURCE)))
def test_no_text_is_run_as_code(path):
    tree = ast.parse(path.read_text(encoding="utf-8"))
    assert calls_of(tree, {"eval", "exec", "compile", "__import__"}) == []
    shells = [node for node in ast.walk(tree) if isinstance(node, ast.keyword) and node.arg == "shell"]
    assert shells == []
    assert not [
        node for node in ast.walk(tree) if isinstance(node, ast.Attribute) and ast.unparse(node) in ("os.system", "os.popen")
    ]


def test_code_that_runs_text_is_seen():
    assert calls_of(ast.parse("x = eval('1')\nexec(x)"), {"eval", "exec"}) == [1, 2]


# ---- nothing is unpickled that our own drivers have not sealed


class Bomb:
    """Leaves a mark when it is unpickled."""

    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return os.mkdir, (self.path,)


def as_they_are(item):
    return item


def refuses_bytes(item):
    if isinstance(item, bytes):
        raise ValueError(f"no {len(item)} bytes")
    return item


@pytest.fixture
def run(tmp_path):
    return tmp_path / "run"


@pytest.fixture
def mark(tmp_path):
    """What a bomb would leave."""
    return tmp_path / "mark"


@contextlib.contextmanager
def opened(run):
    """The tables of a run, to be changed by somebody who knows them well."""
    with contextlib.closing(sqlite3.connect(run / "journal.sqlite")) as database, database:
        yield database


def fact(run, name, value):
    with opened(run) as database:
        database.execute("insert or replace into run values (?, ?)", (name, json.dumps(value)))


def record(run, items=(1, 2, 3)):
    return lambda: list(ff.map(as_they_are, list(items), run=run, engine="serial", chunk=10))


def a_run_with_another_key(run, mark, monkeypatch):
    monkeypatch.setenv("FOURFOLD_KEY", "that of somebody else")
    record(run, [Bomb(mark)])()
    monkeypatch.delenv("FOURFOLD_KEY")
    return record(run, [Bomb(mark)]), "another key"


def a_run_with_another_key_under_our_name(run, mark, monkeypatch):
    again, _ = a_run_with_another_key(run, mark, monkeypatch)
    fact(run, "key", seal.load_key().name)
    return again, "values-0001.part .*where the values of items 0 to 0 should be"


def a_run_with_another_key_under_no_name(run, mark, monkeypatch):
    again, _ = a_run_with_another_key(run, mark, monkeypatch)
    with opened(run) as database:
        database.execute("delete from run where name = 'key'")
    return again, "values-0001.part .*where the values of items 0 to 0 should be"


def other_bytes_with_a_right_checksum(run, mark, monkeypatch):
    again = record(run)
    again()
    where = ValueWriterOfAStranger(run, 7).write(dump_by_name([Bomb(mark)] * 3), hashlib.blake2b())
    with opened(run) as database:
        changed = "update value set part = ?, offset = ?, length_bytes = ?, checksum = ?"
        assert database.execute(changed, where[:4]).rowcount == 1
    return again, "values-0007.part .*where the values of items 0 to 2 should be"


def no_seal_at_all(run, mark, monkeypatch):
    again, said = other_bytes_with_a_right_checksum(run, mark, monkeypatch)
    with opened(run) as database:
        database.execute("update value set seal = null")
    return again, said


def a_parcel_of_another_run(run, mark, monkeypatch):
    again = record(run)
    again()
    record(run.parent / "other", [Bomb(mark), 2, 3])()
    shutil.copy(run.parent / "other" / "values-0001.part", run / "values-0001.part")
    with opened(run) as database:
        database.execute("attach ? as other", (str(run.parent / "other" / "journal.sqlite"),))
        database.execute("delete from value")
        assert database.execute("insert into value select * from other.value").rowcount == 1
        database.execute("update part set synced_bytes = 0")
    return again, "values-0001.part .*where the values of items 0 to 2 should be"


def a_parcel_of_other_items(run, mark, monkeypatch):
    again = lambda: list(ff.map(as_they_are, [1, Bomb(mark)], run=run, engine="serial", chunk=1))[:1]  # noqa: E731
    ff.map(as_they_are, [1, Bomb(mark)], run=run, engine="serial", chunk=1)
    with opened(run) as database:
        rows = database.execute("select part, offset, length_bytes, checksum, seal from value order by id").fetchall()
        assert len(rows) == 2
        database.execute(
            "update value set part = ?, offset = ?, length_bytes = ?, checksum = ?, seal = ? where id = 1", rows[1]
        )
    return again, "values-0001.part .*where the values of items 0 to 0 should be"


def an_item_in_the_place_of_an_exception(run, mark, monkeypatch):
    items = [pickle.dumps(Bomb(mark))]  # bytes that the user's function looks at, and nobody unpickles
    again = lambda: ff.map(refuses_bytes, items, run=run, engine="serial", on_error="collect")  # noqa: E731
    again()
    with opened(run) as database:
        database.execute("update failure set error = value")
        database.execute("update value set what = ?", (seal.ERROR,))
    return again, "values-0001.part .*where the failure of item 0 should be"


def another_function(run, mark, monkeypatch):
    ff.map(int, ["1", "x"], run=run, engine="serial", on_error="skip")
    (run / "program.pickle").write_bytes(pickle.dumps(Bomb(mark)))
    return replayed(run, 1), "program.pickle .*where the function of the run should be"


def another_item(run, mark, monkeypatch):
    ff.map(int, ["1", "x"], run=run, engine="serial", on_error="skip")
    where = ValueWriterOfAStranger(run, 7).write(dump(Bomb(mark)), hashlib.blake2b())
    with opened(run) as database:
        changed = "update value set part = ?, offset = ?, length_bytes = ?, checksum = ?"
        database.execute(changed, where[:4])
    return replayed(run, 1), "values-0007.part .*where item 1 should be"


def another_import_path(run, mark, monkeypatch):
    (run.parent / "evil").mkdir()
    (run.parent / "evil" / "plugin_of_a_test.py").write_text("class Item: pass\n")
    monkeypatch.syspath_prepend(run.parent / "evil")
    import plugin_of_a_test

    ff.map(int, ["1", plugin_of_a_test.Item()], run=run, engine="serial", on_error="skip")
    del sys.modules["plugin_of_a_test"]
    (run.parent / "evil" / "plugin_of_a_test.py").write_text(f"import os; os.mkdir({str(mark)!r})\nclass Item: pass\n")
    shutil.rmtree(run.parent / "evil" / "__pycache__", ignore_errors=True)
    fact(run, "path", [str(run.parent / "evil"), *sys.path])
    return replayed(run, 1), "journal.sqlite .*where the command of the run should be"


class ValueWriterOfAStranger(ValueWriter):
    def write(self, parcel, seal):
        where = super().write(parcel, seal)
        self.flush()
        self.close()
        return where


def replayed(run, item):
    def again():
        folder, path = os.getcwd(), [*sys.path]
        try:
            prepare_replay(str(run), item)
        except JournalCorrupt:  # what a bomb leaves is no function
            pass
        finally:
            os.chdir(folder)
            sys.path[:] = path

    return again


CRAFTED = [
    a_run_with_another_key,
    a_run_with_another_key_under_our_name,
    a_run_with_another_key_under_no_name,
    other_bytes_with_a_right_checksum,
    no_seal_at_all,
    a_parcel_of_another_run,
    a_parcel_of_other_items,
    an_item_in_the_place_of_an_exception,
    another_function,
    another_item,
    another_import_path,
]


@pytest.mark.parametrize("craft", CRAFTED, ids=lambda craft: craft.__name__)
def test_what_our_drivers_have_not_sealed_is_refused_and_not_unpickled(run, mark, monkeypatch, craft):
    again, said = craft(run, mark, monkeypatch)
    with pytest.raises(UntrustedRun, match=said):
        again()
    assert not mark.exists()
    # That it is a bomb: the user's word disarms the refusal, by itself it unpickles nothing.
    upkeep.trust(run)
    assert not mark.exists()
    with contextlib.suppress(Exception):
        again()
    assert mark.exists()


def test_the_command_of_a_run_that_was_changed_is_not_run(run):
    record(run)()
    check_command(run, seal.load_key())
    for name, value in {"command": ["rm"], "folder": "/", "path": ["/tmp"]}.items():
        before = getattr(story_of(run), "working_folder" if name == "folder" else name)
        fact(run, name, value)
        with pytest.raises(UntrustedRun, match="where the command of the run should be"):
            check_command(run, seal.load_key())
        fact(run, name, before)
    check_command(run, seal.load_key())


# ---- the user's word


@pytest.fixture
def from_elsewhere(run, monkeypatch):
    """A run with three values and a failure, recorded with another key."""
    monkeypatch.setenv("FOURFOLD_KEY", "that of my other machine")
    ff.map(int, ["1", "2", "x", "4"], run=run, engine="serial", on_error="collect", chunk=2)
    monkeypatch.delenv("FOURFOLD_KEY")
    return run


def test_a_run_that_is_trusted_goes_on_with_the_values_that_it_had(from_elsewhere):
    options = {"run": from_elsewhere, "engine": "serial", "on_error": "collect"}
    with pytest.raises(
        UntrustedRun, match=r"another user, machine or home folder.*fourfold show .*fourfold trust .*FOURFOLD_KEY"
    ):
        ff.map(int, ["1", "2", "x", "4"], **options)
    before = {path.name: path.read_bytes() for path in from_elsewhere.glob("*.p*")}
    first, second = upkeep.trust(from_elsewhere), upkeep.trust(from_elsewhere)
    assert first == second
    assert first[1] == seal.load_key().name
    assert {path.name: path.read_bytes() for path in from_elsewhere.glob("*.p*")} == before
    results = ff.map(int, ["1", "2", "x", "4"], **options)
    assert [results[0], results[1], results[3]] == [1, 2, 4]
    assert isinstance(results[2].error, ValueError)
    assert results.report.n_recorded == 4
    run_item, _, _ = prepare_replay(str(from_elsewhere), 2)
    with pytest.raises(ValueError, match="invalid literal"):
        run_item()


def test_a_run_that_is_damaged_is_not_sealed(from_elsewhere):
    path = from_elsewhere / "values-0001.part"
    data = bytearray(path.read_bytes())
    data[-3] ^= 4
    path.write_bytes(data)
    with pytest.raises(JournalCorrupt, match="the checksum is wrong"):
        upkeep.trust(from_elsewhere)
    with pytest.raises(UntrustedRun, match="another key"):
        ff.map(int, ["1"], run=from_elsewhere)


def test_a_run_that_a_driver_works_on_is_not_sealed(run):
    stream = ff.imap(abs, range(10), run=run, engine="serial", chunk=1)
    next(stream)
    with pytest.raises(RunInUse):
        upkeep.trust(run)
    stream.close()


def test_a_run_that_others_may_write_to_is_not_sealed(from_elsewhere):
    os.chmod(from_elsewhere / "journal.sqlite", 0o620)
    with pytest.raises(UntrustedRun, match="others may write"):
        upkeep.trust(from_elsewhere)


def fails_first(item):
    raise ValueError("the first")


def fails_second(item):
    raise ValueError("the second")


def test_changes_that_are_accepted_bring_the_replay_their_function_when_they_begin(run):
    options = {"run": run, "engine": "serial", "on_error": "skip"}

    def replay():
        run_item, _, _ = prepare_replay(str(run), 1)
        with pytest.raises(ValueError, match="the") as caught:
            run_item()
        return str(caught.value)

    ff.map(fails_first, [0, 1], **options)
    assert replay() == "the first"
    upkeep.change(run, accept_changes=True)
    ff.imap(fails_second, [0, 1], **options).close()  # it never began
    assert replay() == "the first"
    ff.map(fails_second, [0, 1], **options)
    assert replay() == "the second"


def test_an_older_run_is_not_taken_for_one_with_another_key(from_elsewhere):
    with opened(from_elsewhere) as database:
        database.execute("pragma user_version = 1")
    for read in (lambda: replayed(from_elsewhere, 2)(), lambda: check_command(from_elsewhere, seal.load_key())):
        with pytest.raises(JournalError, match="another version of fourfold") as caught:
            read()
        assert not isinstance(caught.value, UntrustedRun)
    with pytest.raises(JournalError, match="another version of fourfold"):
        upkeep.trust(from_elsewhere)


# ---- the key


def test_runs_can_be_looked_at_without_a_key(from_elsewhere, monkeypatch):
    monkeypatch.setenv("XDG_STATE_HOME", "/proc/self")
    assert story_of(from_elsewhere).n_done == 3
    assert [failed.item for failed in failures_of(from_elsewhere)] == [2]


def test_the_key_is_made_once_and_for_nobody_else(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "new" / "deep"))
    before = os.umask(0)
    try:
        name = seal.load_key().name
    finally:
        os.umask(before)
    assert seal.load_key().name == name
    modes = {path.relative_to(tmp_path): stat.S_IMODE(path.stat().st_mode) for path in tmp_path.rglob("*")}
    assert {str(path): mode for path, mode in modes.items()} == {
        "new": 0o700,
        "new/deep": 0o700,
        "new/deep/fourfold": 0o700,
        "new/deep/fourfold/key": 0o600,
    }
    assert seal.key_path().stat().st_size == 32


@pytest.mark.parametrize("code", ["EPERM", "ENOTSUP", "ENOSYS"])
def test_the_key_is_made_once_where_a_file_system_has_no_links(tmp_path, monkeypatch, code):
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    seams.set_faults(f"key.link:*:{code}")
    try:
        name = seal.load_key().name
    finally:
        seams.set_faults("")
    assert seal.load_key().name == name
    made = {path.name: (stat.S_IMODE(path.stat().st_mode), path.stat().st_size) for path in (tmp_path / "fourfold").iterdir()}
    assert made == {"key": (0o600, 32), ".key-lock": (0o600, 0)}


def test_the_key_is_below_the_home_when_nothing_else_is_said(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    for nothing in ("", "relative"):
        monkeypatch.setenv("XDG_STATE_HOME", nothing)
        assert seal.key_path() == tmp_path / ".local" / "state" / "fourfold" / "key"


def test_a_process_that_was_faster_has_made_the_key(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    theirs = []

    def link(*arguments, **options):
        theirs.append(subprocess.check_output([sys.executable, "-c", NAME], text=True).strip())
        monkeypatch.undo()
        monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
        os.link(*arguments, **options)

    monkeypatch.setattr("fourfold.runs.seal.os.link", link)
    assert [seal.load_key().name] == theirs
    assert os.listdir(tmp_path / "fourfold") == ["key"]


NAME = "from fourfold.runs.seal import load_key; print(load_key().name)"

AT_ONCE = """
    import os, sys
    from pathlib import Path
    from fourfold.runs import seal

    print("ready", flush=True)
    for line in sys.stdin:
        os.environ["XDG_STATE_HOME"] = line.strip()
        print(seal.load_key().name, flush=True)
"""


@pytest.mark.parametrize(
    ("faults", "n_rounds"), [("", 100), ("key.link:*:EPERM,key.rename:*:DELAY", 10)], ids=["links", "no links"]
)
def test_processes_that_make_the_key_at_once_agree(tmp_path, monkeypatch, faults, n_rounds):
    monkeypatch.setenv("FOURFOLD_FAULT", faults)
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    with started(AT_ONCE, folder=tmp_path / "a") as one, started(AT_ONCE, folder=tmp_path / "b") as two:
        assert (one.read_line(), two.read_line()) == ("ready", "ready")
        for number in range(n_rounds):
            for each in (one, two):
                each.process.stdin.write(f"{tmp_path / str(number)}\n")
                each.process.stdin.flush()
            assert one.read_line() == two.read_line()


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o620])
def test_a_key_that_others_can_read_or_write_is_refused(tmp_path, monkeypatch, mode):
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    seal.load_key()
    seal.key_path().chmod(mode)
    with pytest.raises(UntrustedRun, match=r"others may read or change .*key.*chmod go-rwx"):
        seal.load_key()


def test_a_folder_of_the_key_that_others_can_write_to_is_refused(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    seal.load_key()
    seal.key_path().parent.chmod(0o770)
    with pytest.raises(UntrustedRun, match=r"others may read or change .*fourfold"):
        seal.load_key()


@pytest.mark.parametrize("which", ["fourfold", "fourfold/key"])
def test_a_key_that_is_a_link_is_refused(tmp_path, monkeypatch, which):
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    seal.load_key()
    (tmp_path / which).rename(tmp_path / "moved")
    (tmp_path / which).symlink_to(tmp_path / "moved")
    with pytest.raises(UntrustedRun, match="is a link"):
        seal.load_key()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files away")
@pytest.mark.parametrize("which", ["fourfold", "fourfold/key"])
def test_a_key_of_somebody_else_is_refused(tmp_path, monkeypatch, which):
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    seal.load_key()
    os.chown(tmp_path / which, 12345, 12345)
    with pytest.raises(UntrustedRun, match="belongs to user 12345"):
        seal.load_key()


def test_a_key_that_was_cut_is_refused(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    seal.load_key()
    seal.key_path().write_bytes(b"short")
    with pytest.raises(JournalError, match="is not the key"):
        seal.load_key()


def test_where_no_key_can_be_kept_the_message_says_what_to_set_and_nothing_is_begun(run, monkeypatch):
    for nowhere in ("/proc/self", "/dev/null"):
        monkeypatch.setenv("XDG_STATE_HOME", nowhere)
        with pytest.raises(JournalError, match="set FOURFOLD_KEY to a long secret text"):
            ff.map(abs, [1], run=run)
    assert not run.exists()
    monkeypatch.setenv("FOURFOLD_KEY", "a text")
    assert ff.map(abs, [1], run=run) == [1]


def test_two_homes_with_the_same_text_share_their_runs(run, tmp_path, monkeypatch):
    monkeypatch.setenv("FOURFOLD_KEY", "caf\udce9 and more")
    for home in ("one", "two"):
        monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / home))
        results = ff.map(abs, range(5), run=run, engine="serial")
        assert results.report.n_recorded == (5 if home == "two" else 0)
    assert not (tmp_path / "one").exists()
    monkeypatch.setenv("FOURFOLD_KEY", "another")
    with pytest.raises(UntrustedRun, match="another key"):
        ff.map(abs, range(5), run=run)


def test_the_key_is_in_no_run_and_in_no_text(run, monkeypatch):
    monkeypatch.setenv("FOURFOLD_KEY", SECRET)
    record(run)()
    key = seal.load_key()
    assert repr(key) == f"<key {key.name}>"
    for path in run.iterdir():
        assert SECRET.encode() not in path.read_bytes()
        assert key._secret not in path.read_bytes()


@pytest.mark.alone
def test_a_seal_of_a_small_parcel_costs_less_than_three_microseconds():
    seals, data = seal.load_key().seals(bytes(16)), bytes(100)

    def cost():
        begin = time.perf_counter()
        for number in range(1000):
            each = seals.begin(seal.VALUES, number)
            each.update(data)
            each.digest()
        return (time.perf_counter() - begin) / 1000

    assert min(cost() for _ in range(20)) < 3e-6 * SCALE

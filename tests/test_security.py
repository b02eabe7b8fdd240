"""What others on the machine, or on the network, can see of a run: nothing. And what is never done with text.

That a run's folder is private is tested in test_journal.py. Outputs of `fourfold map` follow the user's umask on purpose: they are
the user's files, like those of any other program.
"""

import ast
import os
from pathlib import Path

import psutil
import pytest
from running import run_script, started, until

import fourfold as ff

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


WATCHED = """
    import sys

    seen, words = [], "socket.connect socket.bind socket.getaddrinfo socket.gethostbyname socket.sendto urllib.Request".split()

    def hook(event, arguments):
        if event in words or event.startswith(("http.", "ftplib.", "smtplib.")):
            seen.append((event, repr(arguments)))

    sys.addaudithook(hook)
    import fourfold as ff
    import fourfold.cli, fourfold.replay, fourfold.testing

    for engine in ("serial", "threads", "processes", "auto"):
        # A function that an item runs sees its own process.
        ff.map(abs, range(50), engine=engine, workers=2, run="run-" + engine)
    in_workers = ff.map(lambda x: (sys.addaudithook(hook), list(seen)) and list(seen), range(4), engine="processes", workers=2)
    print(seen, any(in_workers))
    MORE
"""


def test_neither_import_nor_runs_use_the_network(tmp_path):
    assert run_script(WATCHED.replace("MORE", ""), folder=tmp_path) == (0, "[] False\n", "", [])


def test_the_network_would_be_seen(tmp_path):
    more = 'import socket; socket.socket(socket.AF_INET, socket.SOCK_DGRAM).connect(("127.0.0.1", 9)); print(len(seen))'
    ended = run_script(WATCHED.replace("MORE", more), folder=tmp_path)
    assert ended.stdout == "[] False\n1\n"


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

"""Commands as somebody types them: each is a process, forked from one that has imported what all of them import.

    tests ──words, folder, environment, three files──> server ──fork──> as `python -m fourfold WORDS`
          <───────────────── exit code ─────────────────┘

To start Python and to import this is nine tenths of what a short command costs. That a command also starts by itself is seen by
tests that start it: in test_interrupts.py and test_progress.py, and one that compares both ways in test_cli.py.
"""

import contextlib
import gc
import importlib
import io
import json
import os
import runpy
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from fourfold.system import machine, seams

PATIENCE_S = 60.0
"""Seconds, times FOURFOLD_TIME_SCALE, that a command may take."""

PIPE_BYTES = 60_000
"""What a pipe takes while nobody reads it."""

_servers: list["Server"] = []


def fourfold(
    *words: str, stdin: str | None = None, cwd: Path | str = ".", **environment: str
) -> "subprocess.CompletedProcess[str]":
    """Run a command to its end: from the server, where `prompt` is used."""
    env = {**os.environ, **environment}
    if _servers and _settings(env) == _servers[-1].settings:
        return _servers[-1].run(words, stdin or "", str(cwd), env)
    command = [sys.executable, "-m", "fourfold", *words]
    return subprocess.run(
        command,
        input=stdin or "",
        cwd=cwd,
        env=env,
        capture_output=True,
        text=True,
        timeout=PATIENCE_S * _scale(),
        check=False,
    )


@contextlib.contextmanager
def served(*modules: str) -> Iterator[None]:
    """Commands are forked in this block, from a process that has imported these modules, too: libraries of tables take seconds."""
    server = Server(modules)
    _servers.append(server)
    try:
        yield
    finally:
        _servers.remove(server)
        server.close()


class Server:
    """The process whose forks are commands."""

    def __init__(self, modules: Sequence[str]) -> None:
        self.settings = _settings(dict(os.environ))
        self._end, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            command = [sys.executable, __file__, str(theirs.fileno()), *modules]
            self._process = subprocess.Popen(command, stdin=subprocess.DEVNULL, pass_fds=[theirs.fileno()])

    def run(self, words: tuple[str, ...], stdin: str, folder: str, environment: dict[str, str]) -> Any:
        typed = stdin.encode()
        assert len(typed) <= PIPE_BYTES
        with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
            read, write = os.pipe()
            with open(read, "rb") as source, open(write, "wb") as sink:
                sink.write(typed)
                order = json.dumps([words, os.path.abspath(folder), environment]).encode()
                socket.send_fds(self._end, [order], [source.fileno(), out.fileno(), err.fileno()])
            code = self._answer(words)
            return subprocess.CompletedProcess(["fourfold", *words], code, _text(out), _text(err))

    def _answer(self, words: tuple[str, ...]) -> int:
        self._end.settimeout(PATIENCE_S * _scale())
        try:
            return int(self._end.recv(16))
        except TimeoutError:
            self.close()
            raise AssertionError(f"fourfold {' '.join(words)} has not ended in {PATIENCE_S:g} s") from None

    def close(self) -> None:
        """End it, and the command that it still waits for."""
        import psutil

        with contextlib.suppress(psutil.Error):
            for each in psutil.Process(self._process.pid).children(recursive=True):
                each.kill()
        self._end.close()
        self._process.wait()


def _text(file: Any) -> str:
    file.seek(0)
    return io.TextIOWrapper(io.BytesIO(file.read())).read()


def _scale() -> float:
    return float(os.environ.get("FOURFOLD_TIME_SCALE", "1"))


def _settings(environment: dict[str, str]) -> dict[str, str]:
    """What is read when a program starts, and a fork does not read; but see `_become`."""
    read_at_start = ("PYTHON", seams.VARIABLE)
    return {name: value for name, value in environment.items() if name.startswith(read_at_start) and name != NO_CACHE}


# ---- in the server

NO_CACHE = "PYTHONDONTWRITEBYTECODE"


def _serve(end: socket.socket, modules: Sequence[str]) -> None:
    """Fork a command for each order until nobody can send one any more."""
    from fourfold.cli import app

    with contextlib.suppress(SystemExit), contextlib.redirect_stderr(io.StringIO()):
        app(["runs", "/no/such/folder"])  # imports what is imported by any command
    for module in modules:
        importlib.import_module(module)
    gc.freeze()  # to look for garbage among these at its end a command would copy them all: that took longer than short commands
    while True:
        order, fds, _, _ = socket.recv_fds(end, 1 << 20, 3)
        if not order:
            return
        pid = os.fork()
        if pid == 0:
            end.close()
            _become(fds, *json.loads(order))
            runpy.run_module("fourfold", run_name="__main__", alter_sys=True)
            return
        for fd in fds:
            os.close(fd)
        end.send(str(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])).encode())


def _become(fds: list[int], words: list[str], folder: str, environment: dict[str, str]) -> None:
    """Be as a Python that was started with these."""
    for at, fd in enumerate(fds):
        os.dup2(fd, at)
        os.close(fd)
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(environment)
    sys.dont_write_bytecode = bool(environment.get(NO_CACHE))
    sys.path[0] = machine.STARTED_IN = folder
    sys.argv[1:] = words
    sys.orig_argv[:] = [sys.executable, "-m", "fourfold", *words]


if __name__ == "__main__":
    _serve(socket.socket(fileno=int(sys.argv[1])), sys.argv[2:])

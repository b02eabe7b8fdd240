"""Who writes an output in a store, which has no locks: a small file says so, until the output is there."""

import json
import os
import socket
from pathlib import Path
from typing import Any, NamedTuple

from fourfold.runs.story import may_go_on


class Writer(NamedTuple):
    """The driver of an output.

    Attributes:
        machine: Where it runs: processes of another machine, or of another container, cannot be looked at.
        pid, began: The process, and since when it is there: numbers of processes are used again.
        run: The folder of the recorded run that goes on with the output, None when there is none.
    """

    machine: str
    pid: int
    began: int
    run: str | None

    @classmethod
    def read(cls, fs: Any, path: str) -> "Writer | None":
        """The writer that a file tells of; None when there is none, or it says something else."""
        try:
            return cls(**json.loads(fs.cat_file(path)))
        except (OSError, ValueError, TypeError):
            return None

    def is_this_process(self) -> bool:
        """Whether it is the process that asks."""
        return self[:3] == writer_of_this_process(None)[:3]

    def is_here(self) -> bool:
        """Whether its processes can be looked at from here."""
        return self.machine == _machine()

    def is_alive(self) -> bool:
        """Whether its process is there. Of another machine nobody knows: False."""
        return self.is_here() and _began(self.pid) == self.began != -1

    def is_dead(self) -> bool:
        """Whether its process is gone. Of another machine, and where the kernel keeps no count, nobody knows: False."""
        return self.is_here() and self.began != -1 and _began(self.pid) != self.began

    def will_go_on(self) -> bool:
        """Whether a run is recorded here that can go on with the output."""
        return self.run is not None and may_go_on(Path(self.run))


def writer_of_this_process(run: str | None) -> Writer:
    """This process, as the writer of an output."""
    return Writer(_machine(), os.getpid(), _began(os.getpid()), None if run is None else os.path.abspath(run))


def _machine() -> str:
    """This machine since it was started, and the space of its process numbers: containers have their own."""
    try:
        boot, space = Path("/proc/sys/kernel/random/boot_id").read_text().strip(), os.stat("/proc/self/ns/pid").st_ino
    except OSError:
        return socket.gethostname()
    return f"{socket.gethostname()} {boot} {space}"


def _began(pid: int) -> int:
    """Since when a process is there, in the kernel's count; -1 when it is not, or has ended."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text(errors="replace").rpartition(")")[2].split()
    except OSError:
        return -1
    return -1 if fields[0] in "ZX" else int(fields[19])

"""A gang: processes that talk to each other. All start or none runs; when one fails, all end, and may start again together.

launching.py     launch: checks what is asked for, starts the gang, and again after a failure
crew.py          the ranks of this machine: started, watched, stopped together
member.py        a rank's own process: its function, and what came of it
guard.py         ends the ranks when nobody else is left to do it
logs.py          what a rank prints: into its file, onto the terminal, and the end of it for errors
ends.py          how a rank ended; whose failure was the first; the error that says so
places.py        addresses, ports, and the variables that each rank gets
checkpoints.py   what is kept for the next start
away.py          a rank in a task of somebody else's cluster
"""

from typing import TYPE_CHECKING, Any

__all__ = ["checkpoint", "launch", "launch_script", "restore"]

if TYPE_CHECKING:
    from fourfold.patterns.gang.checkpoints import checkpoint, restore
    from fourfold.patterns.gang.launching import launch, launch_script


def __getattr__(name: str) -> Any:
    """Import a name when it is first used: ranks and their guard, which need none of them, start sooner."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    import importlib

    where = "launching" if name.startswith("launch") else "checkpoints"
    return getattr(importlib.import_module(f"{__name__}.{where}"), name)

"""Which variables of the environment the worker processes of this machine get: all of the driver's, or those in FOURFOLD_ENV.

FOURFOLD_ENV="HF_HOME,AWS_*"      these two, and what is NEEDED
"""

import os

from fourfold.errors import OptionError
from fourfold.system.machine import THREAD_VARIABLES

VARIABLE = "FOURFOLD_ENV"

NEEDED = (
    "PATH",
    "HOME",
    "LANG",
    "LC_*",
    "TZ",
    "TMPDIR",
    "VIRTUAL_ENV",
    "LD_LIBRARY_PATH",
    "PYTHON*",
    "FOURFOLD_*",
    "CUDA_VISIBLE_DEVICES",
    *THREAD_VARIABLES,
)
"""What Python, numerical libraries and fourfold itself look for. The key that seals recorded runs is none of it."""

_SECRET = "FOURFOLD_KEY"


def allowed() -> tuple[str, ...] | None:
    """The names in FOURFOLD_ENV, in which a * at the end stands for any rest; None when workers get everything.

    Raises:
        OptionError: One of them is no name.
    """
    text = os.environ.get(VARIABLE)
    if not text:
        return None
    names = [name.strip() for name in text.split(",")]
    for name in names:
        if not name.removesuffix("*").isidentifier():
            raise OptionError(
                f"the environment has {VARIABLE}={text!r}: {name!r} is not the name of a variable, nor the beginning of some "
                "with a * behind it. Separate them by commas, such as HF_HOME,AWS_*"
            )
    return tuple(names)


def for_workers() -> dict[str, str]:
    """The variables that worker processes of this machine get.

    Raises:
        OptionError: FOURFOLD_ENV cannot be used.
    """
    names = allowed()
    if names is None:
        return dict(os.environ)
    needed = {name for name in os.environ if name != _SECRET and _is_in(name, NEEDED)}
    return {name: value for name, value in os.environ.items() if name in needed or _is_in(name, names)}


def _is_in(name: str, patterns: tuple[str, ...]) -> bool:
    return any(name.startswith(each[:-1]) if each.endswith("*") else name == each for each in patterns)

"""Starting a Ray of this machine, below a keeper: at 127.0.0.1 only, and for who has the user's token only."""

import contextlib
import os
from collections.abc import Callable, Iterator
from typing import Any

from fourfold.distribute.engines.on_ray import library

SET_BY_RAY = ("RAY_AUTH_MODE", "PYTHONBREAKPOINT")
"""Variables of the environment that Ray sets in the process that connects, or that are set for it here."""

UNUSED = ("start_monitor", "start_log_monitor", "start_api_server")
"""What starts three processes that nobody asks in a Ray of one machine and one program: for machines that come and go, for
lines of log files, which come another way, and for pages. They take a third of the processor time of a start: 10.5 s, and
6.8 s without them, on two busy cores with Ray 2.60. One is started all the same where Ray has another name for it."""


def start_here(count: int) -> tuple[str, Callable[[], None]]:
    """Start a Ray of this machine; returns its address, and what ends it. Called in a keeper.

    It listens at 127.0.0.1 only, as Ray does where it supports no clusters: its own option for the address does not take that.
    """
    os.environ["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] = "0"  # read when Ray is imported, by each of its processes
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    ray = library.ray()
    for name in UNUSED:
        if hasattr(ray._private.node.Node, name):
            setattr(ray._private.node.Node, name, lambda self, *given, **named: None)
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)  # Ray greets; what its processes say is in its own files
    options: dict[str, Any] = {"log_to_driver": False, "configure_logging": False, "include_dashboard": False}
    ray.init(address="local", num_cpus=count, **options)
    return str(ray.get_runtime_context().gcs_address), ray.shutdown


def ask_for_tokens(ray: Any) -> bool:
    """Only who has the user's token may use the Ray that is about to start, as when Ray starts one in this process.

    Returns:
        Whether Ray was told to read that. It remembers it when the environment says something else again.
    """
    if "RAY_AUTH_MODE" in os.environ:
        return False
    os.environ["RAY_AUTH_MODE"] = "token"
    with contextlib.suppress(AttributeError):  # an older Ray has neither tokens nor this
        ray._raylet.Config.initialize("")
        return True
    return False


@contextlib.contextmanager
def on_loopback(ray: Any) -> Iterator[None]:
    """Connect to 127.0.0.1: where Ray supports clusters, it takes that for another name of this machine's own address."""
    constants = ray._private.ray_constants
    before = constants.ENABLE_RAY_CLUSTER
    constants.ENABLE_RAY_CLUSTER = False
    try:
        yield
    finally:
        constants.ENABLE_RAY_CLUSTER = before

"""Starting a Dask cluster of this machine, below a keeper."""

from collections.abc import Callable
from typing import Any

FOR_GOOD = "1000 days"
"""The time after the loss of a worker at which Dask looks whether another one is there in its place, and lets go of the place
for good when it is not: at 15 s, its default, that may be the moment in which a later one is lost. Here what keeps a place is
this process, and as long as it lives it fills the place again."""


def start_here(count: int) -> tuple[str, Callable[[], None]]:
    """Start a Dask cluster of this machine; returns its scheduler's address, and what ends it. Called in a keeper."""
    import logging

    import dask
    import distributed as untyped

    distributed: Any = untyped
    # Each of its processes has a server of web pages, also without a dashboard. It cannot be left out, but it need not tell.
    quiet: dict[str, Any] = {"distributed.scheduler.http.routes": [], "distributed.worker.http.routes": []}
    dask.config.set(quiet | {"distributed.deploy.lost-worker-timeout": FOR_GOOD})
    options = {"host": "127.0.0.1", "threads_per_worker": 1, "dashboard_address": None, "silence_logs": logging.CRITICAL}
    cluster = distributed.LocalCluster(n_workers=count, **options)
    return str(cluster.scheduler_address), cluster.close

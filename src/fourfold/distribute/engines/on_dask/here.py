"""Starting a Dask cluster of this machine, below a keeper."""

from collections.abc import Callable
from typing import Any


def start_here(count: int) -> tuple[str, Callable[[], None]]:
    """Start a Dask cluster of this machine; returns its scheduler's address, and what ends it. Called in a keeper."""
    import logging

    import dask
    import distributed as untyped

    distributed: Any = untyped
    # Each of its processes has a server of web pages, also without a dashboard. It cannot be left out, but it need not tell.
    dask.config.set({"distributed.scheduler.http.routes": [], "distributed.worker.http.routes": []})
    options = {"host": "127.0.0.1", "threads_per_worker": 1, "dashboard_address": None, "silence_logs": logging.CRITICAL}
    cluster = distributed.LocalCluster(n_workers=count, **options)
    return str(cluster.scheduler_address), cluster.close

"""Dask as an engine: a ticket is a Dask task, and its items run in a worker process beside Dask's own.

    engine.py   tickets ──> task ──> outcomes
    cluster.py      a client of the scheduler, given or made
    here.py             └── or of a cluster of this machine, below a keeper
    task.py                     task ──> cargo.py ──> site.py
    stop.py     "end this order" ──> each worker ───────┘

Dask cannot stop a task that runs. Here it need not: the order is told to end, and the site ends it.
"""

from fourfold.distribute.engines.on_dask.engine import Dask

__all__ = ["Dask"]

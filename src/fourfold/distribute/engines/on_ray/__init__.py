"""Ray as an engine: a ticket is a Ray task, and its items run in a worker process beside Ray's own.

    engine.py   tickets ──> task ──> outcomes
    cluster.py      the Ray of this process, found or made ──> head.py   is it there still?
    here.py                                    └── one of this machine, below a keeper
    task.py                     task ──> cargo.py ──> site.py

Ray never runs a task again here (max_retries=0): a lost one comes back to the schedule, which decides.
"""

from fourfold.distribute.engines.on_ray.engine import Ray

__all__ = ["Ray"]

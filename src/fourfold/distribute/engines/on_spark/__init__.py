"""Spark as an engine, Classic and Connect by one code path: a ticket is a partition, and a job runs a bundle of them.

    engine.py   tickets ──> bundles.py ──> job ─┐              a thread of ours waits for each job
    session.py        range(n, numPartitions=n).mapInArrow(task) ──> rows ──> replies
    task.py                                         task ──> cargo.py ──> site.py

A job says what came of it at its end. So bundles are small, several are in flight, and while one has stragglers the next
fills their slots (Spark's own FIFO order). A job that Spark gives up is run again in halves.
"""

"""A gang as one barrier job: its tasks start all at once, and tell each other every second how they are.

No task fails when its rank does, for Spark would run the job again by itself: all hear of it at their next meeting, stop their
ranks, and answer.
"""

import contextlib
import pickle
import queue
import threading
import time
import uuid
from collections.abc import Callable, Mapping
from typing import Any

from fourfold.distribute.engines.on_spark.causes import cause_of
from fourfold.distribute.engines.on_spark.inherited import is_called_off, settings_of_this_thread
from fourfold.distribute.engines.on_spark.pulse import LOOK_S
from fourfold.distribute.engines.on_spark.session import Session
from fourfold.distribute.engines.on_spark.task import ROW_BYTES
from fourfold.errors import EngineError, GangLost, GangTimeout, UnsupportedOption
from fourfold.version import VERSION

MEET_S = 0.5
"""Seconds between meetings. Spark itself looks once a second. Shorter: more of its messages. Longer: others run on for longer
when one has failed."""

INTERRUPT_S = 0.2
"""Seconds between two tries to end the job. Not measured."""

CLOSE_S = 15.0
"""Seconds until a job that does not end is left to Spark."""


def check(session: Session, size: int) -> None:
    """Refuse a gang that this Spark can never start."""
    if session.adapts():
        raise UnsupportedOption(
            "this Spark has dynamic allocation, and starts no tasks all at once: set spark.dynamicAllocation.enabled=false "
            'where its session is made, or use engine="processes" for this machine'
        )
    session.look_again()
    slots = session.slots()
    if size > slots:
        raise EngineError(
            f"world_size={size} is more than the {slots} tasks that this Spark runs at once: take a smaller one, or start "
            "Spark with more cores"
        )


def run(
    session: Session, member: str, arguments: Mapping[str, Any], size: int, deadline: float | None
) -> list[tuple[Any, ...]]:
    """Run the job, on a thread: this one waits for it, and can be interrupted."""
    tag = f"fourfold-gang-{uuid.uuid4().hex}"
    place = session.store(pickle.dumps(dict(arguments)), tag)
    task = make_task(session.orders.entry, VERSION, session.cargo_name, session.cargo, place, member, size)
    answers: queue.SimpleQueue[tuple[list[Any], Exception | None]] = queue.SimpleQueue()

    set_there = settings_of_this_thread(session.spark)

    def work() -> None:
        set_there()
        try:
            answers.put((session.run_barrier_job(tag, task, size), None))
        except Exception as error:
            answers.put(([], error))

    thread = threading.Thread(target=work, name="fourfold-spark-gang", daemon=True)
    thread.start()
    try:
        return _await(session, tag, answers, size, deadline)
    except BaseException:
        until = time.monotonic() + CLOSE_S
        while thread.is_alive() and time.monotonic() < until and not session.down:
            session.interrupt(tag)
            thread.join(INTERRUPT_S)
        raise
    finally:
        session.free(place)


def _await(
    session: Session, tag: str, answers: "queue.SimpleQueue[Any]", size: int, deadline: float | None
) -> list[tuple[Any, ...]]:
    while True:
        left_s = LOOK_S if deadline is None else min(LOOK_S, deadline - time.monotonic())
        if left_s <= 0:
            raise GangTimeout(f"the job of {size} ranks on Spark had not ended in time")
        with contextlib.suppress(queue.Empty):
            found, error = answers.get(timeout=left_s)
            if error is None:
                return [tuple(each) for each in found]
            reason, host = cause_of(error)
            if not session.is_down(error) and is_called_off(error):
                raise EngineError(f"the Spark job of the gang was cancelled: {reason}") from error
            raise GangLost(f"Spark gave the gang up: {reason}{f' (on {host})' if host else ''}") from error
        if session.begins_again(tag):
            raise GangLost("Spark has lost a task of the gang, or the machine that it was on")
        if session.pulse is not None and (why := session.pulse.look()):
            session.down = f"Spark is gone: {why}"
            raise GangLost(session.down)


def make_task(
    entry: Callable[..., Any], version: str, cargo_name: str, cargo: Any, place: Any, member: str, size: int
) -> Callable[..., Any]:
    """Return the function of the job, for `mapInArrow`. It travels by value: fourfold need not be there."""
    row_bytes, meet_s = ROW_BYTES, MEET_S

    def fourfold_rank(batches: Any) -> Any:
        import importlib
        import json
        import pickle

        import pyarrow
        from pyspark import BarrierTaskContext, SparkFiles

        def take(stored: Any) -> Any:
            if not isinstance(stored, str):
                return stored.value
            with open(SparkFiles.get(stored), "rb") as file:
                return file.read()

        context = BarrierTaskContext.get()
        for batch in batches:
            for i in batch.column(0).to_pylist():
                entry(version, cargo_name, lambda: take(cargo))
                module, _, name = member.partition(":")
                rank = getattr(importlib.import_module(module), name)(rank=i, **pickle.loads(take(place)))
                try:
                    address = context.getTaskInfos()[i].address.rpartition(":")[0]
                    places = [tuple(json.loads(each)) for each in context.allGather(json.dumps(rank.place(address)))]
                    state = rank.start(places)
                    if "failed" not in context.allGather(state):
                        rank.go()
                        states = ["runs"]
                        while "runs" in states and "failed" not in states:
                            states = context.allGather(rank.wait(meet_s))
                finally:
                    end = rank.end()
                data = memoryview(pickle.dumps(end, protocol=5))
                for start in range(0, len(data), row_bytes):
                    piece = data[start : start + row_bytes].tobytes()
                    columns = [pyarrow.array([i], pyarrow.int32()), pyarrow.array([piece])]
                    yield pyarrow.RecordBatch.from_arrays(columns, names=["i", "data"])

    return fourfold_rank

"""What runs in a task of Spark. It travels by value: fourfold need not be there."""

from collections.abc import Callable
from typing import Any

ROW_BYTES = 1 << 20
"""Bytes of a row. Larger: Connect stacks rows up to the message size of its server, 4 MiB as it comes. Smaller: more rows."""

SCHEMA = "i int, data binary"
"""Of the rows that come back: the number of a ticket in its job, and a piece of its pickled answer."""


def make_task(entry: Callable[..., Any], version: str) -> Callable[..., Any]:
    """Return what makes the function of a job, for `mapInArrow`."""
    row_bytes = ROW_BYTES

    def with_work(work: list[Any], cargo_name: str, cargo: Any) -> Callable[..., Any]:
        def fourfold_bundle(batches: Any) -> Any:
            import gc
            import os
            import pickle
            import time

            import pyarrow
            from pyspark import SparkFiles, TaskContext

            def take(place: Any) -> Any:
                if not isinstance(place, str):
                    return place.value
                with open(SparkFiles.get(place), "rb") as file:
                    return file.read()

            def answer(i: int) -> Any:
                if work[i] is None:
                    return entry(version, "", None)
                order, payload, program, idempotent = work[i]
                if not idempotent and context is not None and context.attemptNumber():
                    return {"kind": 3, "reason": "Spark lost its first attempt, or took it for slow"}
                if not isinstance(payload, tuple):
                    payload = pickle.loads(take(payload))
                return entry(version, cargo_name, lambda: take(cargo), order, payload, lambda: pickle.loads(take(program)))

            context = TaskContext.get()
            gpus = context.resources().get("gpu") if context is not None else None
            devices = os.environ.get("CUDA_VISIBLE_DEVICES")
            if gpus is not None:
                os.environ["CUDA_VISIBLE_DEVICES"] = ",".join(gpus.addresses)
            try:
                for batch in batches:
                    for i in batch.column(0).to_pylist():
                        begin = time.perf_counter()
                        reply = answer(i)
                        data = memoryview(pickle.dumps((time.perf_counter() - begin, reply), protocol=5))
                        for start in range(0, len(data), row_bytes):
                            piece = data[start : start + row_bytes].tobytes()
                            columns = [pyarrow.array([i], pyarrow.int32()), pyarrow.array([piece])]
                            yield pyarrow.RecordBatch.from_arrays(columns, names=["i", "data"])
            finally:  # the process may run a task of somebody else next
                if not gc.get_freeze_count():
                    # Its daemon collects garbage after each task, among all that was ever imported: 40 ms, once is enough.
                    gc.collect()
                    gc.freeze()
                if gpus is not None and devices is None:
                    os.environ.pop("CUDA_VISIBLE_DEVICES", None)
                elif gpus is not None and devices is not None:
                    os.environ["CUDA_VISIBLE_DEVICES"] = devices

        return fourfold_bundle

    return with_work

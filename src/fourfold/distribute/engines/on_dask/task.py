"""What runs in a task of Dask. It travels by value: fourfold need not be there."""

from collections.abc import Callable
from typing import Any

MOST_OF_MEMORY = 0.9
"""Share of a worker's memory that it may have with a result: at 0.95 Dask ends it. Smaller: results are refused that would
have come. Larger: a worker is lost instead, with what it holds."""


def make_task(entry: Callable[..., Any]) -> Callable[..., Any]:
    """Return the function of a task, for `client.submit`."""
    most_share = MOST_OF_MEMORY

    def fourfold_chunk(version: str, cargo: str, cargo_bytes: Any, *work: Any) -> Any:
        if not work:
            return entry(version, cargo, None)
        order, payload, program = work
        reply = entry(version, cargo, lambda: cargo_bytes, order, payload, lambda: program)
        if isinstance(reply, str) or reply["data"] is None:
            return reply
        import distributed

        worker = distributed.get_worker()
        limit, size = worker.memory_manager.memory_limit, sum(memoryview(part).nbytes for part in reply["data"])
        # It is here twice, as it came and as it goes. Dask ends a worker that is too large, and all that it holds is lost.
        # A small one makes no difference: then something else fills the worker.
        needs, has = 2 * size, worker.monitor.get_process_memory()
        if limit and needs > (1 - most_share) * limit and has + needs > most_share * limit:
            reason = (
                f"its result of {size >> 20} MiB does not fit into the memory of a Dask worker, of {int(limit) >> 20} MiB: "
                "let items return less, or start workers with a larger --memory-limit"
            )
            return {**reply, "kind": 3, "data": None, "running": None, "reason": reason}
        # Dask pickles some results by protocol 4, which has no buffers.
        return {**reply, "data": tuple(bytes(memoryview(part)) for part in reply["data"])}

    return fourfold_chunk

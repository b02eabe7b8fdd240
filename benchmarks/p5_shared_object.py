"""P5: a closure over an array of 400 MB; 64 calls each sum a slice of it.

fourfold takes the closure as it is. joblib takes the array as an argument, its best way: it writes large
arguments to memory-mapped files. In every lap the array is a new object to its contestant (a new view), so
that nobody serves it from the lap before; "the same object again" shows what a second call costs.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import numpy as np
import work
from fourfolds import fourfold, start_workers
from fresh import fresh_lap, in_fresh_process
from measure import Contestant, Lap, loop, race, timed, usable_cores
from peers import opened
from rows import FOURFOLD, LOOP, Row, against_the_best_peer, without_figure

import fourfold as ff

BAR = 0.5
PRIVATE_BAR = 0.05
PARTS = 64
LENGTH = 50_000_000  # float64: 400 MB

# Seconds that an item of the memory case rests, so that every worker takes part. Smaller: one worker may take
# all.
REST_S = 0.02


def closure_over(array: np.ndarray) -> Callable[[int], float]:
    """The function as a user writes it: the array is simply there."""

    def sum_part(part: int) -> float:
        return work.sum_slice(array, part, PARTS)

    return sum_part


def rows(rounds: int, is_quick: bool) -> list[Row]:
    """Warm, cold, again with the same object, with Ray and Dask, and the private memory of the workers."""
    length, workers = (LENGTH // 10 if is_quick else LENGTH), usable_cores()
    array = np.arange(length, dtype=np.float64)
    label = f"{PARTS} calls share {array.nbytes / 1e6:g} MB"
    with opened(workers, ["joblib"]):
        warm = _warm(label, array, workers, rounds)
    return [
        *warm,
        _cold(label, length, workers, rounds),
        *_with_restless(label, array, workers),
        _memory(length, workers),
    ]


def _warm(label: str, array: np.ndarray, workers: int, rounds: int) -> list[Row]:
    start_workers(workers)
    options = {"engine": "processes", "workers": workers}
    kept = closure_over(array)
    contestants = [
        _loop_over(array),
        Contestant(FOURFOLD, {"": lambda: timed(lambda: ff.map(closure_over(array.view()), range(PARTS), **options))}),
        Contestant("joblib", {"": lambda: timed(lambda: _joblib_sums(array.view(), workers))}),
        fourfold(kept, range(PARTS), name="fourfold, same object", **options),
        Contestant("joblib, same object", {"": lambda: timed(lambda: _joblib_sums(array, workers))}),
    ]
    result = race(contestants, rounds)
    same = against_the_best_peer(
        "P5",
        f"{label}, the same object again",
        result,
        ["joblib, same object"],
        None,
        "fourfold, same object",
    )
    return [against_the_best_peer("P5", f"{label}, warm", result, ["joblib"], BAR), same]


def _loop_over(array: np.ndarray) -> Contestant:
    return Contestant(LOOP, {"": lambda: timed(lambda: loop(closure_over(array), range(PARTS)))})


def _joblib_sums(array: np.ndarray, workers: int) -> list[float]:
    import joblib

    calls = (joblib.delayed(work.sum_slice)(array, part, PARTS) for part in range(PARTS))
    return joblib.Parallel(n_jobs=workers)(calls)


def _cold(label: str, length: int, workers: int, rounds: int) -> Row:
    def cold_lap(name: str) -> Contestant:
        call = fresh_lap("p5_shared_object", "cold", contestant=name, length=length, workers=workers)
        return Contestant(name, {"": call})

    result = race([cold_lap(LOOP), cold_lap(FOURFOLD), cold_lap("joblib")], rounds, tries=0)
    return against_the_best_peer("P5", f"{label}, cold", result, ["joblib"], BAR)


def cold(contestant: str, length: int, workers: int) -> Lap:
    """One first call, in this fresh interpreter; what the contestant is imported before."""
    array = np.arange(length, dtype=np.float64)
    sum_part = closure_over(array)
    if contestant == LOOP:
        return timed(lambda: loop(sum_part, range(PARTS)))
    if contestant == "joblib":
        import joblib  # noqa: F401  (its import is not in the time, as fourfold's is not)

        return timed(lambda: _joblib_sums(array, workers))
    return timed(lambda: ff.map(sum_part, range(PARTS), engine="processes", workers=workers))


def _with_restless(label: str, array: np.ndarray, workers: int) -> list[Row]:
    ours = Contestant(
        FOURFOLD,
        {"": lambda: timed(lambda: ff.map(closure_over(array), range(PARTS), engine="processes", workers=workers))},
    )
    found = []
    for name, sums in {"Ray": _ray_sums, "Dask": _dask_sums}.items():
        with opened(workers, [name]):
            daemon = Contestant(name, {"": lambda sums=sums: timed(lambda: sums(array.view()))})
            result = race([_loop_over(array), ours, daemon], 2)
        found.append(against_the_best_peer("P5", f"{label}, {name} up", result, [name], None))
    return found


def _ray_sums(array: np.ndarray) -> list[float]:
    import ray

    shared = ray.put(array)
    sum_slice = ray.remote(work.sum_slice)
    return ray.get([sum_slice.remote(shared, part, PARTS) for part in range(PARTS)])


def _dask_sums(array: np.ndarray) -> list[float]:
    import distributed

    client = distributed.get_client()
    shared = client.scatter(array, broadcast=True, hash=False)
    return client.gather([client.submit(work.sum_slice, shared, part, PARTS, pure=False) for part in range(PARTS)])


def _memory(length: int, workers: int) -> Row:
    case = f"private memory of each worker, {length * 8 / 1e6:g} MB shared"
    try:
        growth = in_fresh_process("p5_shared_object", "private_growth", length=length, workers=workers)
    except Exception as exc:
        return without_figure("P5", case, str(exc))
    worst = max(growth)
    note = f"{len(growth)} workers, grown by {', '.join(f'{share:.2%}' for share in growth)}"
    return Row("P5", case, worst, "of it", PRIVATE_BAR, len(growth) == workers and worst < PRIVATE_BAR, note=note)


def private_growth(length: int, workers: int) -> list[float]:
    """By worker: how much its private memory grows when it reads the shared array, as a share of the array.

    The same function over a small array first: what it imports is not counted. Every item reads a number of
    each page, because the kernel counts a page that one process alone has mapped as private, shared memory or
    not.
    """

    def look_into(array: np.ndarray) -> Callable[[int], tuple[int, int]]:
        def look(part: int) -> tuple[int, int]:
            time.sleep(REST_S)
            work.touch_every_page(array)
            work.sum_slice(array, part, PARTS)
            return work.private_bytes()

        return look

    def last_by_worker(array: np.ndarray) -> dict[int, int]:
        return dict(ff.map(look_into(array), range(PARTS), engine="processes", workers=workers, chunk=1))

    before = last_by_worker(np.zeros(PARTS))
    after = last_by_worker(np.arange(length, dtype=np.float64))
    least = min(before.values())
    return [(used - before.get(worker, least)) / (length * 8) for worker, used in after.items()]

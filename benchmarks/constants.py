"""Measures what the constants in the source stand on. Run it on a quiet machine; figures are medians.

python benchmarks/constants.py [messages|start|transport|blocks|looks]
"""

import statistics
import subprocess
import sys
import time
from collections.abc import Callable

import fourfold as ff
from fourfold.distribute.engines.on_processes.segments import Owner
from fourfold.execute.chunk import Program
from fourfold.records import Chunk, Parcel


def median_of(measure: Callable[[], float], rounds: int = 7) -> float:
    """Median of several rounds."""
    return statistics.median(measure() for _ in range(rounds))


def nothing(item: int) -> int:
    """The item that costs nothing."""
    return item


def messages() -> None:
    """MESSAGE_S: processor time of the driver per chunk, with chunks of one no-op item on two workers."""

    def once() -> float:
        began = time.process_time()
        ff.map(nothing, range(2000), engine="processes", workers=2, chunk=1)
        return (time.process_time() - began) / 2000

    once()
    print(f"messages   driver's processor time per chunk          {1e6 * median_of(once):8.1f} µs")


def start() -> None:
    """COLD_START_S, WARM_START_S: a first and a second call on processes, with one no-op item each."""
    code = (
        "import time, fourfold as ff\n"
        "for name in ('cold', 'warm'):\n"
        "    began = time.perf_counter()\n"
        "    ff.map(abs, [1], engine='processes', workers=2)\n"
        "    print(time.perf_counter() - began)\n"
    )

    def once() -> list[float]:
        out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
        return [float(line) for line in out.split()]

    runs = [once() for _ in range(7)]
    for number, name in enumerate(("cold", "warm")):
        print(f"start      a call on {name} workers               {1e3 * statistics.median(r[number] for r in runs):8.1f} ms")


def transport() -> None:
    """MOVE_BYTES_PER_S, INLINE_BYTES: copies into fresh and used shared memory, and arrays there and back."""
    parcel = Parcel(b"", (bytes(64 << 20),))
    size = parcel.size_bytes
    owner = Owner()

    def fresh() -> float:
        began = time.perf_counter()
        place, _ = owner.write(parcel, 0)
        elapsed = time.perf_counter() - began
        owner.abandon(place.segment)
        return elapsed

    def again() -> float:
        began = time.perf_counter()
        place, _ = owner.write(parcel, 0)
        elapsed = time.perf_counter() - began
        owner.release(place.segment)
        return elapsed

    for name, measure in (("fresh", fresh), ("used", again)):
        print(f"transport  copy into {name:5} shared memory               {size / median_of(measure) / 1e9:8.2f} GB/s")
    import numpy as np

    for size in (1 << 12, 1 << 14, 1 << 15, 1 << 16, 1 << 18, 1 << 20, 1 << 22):
        items = [np.ones(size // 8) for _ in range(32)]

        def both_ways(items: list[np.ndarray] = items) -> float:
            began = time.perf_counter()
            ff.map(nothing, items, engine="processes", workers=1, chunk=1)
            return (time.perf_counter() - began) / len(items)

        both_ways()
        each = median_of(both_ways, 5)
        print(
            f"transport  {size:8} bytes there and back, one worker  {1e6 * each:8.1f} µs   {2 * size / each / 1e9:6.2f} GB/s"
        )
    owner.close()


def blocks() -> None:
    """BLOCK_S: what marks, clocks and blocks cost over the bare `map`, by the time of an item."""

    class Cell:
        interruptible = False

        def mark(self, offset: int, count: int) -> None:
            """As the cheapest engine."""

        def stopped(self) -> bool:
            """Never."""
            return False

    def work(n: int) -> int:
        return sum(range(n))

    for n, size in ((0, 100_000), (100, 20_000), (5_000, 2_000), (100_000, 100)):
        items = [n] * size
        run = Program(work).prepare()
        chunk = Chunk(0, items)

        def bare(items: list[int] = items) -> float:
            began = time.perf_counter()
            list(map(work, items))
            return time.perf_counter() - began

        def blocked(chunk: Chunk = chunk, run: Callable[..., object] = run) -> float:
            began = time.perf_counter()
            run(chunk, Cell())
            return time.perf_counter() - began

        ratios = [blocked() / bare() for _ in range(15)]
        item_us = 1e6 * median_of(bare) / size
        print(f"blocks     items of {item_us:9.2f} µs: blocks over bare map   {statistics.median(ratios):8.3f}")


def looks() -> None:
    """FIRST_LOOK_S: a call on items that are over at once, in microseconds."""

    def once() -> float:
        began = time.perf_counter()
        ff.map(nothing, [1, 2, 3])
        return time.perf_counter() - began

    once()
    print(f"looks      a whole call on three no-op items           {1e6 * median_of(once, 101):8.1f} µs")


if __name__ == "__main__":
    chosen = sys.argv[1:] or ["messages", "start", "transport", "blocks", "looks"]
    for name in chosen:
        {"messages": messages, "start": start, "transport": transport, "blocks": blocks, "looks": looks}[name]()

"""Measures what the constants in the source stand on. Run it on a quiet machine; figures are medians.

python benchmarks/constants.py [messages|start|imports|transport|blocks|looks|keeping|triangle]
"""

import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable

import fourfold as ff
from fourfold.distribute.engines.on_processes.cell import PageCell
from fourfold.distribute.engines.on_processes.page import PAGE_BYTES, Page
from fourfold.distribute.engines.on_processes.segments import Owner, new_file
from fourfold.execute.chunk import Program
from fourfold.execute.keep import Keep, Price, SoFar
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


def imports() -> None:
    """MODULE_S: processor time to import libraries in a new interpreter, by the modules that they load."""
    code = (
        "import importlib, sys, time\n"
        "n, began = len(sys.modules), time.process_time()\n"
        "importlib.import_module(sys.argv[1])\n"
        "print(time.process_time() - began, len(sys.modules) - n)\n"
    )
    for name in ("pyarrow.parquet", "pandas", "sklearn.ensemble"):
        runs = []
        for _ in range(7):
            out = subprocess.run([sys.executable, "-c", code, name], capture_output=True, text=True, check=True).stdout
            took_s, n_modules = out.split()
            runs.append(float(took_s) / int(n_modules))
        print(f"imports    a module of the {n_modules:>5} of {name:<18} {1e6 * statistics.median(runs):8.1f} µs")


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
        inline = whole = False

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


def keeping() -> None:
    """COST_S and BYTE_S of execute/keep.py; and what keeping takes of a worker's processor time, by the time of an item."""
    page_fd = new_file(PAGE_BYTES)
    os.ftruncate(page_fd, PAGE_BYTES)
    cell = PageCell(Page(page_fd))
    spent_s, price = [0.0], Price()

    class Timed(Keep):
        def take(self, at: int, so_far: SoFar) -> None:
            began = time.thread_time()
            super().take(at, so_far)
            spent_s[0] += time.thread_time() - began

    def whole_s(work: Callable[[int], object], count: int, id: int) -> float:
        cell.begin(id)
        cell.uncut()
        began = time.thread_time()
        Program(work).prepare()(chunk := Chunk(0, range(count)), cell, Timed(chunk, cell, price, lambda *_: Parcel(b"")))
        return time.thread_time() - began

    def sleep(item: int) -> int:
        time.sleep(0.02)
        return item

    spent_s[0] = 0.0
    whole_s(sleep, 30, 0)
    print(f"keeping    one small result, after items that sleep    {1e6 * spent_s[0] / 29:8.1f} µs")
    for n in (10, 200, 2_000, 20_000):

        def work(item: int, n: int = n) -> int:
            return sum(range(n))

        count = 200_000_000 // (n + 50) // 50
        spent_s[0] = 0.0
        all_s = [whole_s(work, count, id) for id in range(1, 8)]
        item_us, share = 1e6 * statistics.median(all_s) / count, spent_s[0] / sum(all_s)
        print(f"keeping    items of {item_us:9.2f} µs: share of the time         {100 * share:8.2f} %")
    array = bytes(8 << 20)
    began = time.perf_counter()
    cell.begin(9)
    cell.keep(b"", (array,))
    print(f"keeping    copy of one byte into new memory            {1e9 * (time.perf_counter() - began) / len(array):8.2f} ns")


def triangle() -> None:
    """SLICE_ROWS of triangle.py: 40,000 rows made one triangle, by rows that are put under it at once."""
    import numpy as np

    import fourfold.workloads.fit.recipes.triangle as triangle
    from fourfold.workloads.fit.contract import Rows

    draw = np.random.default_rng(0)
    for n_columns in (10, 50, 200):
        rows = Rows(draw.normal(size=(40_000, n_columns)))
        for n_rows in (128, 256, 512, 1024, 2048, 8192):
            triangle.SLICE_ROWS = n_rows

            def once(rows: Rows = rows) -> float:
                began = time.process_time()
                triangle.Factor().fold(rows)
                return time.process_time() - began

            print(f"triangle   {n_columns:3} columns, {n_rows:4} rows at once: {1e3 * median_of(once):8.1f} ms")


if __name__ == "__main__":
    measures = [messages, start, imports, transport, blocks, looks, keeping, triangle]
    chosen = sys.argv[1:] or [measure.__name__ for measure in measures]
    for measure in measures:
        if measure.__name__ in chosen:
            measure()

"""Which rows are drawn, by a hash: the same ones for any cut of the rows into pieces and batches, and on any machine.

Source of the mixing function: Steele, Lea and Flood, "Fast splittable pseudorandom number generators" (OOPSLA 2014), the
finalizer of SplitMix64.
"""

import hashlib
from collections.abc import Sequence
from typing import Any

from fourfold.data.steps import Apply, Batch, Step, check_columns

SEED_STEP = 0x9E3779B97F4A7C15
"""The golden ratio in 64 bits: seeds that follow each other are far apart."""


class Draw:
    """The rows whose hash lies in `[low, high)`, of numbers from 0 to 1; where `low` is the greater, in none between them.

    Args:
        low: The least hash that is drawn.
        high: Where those end that are drawn.
        seed: Another one draws other rows.
        by: None: each row is drawn by its number in the dataset; or a column: rows of the same value go together.
        stage: How many draws came before: what one has drawn tells nothing of what the next one draws.
    """

    title = "split"
    keeps_rows = True
    most_rows: int | None = None
    least_rows = 0
    model = None
    where = None

    def __init__(self, low: float, high: float, seed: int, by: str | None, stage: int = 0) -> None:
        self.low, self.high, self.seed, self.by, self.stage = low, high, seed, by, stage

    def behind(self, steps: "Sequence[Step]") -> "Draw":
        """The same draw behind these steps."""
        return Draw(self.low, self.high, self.seed, self.by, sum(isinstance(step, Draw) for step in steps))

    def schema(self, before: Any) -> Any:
        check_columns([self.by] if self.by is not None else [], before, "by")
        return before

    def looks_at(self, before: Any) -> Sequence[str] | None:
        return () if self.by is None else (self.by,)

    def prepare(self) -> Apply:
        return self._apply

    def _apply(self, batch: Batch) -> Batch:
        import numpy as np
        import pyarrow as pa

        if self.by is None:
            keys = batch.numbers.astype(np.uint64)
        else:
            check_columns([self.by], batch.table.schema, "by")
            keys = hashes_of(batch.table.column(self.by))
        hashes = mixed(keys, self.seed)
        if self.stage:
            hashes = mixed(hashes, self.stage)
        # 2**64 is no number of 64 bits: compared are the upper 53 bits, which a float holds exactly.
        shares = (hashes >> np.uint64(11)).astype(np.float64) / 2.0**53
        above, below = shares >= self.low, shares < self.high
        return batch.filtered(pa.array(above & below if self.low <= self.high else above | below))


def mixed(keys: Any, seed: int) -> Any:
    """Numbers of 64 bits, each as likely, that depend on these keys and the seed only."""
    import numpy as np

    with np.errstate(over="ignore"):
        z = keys + np.uint64((SEED_STEP * (seed + 1)) % (1 << 64))
        for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
            z = (z ^ (z >> np.uint64(shift))) * np.uint64(factor)
        return z ^ (z >> np.uint64(31))


def hashes_of(column: Any) -> Any:
    """A number of 64 bits for each value of a column, the same for equal values of whatever type."""
    import numpy as np
    import pyarrow as pa

    whole = pa.concat_arrays(column.chunks) if column.num_chunks else pa.array([], column.type)
    encoded = whole if pa.types.is_dictionary(whole.type) else whole.dictionary_encode(null_encoding="encode")
    words = [str(value).encode("utf-8", "surrogatepass") for value in encoded.dictionary.to_pylist()]
    table = np.array([int.from_bytes(hashlib.blake2b(word, digest_size=8).digest(), "little") for word in words], np.uint64)
    indices = encoded.indices.fill_null(-1).to_numpy(zero_copy_only=False)
    table = np.append(table, np.uint64(0))  # where -1 points: a null
    return table[indices]

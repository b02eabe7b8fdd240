"""Figures of a column from parts of it: each part is summed up where it is, and sums are merged.

Sources: mean and variance: Chan, Golub and LeVeque, "Updating formulae and a pairwise algorithm for computing sample
variances" (1979). Distinct values: Flajolet et al., "HyperLogLog" (2007), with linear counting where few registers are used.
Quantiles: Masson, Rim and Lee, "DDSketch" (VLDB 2019).
"""

from typing import Any

REGISTER_BITS = 12
"""2**12 registers of HyperLogLog: a standard error of 1.04 / sqrt(2**12) = 1.6 %, in 4 KiB per column."""

QUANTILE_ERROR = 0.01
"""A quantile is at most this share of its value off. Smaller: more buckets (a column of 64-bit floats has at most 71,000)."""

_GAMMA = (1 + QUANTILE_ERROR) / (1 - QUANTILE_ERROR)
_ZERO_KEY = -(1 << 40)
"""The bucket of zeros: before those of all other absolute values."""


class Moments:
    """Number, mean and sum of squared distances from it."""

    def __init__(self, n: int = 0, mean: float = 0.0, squares: float = 0.0) -> None:
        self.n, self.mean, self.squares = n, mean, squares

    def add(self, values: Any) -> None:
        """Take in an array of floats."""
        if len(values):
            mean = float(values.mean())
            self.merge(Moments(len(values), mean, float(((values - mean) ** 2).sum())))

    def merge(self, other: "Moments") -> None:
        """Take in the values of another part, which come behind."""
        if not other.n:
            return
        n, distance = self.n + other.n, other.mean - self.mean
        self.squares += other.squares + distance * distance * self.n * other.n / n
        self.mean += distance * other.n / n
        self.n = n

    @property
    def std(self) -> float | None:
        """The sample standard deviation, None for fewer than two values."""
        return (self.squares / (self.n - 1)) ** 0.5 if self.n > 1 else None


class Distinct:
    """An estimate of how many different values there are."""

    def __init__(self) -> None:
        import numpy as np

        self.registers = np.zeros(1 << REGISTER_BITS, np.uint8)

    def add(self, hashes: Any) -> None:
        """Take in hashes of 64 bits, one for each value."""
        import numpy as np

        places = (hashes >> np.uint64(64 - REGISTER_BITS)).astype(np.int64)
        rest = (hashes << np.uint64(REGISTER_BITS)) | np.uint64(1 << (REGISTER_BITS - 1))  # never zero
        # The exponent of a float is where its first bit stands; the upper 32 bits are exact in one, the rest are rare.
        high = (rest >> np.uint64(32)).astype(np.float64)
        low = (rest & np.uint64(0xFFFFFFFF)).astype(np.float64)
        zeros = np.where(high > 0, 32 - np.frexp(high)[1], 64 - np.frexp(low)[1])
        np.maximum.at(self.registers, places, (zeros + 1).astype(np.uint8))

    def merge(self, other: "Distinct") -> None:
        """Take in the values of another part."""
        import numpy as np

        self.registers = np.maximum(self.registers, other.registers)

    def estimate(self) -> int:
        """How many; the standard error is 1.6 %."""
        import math

        import numpy as np

        m = len(self.registers)
        raw = 0.7213 / (1 + 1.079 / m) * m * m / float(np.ldexp(1.0, -self.registers.astype(np.int64)).sum())
        n_empty = int((self.registers == 0).sum())
        return round(m * math.log(m / n_empty) if n_empty and raw <= 2.5 * m else raw)


class Quantiles:
    """Counts of values in buckets whose bounds grow by the same factor, on both sides of zero."""

    def __init__(self) -> None:
        self.counts: dict[tuple[int, int], int] = {}

    def add(self, values: Any) -> None:
        """Take in an array of finite floats."""
        import numpy as np

        signs = np.sign(values).astype(np.int64)
        with np.errstate(divide="ignore"):
            keys = np.ceil(np.log(np.abs(values)) / np.log(_GAMMA))
        keys = np.where(signs == 0, _ZERO_KEY, keys).astype(np.int64)
        for sign in (-1, 0, 1):
            found, counts = np.unique(keys[signs == sign], return_counts=True)
            for key, count in zip(found.tolist(), counts.tolist(), strict=True):
                self.counts[sign, key] = self.counts.get((sign, key), 0) + count

    def merge(self, other: "Quantiles") -> None:
        """Take in the values of another part."""
        for key, count in other.counts.items():
            self.counts[key] = self.counts.get(key, 0) + count

    def at(self, share: float) -> float | None:
        """The value below which this share of all lies, at most QUANTILE_ERROR of it off; None when there is no value."""
        n, seen = sum(self.counts.values()), 0
        for sign, key in sorted(self.counts, key=lambda each: (each[0], each[0] * each[1])):
            seen += self.counts[sign, key]
            if seen > share * (n - 1):
                return float(sign * 2 * _GAMMA**key / (_GAMMA + 1)) if sign else 0.0
        return None

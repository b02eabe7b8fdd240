"""What is checked of rows before they are folded, as steps of the plan: so a row that is refused is named with its file.

With on_error="skip" it is left out, as a row is on which any other step fails.
"""

from collections.abc import Sequence
from typing import Any

from fourfold.data.steps import Apply, Batch
from fourfold.workloads.fit.contract import Seen
from fourfold.workloads.fit.seen import Features, all_seen


class _Check:
    """A step that changes nothing."""

    keeps_rows = True
    most_rows: int | None = None
    least_rows = 0
    model = None
    where = None
    imports = ("pandas",)
    title = "fit"

    def schema(self, before: Any) -> Any:
        return before

    def looks_at(self, before: Any) -> Sequence[str] | None:
        return None


class CheckTarget(_Check):
    """Refuses rows without a target, and those whose weight is no number from 0 on."""

    def __init__(self, target: str | None, weight: str | None) -> None:
        self.target, self.weight = target, weight

    def prepare(self) -> Apply:
        return self._apply

    def _apply(self, batch: Batch) -> Batch:
        if self.target is not None and _is_missing(batch.table.column(self.target)).any():
            raise ValueError(
                f"Input y contains NaN: the target {self.target!r} is missing or NaN. Leave such rows out with filter()"
            )
        if self.weight is not None:
            self._check_weight(batch.table.column(self.weight))
        return batch

    def _check_weight(self, column: Any) -> None:
        import numpy as np

        values = np.asarray(column.to_pandas().to_numpy(np.float64, na_value=np.nan))
        bad = values[~np.isfinite(values) | (values < 0)]
        if len(bad):
            said = (
                "Negative values in data passed to `sample_weight`"
                if bad[0] < 0
                else "Input sample_weight contains NaN or infinity"
            )
            raise ValueError(f"{said}: the weight {self.weight!r} is {bad[0]}, and it must be a number from 0 on")


def _is_missing(column: Any) -> Any:
    import pyarrow.compute as pc

    return pc.is_null(column, nan_is_null=True).to_numpy()


class CheckSeen(_Check):
    """Refuses rows that an estimator cannot take, in the words of what makes them what it sees."""

    def __init__(self, features: Features, chains: Sequence[Sequence[Seen]]) -> None:
        self._features, self._chains = features, chains

    def prepare(self) -> Apply:
        return self._apply

    def _apply(self, batch: Batch) -> Batch:
        for _ in all_seen(self._features(batch.table), self._chains):
            pass
        return batch

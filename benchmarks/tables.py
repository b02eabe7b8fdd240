"""What the benchmarks of tables run: flights-like tables in Parquet, a forest, and the pass over them by hand."""

from __future__ import annotations

import glob
import os
import time
from pathlib import Path
from typing import Any

import numpy as np

FEATURES = [f"f{number}" for number in range(10)]
N_TREES = 100

# Rows of a row group, as pandas and Spark write them in files of this size.
GROUP_ROWS = 50_000


def write_rows(folder: Path, n_rows: int, n_files: int = 4) -> str:
    """Parquet files with an id and ten features of float64; returns their glob."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    draw = np.random.default_rng(0)
    for number in range(n_files):
        first, end = n_rows * number // n_files, n_rows * (number + 1) // n_files
        columns = {"id": np.arange(first, end), **{name: draw.normal(size=end - first) for name in FEATURES}}
        pq.write_table(pa.table(columns), folder / f"in-{number}.parquet", row_group_size=GROUP_ROWS)
    return str(folder / "in-*.parquet")


def write_forest(path: Path) -> None:
    """A forest of 100 trees, fitted on some rows, in a joblib file."""
    import joblib
    import pandas as pd
    from sklearn.ensemble import RandomForestClassifier

    draw = np.random.default_rng(1)
    rows = pd.DataFrame(draw.normal(size=(4000, len(FEATURES))), columns=FEATURES)
    label = rows["f0"] * rows["f1"] + draw.normal(size=len(rows)) > 0
    joblib.dump(RandomForestClassifier(N_TREES, max_depth=8, random_state=0, n_jobs=1).fit(rows, label), path)


def models_and_rows(is_quick: bool) -> dict[str, tuple[Any, Any]]:
    """Three fitted models of unlike kinds, each with the rows that it is to score: by what it is called in tables."""
    import pyarrow as pa
    from sklearn.compose import ColumnTransformer
    from sklearn.ensemble import HistGradientBoostingRegressor
    from sklearn.linear_model import Ridge
    from sklearn.neighbors import KNeighborsRegressor
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import OneHotEncoder, StandardScaler

    draw, n_rows = np.random.default_rng(2), 20_000 if is_quick else 300_000
    columns: dict[str, Any] = {"id": np.arange(n_rows), **{name: draw.normal(size=n_rows) for name in FEATURES}}
    mixed = columns | {"carrier": draw.choice(["AA", "B6", "DL", "UA"], n_rows)}
    known = pa.table(mixed).slice(0, 4000).to_pandas()
    target = known["f0"] * known["f1"] + draw.normal(size=len(known))
    split = ColumnTransformer([("numbers", StandardScaler(), FEATURES), ("texts", OneHotEncoder(), ["carrier"])])
    return {
        "a boosted model": (
            HistGradientBoostingRegressor(max_iter=50, random_state=0).fit(known[FEATURES], target),
            pa.table(columns).slice(0, n_rows * 2 // 3),
        ),
        "a linear Pipeline": (make_pipeline(split, Ridge()).fit(known, target), pa.table(mixed)),
        "nearest neighbours": (
            KNeighborsRegressor(5).fit(known[FEATURES[:4]], target),
            pa.table(columns).slice(0, n_rows // 3),
        ),
    }


class Score:
    """The model over a batch of pandas: what the loop and the peers call."""

    def __init__(self, model: str) -> None:
        import joblib

        self.model = joblib.load(model)

    def __call__(self, batch: Any) -> Any:
        import pandas as pd

        scores = self.model.predict_proba(batch[FEATURES])
        return pd.DataFrame({"id": batch["id"], "proba_False": scores[:, 0], "proba_True": scores[:, 1]})


def predict_in_a_loop(source: str, model: str, out: str) -> None:
    """One row group after the other, in this process, one thread."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    score = Score(model)
    os.makedirs(out)
    for path in sorted(glob.glob(source)):
        with pq.ParquetFile(path) as file:
            writer = None
            for group in range(file.num_row_groups):
                table = pa.Table.from_pandas(score(file.read_row_group(group).to_pandas()), preserve_index=False)
                writer = writer or pq.ParquetWriter(os.path.join(out, os.path.basename(path)), table.schema)
                writer.write_table(table)
            if writer is not None:
                writer.close()


def digest_of_folder(out: str) -> tuple[int, float]:
    """Rows, and the sum of scores in the order of ids: the same for everybody's files."""
    import pyarrow.dataset as pads

    table = pads.dataset(out, format="parquet").to_table(columns=["id", "proba_True"]).sort_by("id")
    return table.num_rows, float(np.sum(table.column("proba_True").to_numpy()))


class SlowModel:
    """Two seconds to load, ten milliseconds per batch."""

    def __init__(self, load_s: float, batch_s: float) -> None:
        time.sleep(load_s)
        self.batch_s = batch_s

    def __call__(self, batch: Any) -> Any:
        time.sleep(self.batch_s)
        return batch["id"].to_numpy()

"""What comes of `fit_groups`: a model for each group that has one, what became of all, and predictions by the right one.

A group without a model falls back on one of more rows:

    fallback="parent"    (region, shop) ──> (region,) ──> all rows: keys lose their last column until there is a model
    fallback="global"    (region, shop) ──> all rows
"""

import base64
import collections
import contextlib
import logging
import os
import pickle
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from fourfold.data.kinds import as_table
from fourfold.data.steps import check_columns
from fourfold.errors import OptionError
from fourfold.records import Failure, Report
from fourfold.workloads.groups.keys import Key, canonical
from fourfold.workloads.groups.levels import Level
from fourfold.workloads.groups.one import OK
from fourfold.workloads.groups.predicting import SAY, PredictGroups, in_order, joined, rows_by_key
from fourfold.workloads.groups.rows import frame_of
from fourfold.workloads.groups.stored import load, save

FALLBACKS = ("parent", "global", None)
UNKNOWN = ("fallback", "null", "raise")

KEPT_MODELS, KEPT_BYTES = 1000, 256 << 20
"""Models that stay unpickled, those that were used last, and what they may take as pickles. Fewer: they are unpickled again.
More: memory. Not measured."""


Place = tuple[int, int]
"""Which model: the number of columns of its key, and its place among those."""


class GroupModels(Mapping[Any, Any]):
    """One fitted model per group. Made by `Dataset.fit_groups`, or by `GroupModels.load`.

    It is a mapping of those groups that have a model: `models["AA"]`, or `models["north", 7]` for keys of two columns. None,
    NaN and NaT are the group of rows without a value.

    Attributes:
        by: The columns of keys.
        features: The columns that the models learnt from.
        fallback: See `Dataset.fit_groups`.
        report: Figures and verdict of the fits; None after `load`.
        failures: Fits that raised, crashed or took too long, each with its traceback; none after `load`.

    Example:
        >>> import fourfold as ff
        >>> from sklearn.linear_model import LinearRegression
        >>> rows = [{"shop": shop, "x": x, "y": slope * x} for shop, slope in (("a", 2.0), ("b", 5.0)) for x in (0.0, 1.0)]
        >>> models = ff.scan(rows).fit_groups(LinearRegression(), by="shop", target="y")
        >>> models["b"].coef_.round(6).tolist(), models.summary().status.tolist()
        ([5.0], ['ok', 'ok'])
    """

    def __init__(
        self,
        by: Sequence[str],
        features: Sequence[str],
        fallback: str | None,
        levels: Mapping[int, Level],
        report: Report | None = None,
        failures: Sequence[Failure] = (),
        classes: bytes = b"",
    ) -> None:
        self.by, self.features, self.fallback, self._classes = tuple(by), tuple(features), fallback, classes
        self.report, self.failures = report, list(failures)
        self._levels = dict(levels)
        self._loaded: collections.OrderedDict[Place, tuple[Any, int]] = collections.OrderedDict()

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_loaded": collections.OrderedDict()}

    def __repr__(self) -> str:
        n_groups = len(self._groups.facts["rows"])
        return f"GroupModels({len(self):,} models of {n_groups:,} groups by {', '.join(self.by)})"

    @property
    def _groups(self) -> Level:
        return self._levels[len(self.by)]

    # ---- the models --------------------------------------------------------------------------------------------------

    def __len__(self) -> int:
        return sum(status == OK for status in self._groups.facts["status"])

    def __iter__(self) -> Iterator[Any]:
        for key, at in self._groups.places.items():
            if self._groups.has_model(at):
                yield key[0] if len(self.by) == 1 else key

    def __contains__(self, key: object) -> bool:
        try:
            at = self._groups.places.get(canonical(key, self.by))
        except KeyError:  # of another number of columns
            return False
        return at is not None and self._groups.has_model(at)

    def __getitem__(self, key: Any) -> Any:
        """The model of a group.

        Raises:
            KeyError: There is no such group, or it has no model; the message says why.
        """
        whole = canonical(key, self.by)
        key = whole[0] if len(whole) == 1 else whole
        at = self._groups.places.get(whole)
        if at is None:
            raise KeyError(f"there was no group {key!r}")
        if not self._groups.has_model(at):
            facts = self._groups.facts
            raise KeyError(f"the group {key!r} has no model: {facts['status'][at]}: {facts['error'][at]}")
        return self._model((len(self.by), at))

    def _model(self, place: Place) -> Any:
        found = self._loaded.pop(place, None)  # in one step: other threads load models too
        if found is not None:
            self._loaded[place] = found
            return found[0]
        pickled = self._levels[place[0]].pickles[place[1]]
        assert pickled is not None
        model = pickled.load()
        self._loaded[place] = model, pickled.size_bytes
        while len(self._loaded) > KEPT_MODELS or sum(size for _, size in [*self._loaded.values()][:-1]) > KEPT_BYTES:
            with contextlib.suppress(KeyError):  # another thread was faster
                self._loaded.popitem(last=False)
        return model

    def summary(self, level: int | None = None) -> Any:
        """What became of each group, as a DataFrame: its key, rows, status, seconds, score, error.

        The status is "ok", "too_few_rows" (less than `min_rows`), "one_class" (a classifier that cannot learn from one),
        "error" (its fit raised), "crashed" (its worker died of it) or "timed_out".

        Args:
            level: None, or the number of key columns of those that groups fall back on: 0 for the model of all rows.

        Raises:
            OptionError: There are none of that level.
        """
        found = self._levels.get(len(self.by) if level is None else level)
        if found is None:
            raise OptionError(f"level={level!r}: there are models of {', '.join(map(str, sorted(self._levels)))} key columns")
        import pandas as pd

        keys = found.keys.to_pandas() if found.keys.num_columns else pd.DataFrame(index=range(len(found.facts["rows"])))
        facts = pd.DataFrame({**found.facts, "score": pd.array(found.facts["score"], dtype="float64")}, index=keys.index)
        clash = [name for name in facts.columns if name in keys.columns]
        return pd.concat([keys, facts.rename(columns={name: f"{name}_of_fit" for name in clash})], axis=1)

    def warn_of_failures(self) -> None:
        """Log that groups have no model, when some have none."""
        facts = self._groups.facts
        bad = [at for at, status in enumerate(facts["status"]) if status != OK]
        if not bad:
            return
        counts = collections.Counter(facts["status"][at] for at in bad)
        first = next(iter(key for key, at in self._groups.places.items() if at == bad[0]))
        logging.getLogger("fourfold").warning(
            "fit_groups: %d of %d groups have no model (%s); the first: %r: %s",
            len(bad),
            len(facts["status"]),
            ", ".join(f"{count} {status}" for status, count in counts.items()),
            first[0] if len(first) == 1 else first,
            facts["error"][bad[0]],
        )

    # ---- predictions -------------------------------------------------------------------------------------------------

    def predict(self, new: Any, unknown: str = "fallback") -> Any:
        """What the model of its group says of each row.

        Args:
            new: A table of any kind, or a Dataset, with the columns of keys and the features.
            unknown: What a row gets whose group has no model. "fallback": what the model says that the group falls back on,
                and null where there is none; "null": always null; "raise": an error.

        Returns:
            An array, one value per row, in their order; null is NaN among numbers, None among others. Of a Dataset: the same
            rows with one more column, `prediction`, when it is run.

        Raises:
            OptionError: A column is not there, or `unknown` is no such word.
            KeyError: A group has no model, and `unknown="raise"`.
        """
        return self._said(new, unknown, "predict")

    def predict_proba(self, new: Any, unknown: str = "fallback") -> Any:
        """How likely the model of its group finds each class, for each row.

        Args:
            new: As `predict` takes it.
            unknown: As there.

        Returns:
            An array, one row for each row and one column for each of `classes_`: 0 for a class that the model of a row has not
            seen. NaN where there is no model. Of a Dataset: the same rows with columns `proba_<class>`, when it is run.

        Raises:
            OptionError: As `predict`; or the models have no `predict_proba`, or several targets.
            KeyError: A group has no model, and `unknown="raise"`.
        """
        return self._said(new, unknown, "predict_proba")

    @property
    def classes_(self) -> Any:
        """All classes that any of the models has seen, in order: an array.

        Raises:
            AttributeError: They have none.
        """
        import numpy as np

        if not self._classes:
            raise AttributeError("these models have no classes: they are no classifiers of one target")
        values = pickle.loads(self._classes)
        array = np.array(values)
        return array if array.ndim == 1 and array.tolist() == values else np.array([*values, None], object)[:-1]

    def _said(self, new: Any, unknown: str, method: str) -> Any:
        if unknown not in UNKNOWN:
            raise OptionError(f"unknown={unknown!r} is not known: it is {', '.join(UNKNOWN)}")
        if method == "predict_proba" and not self._classes:
            raise OptionError(
                "predict_proba is for classifiers of one target, and the models are none: predict says their values"
            )
        if hasattr(new, "map_batches"):
            return new.map_batches(PredictGroups, init=(self, unknown, method), batch_format="arrow")
        return self._said_of(as_table(new, method), unknown, method)

    def _said_of(self, table: Any, unknown: str, method: str) -> Any:
        check_columns([*self.by, *self.features], table.schema, method)
        rows_of: dict[Place | None, list[Any]] = {}
        for key, rows in rows_by_key(table, self.by):
            rows_of.setdefault(self._place(key, unknown), []).append(rows)
        X = frame_of(table, self.features, ())
        say = SAY[method](self)
        said = []
        for place, found in rows_of.items():
            chosen = in_order(found)
            said.append((chosen, None if place is None else say(self._model(place), X.take(chosen))))
        return joined(said, table.num_rows, say.width)

    def _place(self, key: Key, unknown: str) -> Place | None:
        """The model for rows with this key; None when there is none."""
        for n_columns in sorted(self._levels, reverse=True):
            level = self._levels[n_columns]
            at = level.places.get(key[:n_columns])
            if at is not None and level.has_model(at):
                return n_columns, at
            if unknown == "raise":
                self[key]
            if unknown == "null":
                break
        return None

    # ---- on disk -----------------------------------------------------------------------------------------------------

    def save(self, path: "str | os.PathLike[str]", overwrite: bool = False) -> None:
        """Write all models into a folder, many in each file, with an index. It appears whole or not at all.

        Args:
            path: The folder.
            overwrite: Whether it may take the place of one that is there.

        Raises:
            OptionError: Something is there already.
        """
        classes = base64.b64encode(self._classes).decode()
        about = {"by": self.by, "features": self.features, "fallback": self.fallback, "classes": classes}
        save(about, self._levels, path, overwrite)

    @classmethod
    def load(cls, path: "str | os.PathLike[str]") -> "GroupModels":
        """The models of a folder. Only the index is read now, and a model when it is asked for.

        Models are pickles, and to unpickle one runs what is in it: load only what you, or those you trust, have saved.

        Raises:
            OptionError: It is no such folder, or of a newer fourfold.
            UnreadableInput: The index is damaged, or a part of it is gone.
        """
        about, levels = load(path)
        classes = base64.b64decode(about.get("classes", ""))
        return cls(about["by"], about["features"], about["fallback"], levels, classes=classes)

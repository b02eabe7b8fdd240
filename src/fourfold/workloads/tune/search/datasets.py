"""A search over a Dataset: folds by hashes of rows, each fit by `Dataset.fit`, scores from `Dataset.predict`.

rows ──hash──> folds      fold 1 of 3:   ▒▒▒▒░░░░▒▒▒▒      ▒ train, ░ score
train ──fit──> model      one after the other, each in parallel over the rows
score ──predict──> predictions, and the target's values, here: the scorer looks at nothing else
"""

import itertools
import time
from collections.abc import Mapping, Sequence
from traceback import format_exc
from typing import Any, NamedTuple

from fourfold.data.draw import Draw
from fourfold.errors import OptionError
from fourfold.workloads.dataset import Dataset
from fourfold.workloads.tune.search.fits import Result
from fourfold.workloads.tune.search.shown import Shown

N_FOLDS = 5


class Asked(NamedTuple):
    """What `fit` was told of a dataset."""

    target: str | None
    features: Sequence[str] | None
    weight: str | None
    by: str | None


def asked_for(search: Any, y: Any, params: Mapping[str, Any]) -> Asked:
    """The arguments of `SearchCV.fit` beside a Dataset.

    Raises:
        OptionError: One of them, or of the search's own, is not for a Dataset.
    """
    unknown = [name for name in params if name not in Asked._fields]
    if y is not None or unknown:
        what = "y" if y is not None else unknown[0]
        raise OptionError(
            f"fit(Dataset, {what}=…): a Dataset takes {', '.join(f'{name}=' for name in Asked._fields)}, names of columns"
        )
    is_number = isinstance(search.cv, int) and not isinstance(search.cv, bool) and search.cv > 1
    if search.cv is not None and not is_number:
        raise OptionError(f"cv={search.cv!r} splits rows that are in memory: for a Dataset give a number of folds, 2 or more")
    if search.method == "halving":
        raise OptionError('method="halving" draws from rows that are in memory: for a Dataset take "random", "grid" or "tpe"')
    for name in ("pruner", "timeout", "run"):
        if getattr(search, name) is not None:
            raise OptionError(f"{name}= is not for a Dataset: it is for fits that are items, and here rows are")
    return Asked(*(params.get(name) for name in Asked._fields))


class Folds:
    """The folds of a dataset, and the fits of candidates on them.

    Args:
        search: The SearchCV.
        dataset: All rows.
        asked: The columns.
        options: Of `Dataset.fit` and `Dataset.predict`.
        scorer: Of scikit-learn.
        shown: Is told of each fit that has ended.
    """

    def __init__(
        self, search: Any, dataset: Dataset, asked: Asked, options: Mapping[str, Any], scorer: Any, shown: Shown
    ) -> None:
        self._search, self._dataset, self._asked, self._options, self._scorer = search, dataset, asked, options, scorer
        self._shown = shown
        self.n_folds = N_FOLDS if search.cv is None else int(search.cv)
        seed = search.random_state if isinstance(search.random_state, int) else 0
        numbered = dataset._numbered(asked.by)
        steps, each = numbered._plan.steps, 1 / self.n_folds
        edges = [at * each for at in range(self.n_folds)] + [1.0]
        self._parts = []
        for begin, end in itertools.pairwise(edges):
            drawn = [Draw(end, begin, seed, asked.by), Draw(begin, end, seed, asked.by)]
            train, test = (numbered._with(draw.behind(steps)) for draw in drawn)
            self._parts.append((train, test))

    def results(self, candidates: Sequence[Mapping[str, Any]], cv: Any = None) -> list[Result]:
        """What came of each candidate on each fold, as `_fit_and_score` of scikit-learn says it."""
        found = []
        for row, params in enumerate(candidates):
            for split, parts in enumerate(self._parts):
                found.append(self._result(params, *parts))
                self._shown.take_result(row, found[-1])
                if self._search.verbose > 1:
                    print(_line(f"[CV {split + 1}/{self.n_folds}]", params, found[-1]), flush=True)
        return found

    def fitted(self, params: Mapping[str, Any], dataset: Dataset | None = None) -> Any:
        """A candidate, fitted to a dataset, or to all rows."""
        from sklearn.base import clone

        estimator = clone(self._search.estimator).set_params(**clone(dict(params), safe=False))
        columns = {name: getattr(self._asked, name) for name in ("target", "features", "weight")}
        return (dataset or self._dataset).fit(estimator, **columns, **self._options)

    def _result(self, params: Mapping[str, Any], train: Dataset, test: Dataset) -> Result:
        from fourfold.workloads.tune.search.noted import noted

        search, began = self._search, time.perf_counter()
        result: Result = {"fit_error": None, "score_time": 0.0}
        try:
            model = self.fitted(params, train)
        except Exception as error:
            if search.error_score == "raise" or isinstance(error, OptionError):
                raise
            scorers = getattr(self._scorer, "_scorers", None)
            failed = dict.fromkeys(scorers, search.error_score) if scorers is not None else search.error_score
            result |= {"fit_error": format_exc(), "test_scores": failed}
            result |= {"train_scores": failed} if search.return_train_score else {}
            return result | {"fit_time": time.perf_counter() - began}
        result["fit_time"] = time.perf_counter() - began
        scorer = noted(self._scorer, search.error_score)
        result["test_scores"] = self._scores(model, test, scorer)
        result["score_time"] = time.perf_counter() - began - result["fit_time"]
        if search.return_train_score:
            result["train_scores"] = self._scores(model, train, scorer)
        if scorer.errors:
            result["score_error"] = scorer.errors[0]
        return result

    def _scores(self, model: Any, rows: Dataset, scorer: Any) -> Any:
        from sklearn.model_selection._validation import _score

        target = self._asked.target
        y = None if target is None else _values(rows.select([target]).to_arrow(**self._options))
        return _score(Elsewhere(model, rows, self._options), None, y, scorer, {}, self._search.error_score)


class Elsewhere:
    """A fitted model whose rows are in a dataset: a scorer asks it for predictions, and these come from there."""

    def __init__(self, model: Any, rows: Dataset, options: Mapping[str, Any]) -> None:
        self._model, self._rows, self._options = model, rows, options
        self._known: dict[str, Any] = {}

    def __getattr__(self, name: str) -> Any:
        value = getattr(self._model, name)  # the scorer is to see what the model has, and what it has not
        if name not in ("predict", "predict_proba", "predict_log_proba", "decision_function"):
            return value

        def predicted(_: Any) -> Any:
            return self._predicted(name)

        predicted.__name__ = name  # scikit-learn asks for it
        return predicted

    def __sklearn_tags__(self) -> Any:
        return self._model.__sklearn_tags__()

    def __sklearn_is_fitted__(self) -> bool:
        return True

    def score(self, _: Any, y: Any) -> float:
        """What the model's own `score` is, where that is accuracy or R²."""
        from sklearn.base import is_classifier
        from sklearn.metrics import accuracy_score, r2_score

        metric = accuracy_score if is_classifier(self._model) else r2_score
        return float(metric(y, self._predicted("predict")))

    def _predicted(self, method: str) -> Any:
        if method not in self._known:
            table = self._rows.predict(self._model, method=method, keep=[]).to_arrow(**self._options)
            self._known[method] = _values(table)
        return self._known[method]


def check_scores(estimator: Any, scoring: Any) -> None:
    """Whether predictions are all that the scores need.

    Raises:
        OptionError: A function wants the rows; or the estimator's own score is neither accuracy nor R².
    """
    from sklearn.base import ClassifierMixin, RegressorMixin

    if callable(scoring) and not hasattr(scoring, "_score_func"):
        raise OptionError(
            "scoring= must be names of scores, or made by make_scorer: the rows of a Dataset are not here to look at"
        )
    final = getattr(estimator, "_final_estimator", estimator)
    if scoring is None and type(final).score not in (ClassifierMixin.score, RegressorMixin.score):
        raise OptionError(f"{type(final).__name__} has a score of its own, which needs the rows: name one in scoring=")


def _line(fold: str, params: Mapping[str, Any], result: Mapping[str, Any]) -> str:
    """What scikit-learn prints of a fit under `verbose=2`, with its score."""
    scores = result["test_scores"]
    told = scores if isinstance(scores, Mapping) else {"score": scores}
    values = [f"{name}={value}" for name, value in params.items()] + [f"{name}={value:.6g}" for name, value in told.items()]
    return f"{fold} END {', '.join(values)}; total time={result['fit_time'] + result['score_time']:.1f}s"


def _values(table: Any) -> Any:
    """The column, or the columns beside each other."""
    import numpy as np

    columns = [column.to_pandas().to_numpy() for column in table.columns]
    return columns[0] if len(columns) == 1 else np.column_stack(columns)

"""Estimators that are made of others: each part by its own recipe, those that do not need each other at the same time.

Pipeline           step by step; a later one sees what the fitted ones before it make of the rows
ColumnTransformer  all parts at once, each on its columns
FeatureUnion       all parts at once, each on all columns

What a later part is given is known from one row: the first of all, which is asked for together with the first pass.
"""

import pickle
from collections.abc import Sequence
from typing import Any, NamedTuple

from fourfold.workloads.fit.contract import About, Fit, Pass, Rows, Seen, Trained
from fourfold.workloads.fit.registry import fit_with
from fourfold.workloads.fit.seen import ByTransform
from fourfold.workloads.fit.together import seen_through, together


class First:
    """The first row of all, and how many there are."""

    def fold(self, rows: Rows) -> tuple[bytes, int]:
        """Of some. The row is pickled here, and only that of the first piece is unpickled: each would keep the driver busy."""
        X = rows.X
        return pickle.dumps(X.iloc[:1] if hasattr(X, "iloc") else X[:1].copy()), rows.n_rows

    def combine(self, left: tuple[bytes, int], right: tuple[bytes, int]) -> tuple[bytes, int]:
        """The one on the left."""
        return left[0], left[1] + right[1]

    def finish(self, state: tuple[bytes, int]) -> tuple[Any, int]:
        """The row itself."""
        return pickle.loads(state[0]), state[1]


class Nonzeros:
    """How many values are stored in sparse rows."""

    def fold(self, rows: Rows) -> int:
        """Of some."""
        return int(rows.X.nnz)

    def combine(self, left: int, right: int) -> int:
        """Of both."""
        return left + right

    def finish(self, state: int) -> int:
        """As it is."""
        return state


class WithoutWeight:
    """Rows for a step that is given no weights."""

    def __call__(self, rows: Rows) -> Rows:
        return rows._replace(weight=None)


class Columns:
    """Some columns, as scikit-learn selects them; one that is named alone comes as an array of its values."""

    def __init__(self, columns: Any) -> None:
        self.columns = columns

    def __call__(self, rows: Rows) -> Rows:
        return rows._replace(X=self.of(rows.X))

    def of(self, X: Any) -> Any:
        """The columns of a table, array or matrix."""
        from sklearn.utils import _safe_indexing

        found = _safe_indexing(X, self.columns, axis=1)
        return found.to_numpy() if found.ndim == 1 and hasattr(found, "to_numpy") else found


class Chain:
    """Several, one behind the other."""

    def __init__(self, chain: Sequence[Seen]) -> None:
        self.chain = tuple(chain)

    def __call__(self, rows: Rows) -> Rows:
        for seen in self.chain:
            rows = seen(rows)
        return rows


class Part(NamedTuple):
    """A part of a ColumnTransformer or FeatureUnion.

    Attributes:
        name: As the user calls it.
        estimator: To be fitted, or fitted.
        chain: What makes of all rows those that it sees, and then what it makes of them.
        weight: What its result is multiplied with; None: nothing.
    """

    name: str
    estimator: Any
    chain: tuple[Seen, ...]
    weight: float | None


class Beside:
    """What fitted parts make of rows, one beside the other, when one was trained on other rows than `transform` gives.

    Args:
        whole: The fitted ColumnTransformer or FeatureUnion.
        parts: Of it.
    """

    def __init__(self, whole: Any, parts: Sequence[Part]) -> None:
        self.whole, self.parts = whole, list(parts)

    def __call__(self, rows: Rows) -> Rows:
        from sklearn.utils._set_output import _wrap_data_with_container

        blocks = [_weighted(Chain(part.chain)(rows).X, part.weight) for part in self.parts]
        found = stacked(self.whole, blocks, rows.n_rows)
        return rows._replace(X=_wrap_data_with_container("transform", found, rows.X, self.whole))


def stacked(whole: Any, blocks: Sequence[Any], n_rows: int) -> Any:
    """Blocks of columns beside each other, as scikit-learn puts them."""
    if hasattr(whole, "transformers"):
        return whole._hstack(list(blocks), n_samples=n_rows)
    return whole._hstack(list(blocks))


def _weighted(block: Any, weight: float | None) -> Any:
    return block if weight is None else block * weight


# ---- Pipeline --------------------------------------------------------------------------------------------------------


def pipeline(estimator: Any, about: About) -> Fit:
    """Source: scikit-learn, `Pipeline.fit`. `memory=` makes it fit copies of its steps, as there; nothing is cached."""
    from sklearn.utils.validation import check_memory

    estimator.steps = list(estimator.steps)
    estimator._validate_steps()
    memory = check_memory(estimator.memory)
    is_copied = not (hasattr(memory, "location") and memory.location is None)
    last = len(estimator.steps) - 1
    unweighted: tuple[Seen, ...] = (WithoutWeight(),) if about.has_weight else ()
    before: tuple[Seen, ...] = ()
    first, is_trained = None, False
    for at, (name, step) in enumerate(estimator.steps):
        if step is None or _is(step, "passthrough"):
            continue
        its = about if at == last else about._replace(has_weight=False)
        fit = _timed(fit_with(_copy(step) if is_copied and at < last else step, its), "Pipeline", estimator._log_message(at))
        fit = seen_through((*before, *(unweighted if at < last else ())), fit, again=at < last)
        if first is None and at < last:
            ended, (first, _) = yield from together([fit, _first_of()])
        else:
            ended = yield from fit
        fitted, seen = _ends(ended)
        is_trained |= isinstance(ended, Trained)
        estimator.steps[at] = name, fitted
        if at < last:
            first = fitted.transform(first)
            about = _about(first, about)
        before = (*before, seen)
    return Trained(estimator, Chain(before)) if is_trained and hasattr(estimator, "transform") else estimator


def _is(step: Any, word: str) -> bool:
    return isinstance(step, str) and step == word


def _copy(step: Any) -> Any:
    from sklearn.base import clone

    return clone(step)


def _first_of() -> Fit:
    """A recipe that only asks for the first row, and how many there are."""
    found = yield Pass(First())
    return found


def _ends(ended: Any) -> tuple[Any, Seen]:
    """The fitted estimator, and what makes of rows what a later step is trained on."""
    return (ended.estimator, ended.seen) if isinstance(ended, Trained) else (ended, ByTransform(ended))


def _about(first: Any, about: About) -> About:
    """What is known of rows of which this is the first one."""
    is_text = first.ndim == 1
    example = first.iloc[:0] if hasattr(first, "iloc") and not is_text else None
    n_features = None if is_text else int(first.shape[1])
    dtype = getattr(first, "dtype", None)
    return about._replace(example=example, n_features=n_features, is_sparse=hasattr(first, "tocsr"), dtype=dtype)


def _timed(fit: Fit, kind: str, message: str | None) -> Fit:
    """The recipe, which says at its end how long it took where the user wants that."""
    from sklearn.utils._user_interface import _print_elapsed_time

    with _print_elapsed_time(kind, message):
        ended = yield from fit
    return ended


# ---- ColumnTransformer -----------------------------------------------------------------------------------------------


def column_transformer(estimator: Any, about: About) -> Fit:
    """Source: scikit-learn, `ColumnTransformer.fit_transform`."""
    from sklearn.utils._set_output import _wrap_data_with_container

    example = _example(about)
    estimator.n_features_in_ = about.n_features
    if about.names is not None:
        estimator.feature_names_in_ = _names(about)
    estimator._validate_transformers()
    estimator._validate_column_callables(example)
    estimator._validate_remainder(example)
    chosen = estimator._iter(fitted=False, column_as_labels=False, skip_drop=True, skip_empty_columns=True)
    parts, fits = [], []
    for name, step, columns, weight in chosen:
        select = Columns(columns)
        step = _passing(estimator) if _is(step, "passthrough") else step
        parts.append(Part(name, _copy(step), (select,), weight))
        fits.append(seen_through((select,), fit_with(parts[-1].estimator, _about_columns(step, select.of(example), about))))
    if not parts:
        estimator._update_fitted_transformers([])
        return estimator
    timed = [_timed(fit, "ColumnTransformer", _message(estimator, parts, at)) for at, fit in enumerate(fits)]
    *ended, (first, n_rows) = yield from together([*timed, _first_of()])
    done = [_fitted_part(part, each) for part, each in zip(parts, ended, strict=True)]
    blocks = [_weighted(part.estimator.transform(part.chain[0].of(first)), part.weight) for part in done]  # type: ignore[attr-defined]
    estimator.sparse_output_ = yield from _is_sparse(estimator, done, blocks, n_rows)
    estimator._update_fitted_transformers([part.estimator for part in done])
    estimator._validate_output(blocks)
    estimator._record_output_indices(blocks)
    row = stacked(estimator, blocks, 1)  # it takes down the names of columns, where parts give tables
    _wrap_data_with_container("transform", row, first, estimator)  # and refuses those that are not unique
    return Trained(estimator, Beside(estimator, done)) if _any_trained(ended) else estimator


def _message(estimator: Any, parts: Sequence[Part], at: int) -> Any:
    return estimator._log_message(parts[at].name, at + 1, len(parts))


def _example(about: About) -> Any:
    """Something with these columns and no rows, or one, that scikit-learn looks up columns in."""
    import numpy as np

    if about.example is not None:
        return about.example
    if about.is_sparse:
        from scipy.sparse import csr_matrix

        return csr_matrix((0, about.n_features or 0))
    return np.empty((0, about.n_features or 0))


def _names(about: About) -> Any:
    import numpy as np

    return np.asarray(about.names, dtype=object)


def _about_columns(step: Any, example: Any, about: About) -> About:
    """What is known of the columns that a part is given.

    Raises:
        ValueError: It takes a table, and is given one column alone.
    """
    about = about._replace(has_weight=False)
    if example.ndim == 1:
        from sklearn.compose._column_transformer import _ERR_MSG_1DCOLUMN

        if not hasattr(step, "__sklearn_tags__") or step.__sklearn_tags__().input_tags.two_d_array:
            raise ValueError(_ERR_MSG_1DCOLUMN)
    return _about(example, about)


def _passing(estimator: Any) -> Any:
    """What passes columns through, made as scikit-learn makes it."""
    from sklearn.preprocessing import FunctionTransformer
    from sklearn.utils._set_output import _get_output_config

    made = FunctionTransformer(accept_sparse=True, check_inverse=False, feature_names_out="one-to-one")
    return made.set_output(transform=_get_output_config("transform", estimator)["dense"])


def _fitted_part(part: Part, ended: Any) -> Part:
    fitted, seen = _ends(ended)
    return part._replace(estimator=fitted, chain=(*part.chain, seen))


def _any_trained(ended: Sequence[Any]) -> bool:
    return any(isinstance(each, Trained) for each in ended)


def _is_sparse(estimator: Any, parts: Sequence[Part], blocks: Sequence[Any], n_rows: int) -> Fit:
    """Whether the output is sparse: less than `sparse_threshold` of all values are stored. Ends with a bool.

    Where the widths of blocks do not tell, one more pass counts what is stored in the sparse ones.
    """
    sparse = [at for at, block in enumerate(blocks) if hasattr(block, "tocsr")]
    if not sparse:
        return False
    width = sum(block.shape[1] for block in blocks)
    dense = sum(block.shape[1] for at, block in enumerate(blocks) if at not in sparse)
    if dense / width >= estimator.sparse_threshold:
        return False
    most = dense + sum(_most_stored(parts[at].estimator, blocks[at].shape[1]) for at in sparse)
    if most / width < estimator.sparse_threshold:
        return True
    counts = yield [Pass(Nonzeros(), parts[at].chain) for at in sparse]
    return bool((sum(counts) + dense * n_rows) / (width * n_rows) < estimator.sparse_threshold)


def _most_stored(fitted: Any, width: int) -> int:
    """How many values of a row a part stores at most."""
    from sklearn.preprocessing import KBinsDiscretizer, OneHotEncoder

    if hasattr(fitted, "steps"):
        return _most_stored(fitted.steps[-1][1], width)
    if type(fitted) in (KBinsDiscretizer, OneHotEncoder):  # of each column that came, one at most
        return int(fitted.n_features_in_)
    return width


# ---- FeatureUnion ----------------------------------------------------------------------------------------------------


def feature_union(estimator: Any, about: About) -> Fit:
    """Source: scikit-learn, `FeatureUnion.fit`."""
    estimator.transformer_list = list(estimator.transformer_list)
    estimator._validate_transformers()
    estimator._validate_transformer_weights()
    parts = [Part(name, step, (), weight) for name, step, weight in estimator._iter()]
    about = about._replace(has_weight=False)
    timed = [
        _timed(fit_with(part.estimator, about), "FeatureUnion", _message(estimator, parts, at))
        for at, part in enumerate(parts)
    ]
    ended = yield from together(timed)
    done = [_fitted_part(part, each) for part, each in zip(parts, ended, strict=True)]
    estimator._update_transformer_list([part.estimator for part in done])
    return Trained(estimator, Beside(estimator, done)) if _any_trained(ended) else estimator


def function_transformer(estimator: Any, about: About) -> Fit:
    """It learns nothing but the names of columns; what it checks is checked with the first row.

    Source: scikit-learn, `FunctionTransformer.fit`.
    """
    is_inverted = estimator.check_inverse and estimator.func is not None and estimator.inverse_func is not None
    if not estimator.validate and not is_inverted:
        return estimator
    first, _ = yield from _first_of()
    return estimator.fit(first)

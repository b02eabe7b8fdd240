"""Vectorizers of texts: which terms there are, in how many texts, and how often."""

from typing import Any

from fourfold.workloads.fit.contract import About, Fit, Pass, Rows

Counted = tuple[dict[Any, tuple[int, int]], int]
"""For each term in how many texts it is, and how often; and how many texts there are."""


class Terms:
    """Counts terms. A state has one entry for each.

    Args:
        vectorizer: Its analyzer says what the terms of a text are.
        known: Only these are counted; None for all.
    """

    def __init__(self, vectorizer: Any, known: Any = None) -> None:
        self.vectorizer, self.known = vectorizer, known

    def fold(self, rows: Rows) -> Counted:
        """Of an array of texts. Terms are in the order in which they are first met."""
        terms: dict[Any, tuple[int, int]] = {}
        analyze = self.vectorizer.build_analyzer()
        for text in rows.X:
            own: dict[Any, int] = {}
            for term in self._terms_of(text, analyze):
                own[term] = own.get(term, 0) + 1
            for term, times in own.items():
                if self.known is None or term in self.known:
                    n_texts, n_times = terms.get(term, (0, 0))
                    terms[term] = (n_texts + 1, n_times + times)
        return terms, rows.n_rows

    def _terms_of(self, text: Any, analyze: Any) -> Any:
        try:
            return analyze(text)
        except AttributeError as error:
            if isinstance(text, str | bytes):
                raise
            name = type(self.vectorizer).__name__
            raise TypeError(f"{name} takes texts, and this value is none: {text!r} ({error})") from None

    def combine(self, left: Counted, right: Counted) -> Counted:
        """Of both: the terms of the left come first."""
        terms = left[0]
        for term, (n_texts, n_times) in right[0].items():
            before = terms.get(term, (0, 0))
            terms[term] = (before[0] + n_texts, before[1] + n_times)
        return terms, left[1] + right[1]

    def finish(self, state: Counted) -> Counted:
        """As they are."""
        return state


def count_vectorizer(estimator: Any, about: About) -> Fit:
    """Source: scikit-learn, `CountVectorizer.fit_transform`. With a vocabulary that is given, no text is looked at."""
    _prepare(estimator)
    if not estimator.fixed_vocabulary_:
        terms, n_texts = yield Pass(Terms(estimator))
        estimator.vocabulary_ = _vocabulary(estimator, terms, n_texts)
    return estimator


def tfidf_vectorizer(estimator: Any, about: About) -> Fit:
    """Source: scikit-learn, `TfidfVectorizer.fit` and `TfidfTransformer.fit`."""
    from sklearn.feature_extraction.text import TfidfTransformer

    estimator._check_params()
    estimator._tfidf = TfidfTransformer(
        norm=estimator.norm,
        use_idf=estimator.use_idf,
        smooth_idf=estimator.smooth_idf,
        sublinear_tf=estimator.sublinear_tf,
    )
    _prepare(estimator)
    known = estimator.vocabulary_ if estimator.fixed_vocabulary_ else None
    terms, n_texts = yield Pass(Terms(estimator, known))
    if known is None:
        estimator.vocabulary_ = _vocabulary(estimator, terms, n_texts)
    estimator._tfidf.n_features_in_ = len(estimator.vocabulary_)
    if estimator.use_idf:
        estimator._tfidf.idf_ = _idf(estimator, terms, n_texts)
    return estimator


def hashing_vectorizer(estimator: Any, about: About) -> Fit:
    """It learns nothing. Source: scikit-learn, `HashingVectorizer.fit`."""
    estimator.fit([])
    return estimator
    yield  # a generator, which asks for no pass


def _prepare(estimator: Any) -> None:
    """What is checked before a text is looked at."""
    import warnings

    estimator._validate_ngram_range()
    estimator._warn_for_unused_params()
    estimator._validate_vocabulary()
    is_lowered = estimator.fixed_vocabulary_ and estimator.lowercase
    if is_lowered and any(any(map(str.isupper, term)) for term in estimator.vocabulary):
        warnings.warn(
            "Upper case characters found in vocabulary while 'lowercase' is True. These entries will not be matched with any "
            "documents",
            stacklevel=2,
        )
    estimator.build_analyzer()


def _vocabulary(estimator: Any, terms: dict[Any, tuple[int, int]], n_texts: int) -> dict[Any, Any]:
    """Which terms are kept, and their columns. Source: scikit-learn, `_sort_features` and `_limit_features`."""
    import numpy as np
    from scipy.sparse import csr_array

    if not terms:
        raise ValueError("empty vocabulary; perhaps the documents only contain stop words")
    most = _texts(estimator.max_df, n_texts)
    least = _texts(estimator.min_df, n_texts)
    if most < least:
        raise ValueError("max_df corresponds to < documents than min_df")
    ordered = sorted(terms)
    found = np.array([terms[term] for term in ordered])
    chosen = (found[:, 0] <= most) & (found[:, 0] >= least)
    limit = estimator.max_features
    if limit is not None and chosen.sum() > limit:
        times = csr_array(found[:, [0 if estimator.binary else 1]].T.astype(estimator.dtype)).sum(axis=0)
        best = (-np.asarray(times).ravel()[chosen]).argsort()[:limit]  # which of equal ones are kept follows from the types
        chosen[np.setdiff1d(np.flatnonzero(chosen), np.flatnonzero(chosen)[best])] = False
    if not chosen.any():
        raise ValueError("After pruning, no terms remain. Try a lower min_df or a higher max_df.")
    numbers = range(int(chosen.sum())) if limit is None else np.arange(int(chosen.sum()))
    columns = dict(zip((term for term, is_kept in zip(ordered, chosen, strict=True) if is_kept), numbers, strict=True))
    return {term: columns[term] for term in terms if term in columns}


def _texts(share: Any, n_texts: int) -> Any:
    """A number of texts; of a float the share of them."""
    from numbers import Integral

    return share if isinstance(share, Integral) else share * n_texts


def _idf(estimator: Any, terms: dict[Any, tuple[int, int]], n_texts: int) -> Any:
    """Source: scikit-learn, `TfidfTransformer.fit`."""
    import numpy as np

    dtype = np.dtype(estimator.dtype) if np.dtype(estimator.dtype) in (np.float64, np.float32) else np.dtype(np.float64)
    n_texts_with = np.zeros(len(estimator.vocabulary_), dtype)
    for term, column in estimator.vocabulary_.items():
        n_texts_with[column] = terms.get(term, (0, 0))[0]
    n_texts_with += float(estimator.smooth_idf)
    idf = np.full_like(n_texts_with, fill_value=n_texts + int(estimator.smooth_idf))
    idf /= n_texts_with
    np.log(idf, out=idf)
    idf += 1.0
    return idf

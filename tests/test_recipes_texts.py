"""Vectorizers of texts: `Dataset.fit` makes what their own fit makes of all texts."""

from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from sklearn.base import clone
from sklearn.feature_extraction.text import CountVectorizer, HashingVectorizer, TfidfVectorizer
from tables import small_pieces
from test_recipes_categories import Cut, same, same_fitted

import fourfold as ff
from fourfold.errors import OptionError

__all__ = ["small_pieces"]
N_ROWS = 128
WORDS = ["the", "quick", "brown", "fox", "jumps", "over", "a", "lazy", "dog", "Ünder", "çafé", "42", "foxes", "never", "jump"]


def texts() -> pa.Table:
    """Some words are in nearly all texts, some in one; one text is empty."""
    rng = np.random.default_rng(0)
    odds = 0.7 ** np.arange(len(WORDS))
    lengths = rng.integers(1, 9, N_ROWS)
    made = [" ".join(rng.choice(WORDS, length, p=odds / odds.sum())) for length in lengths]
    return pa.table({"text": ["", *made[1:-1], "the last one alone has Zebras, zebras"]})


CASES: list[Any] = [
    CountVectorizer(),
    CountVectorizer(min_df=3, max_df=0.5),
    CountVectorizer(min_df=0.05, max_df=60, ngram_range=(1, 2), binary=True, dtype=np.int32),
    CountVectorizer(max_features=6, stop_words="english"),
    CountVectorizer(max_features=7, ngram_range=(1, 3), dtype=np.float32),
    CountVectorizer(max_features=5, binary=True),
    CountVectorizer(analyzer="char_wb", ngram_range=(2, 3), strip_accents="unicode", lowercase=False),
    CountVectorizer(analyzer="char", max_features=9),
    CountVectorizer(analyzer=str.split, stop_words=None),
    CountVectorizer(tokenizer=str.split, token_pattern=None, preprocessor=str.upper),
    CountVectorizer(vocabulary=["fox", "dog", "unicorn"]),
    TfidfVectorizer(),
    TfidfVectorizer(sublinear_tf=True, norm="l1", smooth_idf=False, max_features=8),
    TfidfVectorizer(use_idf=False, min_df=2),
    TfidfVectorizer(dtype=np.float32, stop_words=["the"]),
    TfidfVectorizer(vocabulary={"fox": 1, "dog": 0, "unicorn": 2}, binary=True),
    HashingVectorizer(n_features=64, alternate_sign=False),
]
NAMES = [f"{type(case).__name__}-{number}" for number, case in enumerate(CASES)]


@pytest.mark.parametrize("n_pieces", [1, 7])
@pytest.mark.parametrize("vectorizer", CASES, ids=NAMES)
def test_a_vectorizer_is_what_its_own_fit_makes_of_all_texts(vectorizer: Any, n_pieces: int, small_pieces: Cut) -> None:
    small_pieces(N_ROWS // n_pieces, 1 << 20)
    rows = texts()
    alone = clone(vectorizer).fit(rows["text"].to_pylist())
    fitted = ff.scan(rows).fit(clone(vectorizer), features="text", engine="serial")
    same_fitted(fitted, alone, without=("_stop_words_id",))
    new = ["the fox jumps over unheard words", ""]
    same(fitted.transform(new).toarray(), alone.transform(new).toarray())
    if hasattr(alone, "vocabulary_"):
        assert list(fitted.vocabulary_) == list(alone.vocabulary_)


BAD: list[Any] = [
    CountVectorizer(vocabulary=[]),
    CountVectorizer(vocabulary=["fox", "fox"]),
    CountVectorizer(min_df=120, max_df=3),
    CountVectorizer(min_df=125),
    CountVectorizer(token_pattern="[0-9]{9}"),
    CountVectorizer(ngram_range=(2, 1)),
    CountVectorizer(min_df=-1),
    TfidfVectorizer(norm="l3"),
    HashingVectorizer(n_features=0),
]


@pytest.mark.parametrize("vectorizer", BAD, ids=str)
def test_a_vectorizer_refuses_in_the_words_of_its_own_fit(vectorizer: Any) -> None:
    with pytest.raises(ValueError, match=r".") as alone:
        clone(vectorizer).fit(texts()["text"].to_pylist())
    with pytest.raises(type(alone.value)) as fitted:
        ff.scan(texts()).fit(clone(vectorizer), features="text", engine="serial")
    assert str(fitted.value) == str(alone.value)


def test_a_missing_text_is_refused() -> None:
    with pytest.raises(ValueError, match=r"np\.nan is an invalid document"):
        ff.scan(pa.table({"text": ["one", None]})).fit(CountVectorizer(), engine="serial")


def test_a_vectorizer_takes_one_column() -> None:
    rows = ff.scan(pa.table({"text": ["one"], "more": ["two"]}))
    with pytest.raises(OptionError, match="CountVectorizer takes one column of texts, and there are 2: name it in features="):
        rows.fit(CountVectorizer())


def test_upper_case_in_a_given_vocabulary_is_warned_of() -> None:
    with pytest.warns(UserWarning, match="Upper case characters found in vocabulary"):
        ff.scan(texts()).fit(CountVectorizer(vocabulary=["Fox"]), engine="serial")

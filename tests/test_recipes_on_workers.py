"""What recipes ask of workers travels there and back: several workers give what one thread gives."""

from typing import Any

import pytest
import test_recipes_categories as categories
import test_recipes_kmeans as clouds
import test_recipes_target_encoding as targets
import test_recipes_texts as words
from sklearn.base import clone
from sklearn.cluster import KMeans
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.preprocessing import KBinsDiscretizer, OneHotEncoder, RobustScaler, TargetEncoder
from tables import small_pieces
from test_recipes_categories import Cut, same_fitted

import fourfold as ff

pytestmark = pytest.mark.usefixtures("workers_of_tables")

__all__ = ["small_pieces"]
CASES: list[tuple[Any, Any, str | None, Any]] = [
    (OneHotEncoder(max_categories=3), categories.table(), None, categories.NAMES),
    (RobustScaler(), categories.table(), None, categories.NUMBERS),
    (KBinsDiscretizer(3, strategy="kmeans", encode="ordinal"), clouds.table(), None, ["a", "b"]),
    (KMeans(4, random_state=0), clouds.table(), None, ["a", "b", "c"]),
    (TargetEncoder(), targets.frame(), "word", targets.FEATURES),
    (TfidfVectorizer(min_df=2), words.texts(), None, "text"),
]


@pytest.mark.parametrize("engine", ["threads", pytest.param("processes", marks=pytest.mark.slow)])
def test_workers_give_what_one_thread_gives(engine: str, small_pieces: Cut) -> None:
    small_pieces(32, 1 << 20)
    for estimator, rows, target, features in CASES:
        alone = ff.scan(rows).fit(clone(estimator), target, features, engine="serial")
        fitted = ff.scan(rows).fit(clone(estimator), target, features, engine=engine, workers=2)
        same_fitted(fitted, alone, without=("_stop_words_id",))

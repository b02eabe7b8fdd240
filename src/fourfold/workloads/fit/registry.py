"""Which class of estimator has which recipe. A subclass has none of its own accord: its `fit` may do anything."""

from collections.abc import Callable
from importlib import import_module
from typing import Any

from fourfold.errors import OptionError, OptionTypeError
from fourfold.workloads.fit.contract import About, Fit, Recipe, Trained

OF_SKLEARN = {
    "CountVectorizer": "texts.count_vectorizer",
    "HashingVectorizer": "texts.hashing_vectorizer",
    "KBinsDiscretizer": "bins.k_bins_discretizer",
    "KMeans": "kmeans.kmeans",
    "MinMaxScaler": "scaling.min_max_scaler",
    "OneHotEncoder": "categories.encoder",
    "OrdinalEncoder": "categories.encoder",
    "RobustScaler": "robust.robust_scaler",
    "TargetEncoder": "target_encoding.target_encoder",
    "TfidfVectorizer": "texts.tfidf_vectorizer",
}
"""Classes of scikit-learn by name, and where the recipe is in `recipes/`: neither is imported before it is needed."""

_of_users: dict[type, Recipe] = {}


def recipe(cls: type) -> Callable[[Recipe], Recipe]:
    """Say how a class of estimator is fitted in parallel, for `Dataset.fit`. A decorator of a generator function.

    Args:
        cls: The class; subclasses need a recipe of their own.

    Raises:
        OptionTypeError: It is no class.
    """
    if not isinstance(cls, type):
        raise OptionTypeError(f"recipe({cls!r}): give the class of an estimator")

    def register(fit: Recipe) -> Recipe:
        _of_users[cls] = fit
        return fit

    return register


def recipe_of(estimator: Any) -> Recipe:
    """The recipe of an estimator's class.

    Raises:
        OptionError: It has none.
        OptionTypeError: It is no estimator.
    """
    if isinstance(estimator, type) or not hasattr(estimator, "fit"):
        raise OptionTypeError(f"fit({estimator!r}): give an estimator, such as StandardScaler()")
    found = _of_users.get(type(estimator))
    if found is not None:
        return found
    name = type(estimator).__name__
    if type(estimator).__module__.partition(".")[0] == "sklearn" and name in OF_SKLEARN:
        module, _, function = OF_SKLEARN[name].partition(".")
        known: Recipe = getattr(import_module(f"fourfold.workloads.fit.recipes.{module}"), function)
        return known
    known_names = sorted({*OF_SKLEARN, *(cls.__name__ for cls in _of_users)})
    raise OptionError(
        f"there is no recipe that fits {name} from parts of the rows. There is one for {', '.join(known_names)}. Two ways on: "
        "fit_groups(…, by=) fits one model per group with its own fit; and rows that fit into memory, to_pandas() has for its "
        "own fit, with n_jobs=. ff.recipe adds a recipe of your own"
    )


def fit_with(estimator: Any, about: About) -> Fit:
    """The recipe of an estimator, with what all of scikit-learn's have in common: checked parameters, names of features.

    Ends with what the recipe ends with.
    """
    import numpy as np

    found = recipe_of(estimator)
    if hasattr(estimator, "_validate_params"):
        estimator._validate_params()
    for name in ("feature_names_in_", "n_features_in_"):
        vars(estimator).pop(name, None)
    ended = yield from found(estimator, about)
    fitted = ended.estimator if isinstance(ended, Trained) else ended
    if about.n_features is not None:
        fitted.n_features_in_ = about.n_features
        if about.names is not None:
            fitted.feature_names_in_ = np.asarray(about.names, dtype=object)
    return ended

"""Which class of estimator has which recipe. A subclass has none of its own accord: its `fit` may do anything."""

import re
from collections.abc import Callable, Iterator
from importlib import import_module
from inspect import signature
from typing import Any

from fourfold.errors import MissingExtra, OptionError, OptionTypeError
from fourfold.workloads.fit.contract import About, Fit, Recipe, Trained
from fourfold.workloads.fit.recipes.checks import with_any_weight

OF_SKLEARN = {
    "ColumnTransformer": "composed.column_transformer",
    "CountVectorizer": "texts.count_vectorizer",
    "FeatureUnion": "composed.feature_union",
    "FunctionTransformer": "composed.function_transformer",
    "GaussianNB": "bayes.gaussian_nb",
    "HashingVectorizer": "texts.hashing_vectorizer",
    "KBinsDiscretizer": "bins.k_bins_discretizer",
    "KMeans": "kmeans.kmeans",
    "LinearRegression": "least_squares.linear_regression",
    "LogisticRegression": "logistic.logistic_regression",
    "MaxAbsScaler": "scaling.max_abs_scaler",
    "MinMaxScaler": "scaling.min_max_scaler",
    "MultinomialNB": "bayes.multinomial_nb",
    "OneHotEncoder": "categories.encoder",
    "OrdinalEncoder": "categories.encoder",
    "PCA": "least_squares.pca",
    "Pipeline": "composed.pipeline",
    "Ridge": "least_squares.ridge",
    "RobustScaler": "robust.robust_scaler",
    "SelectKBest": "selection.select_by_score",
    "SelectPercentile": "selection.select_by_score",
    "SimpleImputer": "imputing.simple_imputer",
    "StandardScaler": "scaling.standard_scaler",
    "TargetEncoder": "target_encoding.target_encoder",
    "TfidfVectorizer": "texts.tfidf_vectorizer",
    "VarianceThreshold": "selection.variance_threshold",
}
"""Classes of scikit-learn by name, and where the recipe is in `recipes/`: neither is imported before it is needed."""

LEAST_SKLEARN = (1, 9)
"""The oldest scikit-learn whose `fit` these recipes are equal to, as tests say. In 1.8 some take other rows and parameters."""

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
        MissingExtra: scikit-learn is older than its recipes.
        OptionError: It has none.
        OptionTypeError: It is no estimator.
    """
    if isinstance(estimator, type) or not hasattr(estimator, "fit"):
        raise OptionTypeError(f"fit({estimator!r}): give an estimator, such as StandardScaler()")
    found = _of_users.get(type(estimator))
    if found is not None:
        return found
    name = type(estimator).__name__
    if is_of_sklearn(estimator, name) and name in OF_SKLEARN:
        _check_version(name)
        module, _, function = OF_SKLEARN[name].partition(".")
        known: Recipe = getattr(import_module(f"fourfold.workloads.fit.recipes.{module}"), function)
        return known
    known_names = sorted({*OF_SKLEARN, *(cls.__name__ for cls in _of_users)})
    raise OptionError(
        f"there is no recipe that fits {name} from parts of the rows. There is one for {', '.join(known_names)}. Two ways on: "
        "one model per group, each by its own fit (fit_groups, with by=); and rows that fit into memory, to_pandas() has for "
        "its own fit, with n_jobs=. ff.recipe adds a recipe of your own"
    )


def _check_version(name: str) -> None:
    import sklearn

    found = tuple(int(each) for each in re.findall(r"\d+", sklearn.__version__)[:2])
    if found < LEAST_SKLEARN:
        least = ".".join(map(str, LEAST_SKLEARN))
        raise MissingExtra(
            f"scikit-learn {sklearn.__version__} is installed, and {name} is fitted from parts of the rows as the fit of "
            f"{least} and newer does it: pip install 'scikit-learn>={least}'. fit_groups takes it as it is"
        )


def check_fits(estimator: Any, has_target: bool, has_weight: bool) -> None:
    """Check, before anything runs, that an estimator and all within it have recipes and what these need.

    Raises:
        OptionError: One has no recipe, or needs a target that is not given, or takes no weights.
        OptionTypeError: One is no estimator.
    """
    recipe_of(estimator)
    name = type(estimator).__name__
    parts = list(parts_of(estimator))
    for each, is_last in parts:
        check_fits(each, has_target, has_weight and is_last)
    if has_weight and not parts and "sample_weight" not in signature(estimator.fit).parameters:
        raise OptionError(f"weight= is given, and {name} takes no weights: its fit has no sample_weight")
    if has_weight and parts and not any(is_last for _, is_last in parts):
        raise OptionError(f"weight= is given, and {name} takes no weights: they go to the last step of a Pipeline")
    if not has_target and hasattr(estimator, "__sklearn_tags__") and estimator.__sklearn_tags__().target_tags.required:
        raise OptionError(f"{name} learns to predict something, and nothing says what: name its column with target=")


def parts_of(estimator: Any) -> Iterator[tuple[Any, bool]]:
    """The estimators within one that is made of others, each with whether it is given the weights of rows."""
    inside = ("passthrough", "drop", None)
    for kind, within in (("Pipeline", "steps"), ("ColumnTransformer", "transformers"), ("FeatureUnion", "transformer_list")):
        if is_of_sklearn(estimator, kind):
            of = list(getattr(estimator, within))
            for at, part in enumerate(of):
                if not isinstance(part[1], str) and part[1] not in inside:
                    yield part[1], kind == "Pipeline" and at == len(of) - 1
    if is_of_sklearn(estimator, "ColumnTransformer") and estimator.remainder not in inside:
        yield estimator.remainder, False


def is_of_sklearn(estimator: Any, name: str) -> bool:
    """Whether this is an instance of the class of scikit-learn with this name, and not of a subclass."""
    return type(estimator).__name__ == name and type(estimator).__module__.partition(".")[0] == "sklearn"


def fit_with(estimator: Any, about: About) -> Fit:
    """The recipe of an estimator, with what all of scikit-learn's have in common: checked parameters, names of features.

    Ends with what the recipe ends with.
    """
    import numpy as np

    found = recipe_of(estimator)
    if hasattr(estimator, "_parameter_constraints"):  # of an estimator of somebody else there need be none
        estimator._validate_params()
    for name in ("feature_names_in_", "n_features_in_"):
        vars(estimator).pop(name, None)
    fit = found(estimator, about)
    if about.has_weight and not list(parts_of(estimator)) and is_of_sklearn(estimator, type(estimator).__name__):
        fit = with_any_weight(fit)
    ended = yield from fit
    fitted = ended.estimator if isinstance(ended, Trained) else ended
    if about.n_features is not None and not isinstance(getattr(type(fitted), "n_features_in_", None), property):
        fitted.n_features_in_ = about.n_features
        if about.names is not None:
            fitted.feature_names_in_ = np.asarray(about.names, dtype=object)
    return ended

"""Naive Bayes: figures of each column for each class."""

from typing import Any

from fourfold.workloads.fit.contract import About, Fit, Pass
from fourfold.workloads.fit.recipes.checks import check_target, dtype_of
from fourfold.workloads.fit.recipes.moments import ByClass, ColumnMoments, Sums
from fourfold.workloads.fit.recipes.selection import NotNegative
from fourfold.workloads.fit.seen import Numbers


def gaussian_nb(estimator: Any, about: About) -> Fit:
    """Source: scikit-learn, `GaussianNB._partial_fit`. The smoothing is by variances without weights, as there."""
    import numpy as np
    from sklearn.utils.multiclass import unique_labels

    check_target(estimator, about)
    if about.is_sparse:
        raise TypeError(
            "Sparse data was passed for X, but dense data is required. Use '.toarray()' to convert to a dense array."
        )
    seen, dtype = (Numbers(takes_nan=False),), dtype_of(about)
    (classes, moments), whole = yield [Pass(ByClass(ColumnMoments(about.has_weight)), seen), Pass(ColumnMoments(), seen)]
    estimator.classes_ = unique_labels(classes)  # refuses those of a regression
    estimator.epsilon_ = estimator.var_smoothing * whole.variance.max().astype(dtype)
    estimator.class_count_ = np.array([each.weight[0] for each in moments], dtype)
    means, variances = (np.array([getattr(each, name) for each in moments]) for name in ("mean", "variance"))
    estimator.theta_ = np.where(np.isnan(means), 0.0, means).astype(dtype)
    estimator.var_ = (np.where(np.isnan(variances), 0.0, variances) + estimator.epsilon_).astype(dtype)
    estimator.class_prior_ = _priors(estimator)
    return estimator


def _priors(estimator: Any) -> Any:
    import numpy as np

    if estimator.priors is None:
        return estimator.class_count_ / estimator.class_count_.sum()
    priors = np.asarray(estimator.priors, estimator.class_count_.dtype)
    if len(priors) != len(estimator.classes_):
        raise ValueError("Number of priors must match number of classes.")
    if not np.isclose(priors.sum(), 1.0):
        raise ValueError("The sum of the priors should be 1.")
    if (priors < 0).any():
        raise ValueError("Priors must be non-negative.")
    return priors


def multinomial_nb(estimator: Any, about: About) -> Fit:
    """Source: scikit-learn, `_BaseDiscreteNB.fit` and `MultinomialNB._count`."""
    import numpy as np
    from sklearn.utils.multiclass import unique_labels

    check_target(estimator, about)
    refuse = NotNegative("Negative values in data passed to MultinomialNB (input X).")
    classes, sums = yield Pass(ByClass(Sums(about.has_weight)), (Numbers(takes_nan=False), refuse))
    estimator.classes_ = unique_labels(classes)  # refuses those of a regression
    estimator.feature_count_ = np.array([each[0] for each in sums])
    estimator.class_count_ = np.array([each[1] for each in sums])
    estimator.n_features_in_ = estimator.feature_count_.shape[1]
    estimator._update_feature_log_prob(estimator._check_alpha())
    estimator._update_class_log_prior(class_prior=estimator.class_prior)
    return estimator

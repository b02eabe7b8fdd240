"""`fourfold.LogisticRegression`: Spark's objective and parameters, scikit-learn's interface."""

import warnings
from numbers import Integral, Real
from typing import Any

import numpy as np
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.exceptions import ConvergenceWarning
from sklearn.utils._param_validation import Interval, StrOptions
from sklearn.utils.extmath import safe_sparse_dot
from sklearn.utils.validation import _check_sample_weight, check_is_fitted, validate_data

from fourfold.errors import OptionTypeError
from fourfold.system.machine import jobs_of
from fourfold.workloads.fit.contract import About, Fit, drive
from fourfold.workloads.fit.logistic.memory import Memory
from fourfold.workloads.fit.logistic.training import Optimum, Problem, spark_stop, train
from fourfold.workloads.fit.registry import recipe
from fourfold.workloads.fit.seen import Numbers


class LogisticRegression(ClassifierMixin, BaseEstimator):  # type: ignore[misc]
    """Logistic regression, binomial or multinomial, trained in parallel: the model that Spark's trainer finds.

    `fit` takes rows in memory and works on threads; `Dataset.fit` takes rows that are anywhere, on any engine. Both give the
    same model. What is minimised is the weighted mean of the loss, plus
    reg_param · ((1 − elastic_net_param) / 2 · Σβ² + elastic_net_param · Σ|β|), over coefficients of columns that were divided
    by their deviation. Intercepts are free.

    Args:
        reg_param: How strong the penalty is; 0 for none.
        elastic_net_param: 0 for squares, 1 for absolute values, which make coefficients 0; between them, both.
        max_iter: Iterations at most.
        tol: It ends when the gradient is shorter than that share of the objective, or the objective has not fallen by more
            than that share of the first one in 20 iterations.
        fit_intercept: There is an intercept.
        standardization: The penalty is on coefficients of columns that were divided by their deviation. False: on those of
            columns as they are; then `C = 1 / (reg_param · rows)` of scikit-learn's LogisticRegression is the same model.
        class_weight: None, "balanced", or a dict of weights by class.
        n_jobs: Threads of `fit`; −1 for all cores that this process may use, None for one. They change no bit of the model.

    Attributes:
        classes_: The labels, in order.
        coef_: Coefficients, (1, columns) for two classes, else (classes, columns).
        intercept_: (1,) or (classes,).
        n_iter_: Iterations.
        objective_history_: The objective at the start and after each iteration.
        converged_: A rule ended it, not `max_iter`.
        n_features_in_: Columns.
        feature_names_in_: Their names, when all are texts.

    Guarantees: the same bits for any number of threads; for any number of workers and engine over the same pieces.

    Source: Spark, `ml/classification/LogisticRegression.scala`; deviations are of unbiased, weighted variances, as there.

    Example:
        >>> import fourfold as ff
        >>> model = ff.LogisticRegression(reg_param=0.01, max_iter=10).fit([[0, 1.1, 0.1], [2, 1, -1]], [1, 0])
        >>> model.coef_.round(3).tolist(), model.intercept_.round(3).tolist(), model.n_iter_
        ([[-1.227, 24.548, 2.232]], [-23.544], 9)
    """

    _parameter_constraints: dict[str, list[Any]] = {  # noqa: RUF012  scikit-learn reads it from the class
        "reg_param": [Interval(Real, 0, None, closed="left")],
        "elastic_net_param": [Interval(Real, 0, 1, closed="both")],
        "max_iter": [Interval(Integral, 0, None, closed="left")],
        "tol": [Interval(Real, 0, None, closed="left")],
        "fit_intercept": ["boolean"],
        "standardization": ["boolean"],
        "class_weight": [dict, StrOptions({"balanced"}), None],
        "n_jobs": [Integral, None],
    }

    def __init__(
        self,
        *,
        reg_param: float = 0.0,
        elastic_net_param: float = 0.0,
        max_iter: int = 100,
        tol: float = 1e-6,
        fit_intercept: bool = True,
        standardization: bool = True,
        class_weight: Any = None,
        n_jobs: int | None = -1,
    ) -> None:
        self.reg_param = reg_param
        self.elastic_net_param = elastic_net_param
        self.max_iter = max_iter
        self.tol = tol
        self.fit_intercept = fit_intercept
        self.standardization = standardization
        self.class_weight = class_weight
        self.n_jobs = n_jobs

    def fit(self, X: Any, y: Any, sample_weight: Any = None) -> "LogisticRegression":
        """Fit it to rows in memory, on threads. Arrays of floats and csr matrices are not copied.

        Args:
            X: An array, a DataFrame or a sparse matrix.
            y: Labels: numbers that are whole, texts or booleans.
            sample_weight: One weight per row; 0 leaves a row out.

        Raises:
            ValueError: X has a NaN or an infinite number, a weight is negative, or there is only one class.
        """
        self._validate_params()
        if type(X).__module__.partition(".")[0] == "fourfold":
            raise OptionTypeError(
                f"fit takes rows in memory, and X is a {type(X).__name__}: it has a fit of its own, "
                ".fit(LogisticRegression(…), target=…)"
            )
        n_threads = jobs_of(self.n_jobs)
        X, y = validate_data(
            self, X, y, accept_sparse="csr", dtype=[np.float64, np.float32], order=None, ensure_all_finite=False
        )
        if hasattr(X, "tocsr") and not X.has_canonical_format:
            X = X.copy()  # the caller's own stays as it is
            X.sum_duplicates()
        if sample_weight is not None:
            sample_weight = _check_sample_weight(sample_weight, X, dtype=np.float64)
        with Memory(X, np.asarray(y), sample_weight, n_threads) as rows:
            self._take(drive(train(self._problem(), (), getattr(self, "feature_names_in_", None)), rows.run))
        return self

    def _problem(self) -> Problem:
        ratio = self.elastic_net_param
        return Problem(
            lambda weight: (self.reg_param * (1 - ratio), self.reg_param * ratio),
            self.standardization,
            self.fit_intercept,
            self.class_weight,
            self.max_iter,
            self.tol,
            spark_stop(self.tol, has_corners=self.reg_param * ratio > 0),
        )

    def _take(self, optimum: Optimum) -> None:
        found = optimum.found
        self.classes_, self.coef_, self.intercept_ = optimum.classes, optimum.coef, optimum.intercept
        self.n_iter_, self.objective_history_ = len(found.history) - 1, found.history
        self.converged_ = found.is_converged
        self._weight = optimum.weight
        if not found.is_converged:
            warnings.warn(_unfinished(self.n_iter_, self.max_iter, found.gradient_norm), ConvergenceWarning, stacklevel=3)

    def decision_function(self, X: Any) -> Any:
        """The margin of each row: above 0 for the second of two classes; for more, one for each class."""
        check_is_fitted(self)
        X = validate_data(self, X, accept_sparse="csr", reset=False)
        margins = safe_sparse_dot(X, self.coef_.T, dense_output=True) + self.intercept_
        return margins.ravel() if len(self.classes_) == 2 else margins

    def predict(self, X: Any) -> Any:
        """The most probable class of each row."""
        margins = self.decision_function(X)
        return self.classes_[(margins > 0).astype(np.intp) if margins.ndim == 1 else margins.argmax(axis=1)]

    def predict_proba(self, X: Any) -> Any:
        """The probability of each class, for each row."""
        return np.exp(self.predict_log_proba(X))

    def predict_log_proba(self, X: Any) -> Any:
        """Its logarithm, finite where the probability is too small for a float."""
        margins = self.decision_function(X)
        if margins.ndim == 1:
            return -np.logaddexp(0.0, np.column_stack([margins, -margins]))
        margins -= margins.max(axis=1, keepdims=True)
        return margins - np.log(np.exp(margins).sum(axis=1, keepdims=True))

    def to_sklearn(self) -> Any:
        """A fitted LogisticRegression of scikit-learn that predicts the same.

        Fitted anew it finds the same model only with `standardization=False`: scikit-learn penalises columns as they are.
        """
        from sklearn.linear_model import LogisticRegression as OfSklearn

        check_is_fitted(self)
        C = 1.0 / (self.reg_param * self._weight) if self.reg_param else np.inf
        solver = "saga" if self.elastic_net_param and self.reg_param else "lbfgs"
        same = OfSklearn(
            C=C,
            l1_ratio=self.elastic_net_param,
            fit_intercept=self.fit_intercept,
            class_weight=self.class_weight,
            solver=solver,
            max_iter=self.max_iter,
            tol=self.tol,
        )
        for name in ("classes_", "coef_", "intercept_", "n_features_in_", "feature_names_in_"):
            if hasattr(self, name):
                setattr(same, name, getattr(self, name))
        same.n_iter_ = np.array([self.n_iter_], np.int32)
        return same

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.sparse = True
        return tags


def _unfinished(n_iter: int, max_iter: int, gradient_norm: float) -> str:
    if n_iter < max_iter:
        return (
            f"no step lowers the objective after {n_iter} iterations, and the gradient is still {gradient_norm:.2g} long: "
            "tol= asks for more than rounding allows, or columns nearly repeat each other"
        )
    return (
        f"max_iter={max_iter} iterations were not enough: the gradient is still {gradient_norm:.2g} long. Give a "
        "larger max_iter=; and where classes can be told apart without an error, a reg_param=, or coefficients grow for ever"
    )


@recipe(LogisticRegression)
def fit_from_parts(estimator: LogisticRegression, about: About) -> Fit:
    """How `Dataset.fit` does it."""
    if not about.has_target:
        raise ValueError("requires y to be passed, but the target y is None: name the column of labels with target=")
    ended = yield from train(estimator._problem(), (Numbers(takes_nan=False),), about.names)
    estimator._take(ended)
    return estimator

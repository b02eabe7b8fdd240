"""`fourfold.SearchCV`: scikit-learn's searches, with each fit an item."""

import os
import time
from collections.abc import Mapping, Sequence
from functools import partial
from numbers import Integral, Real
from typing import Any, Literal

import numpy as np
from sklearn import __version__ as sklearn_version
from sklearn.base import _fit_context, clone, is_classifier
from sklearn.metrics._scorer import _MultimetricScorer
from sklearn.model_selection import check_cv
from sklearn.model_selection._search import BaseSearchCV
from sklearn.model_selection._search_successive_halving import BaseSuccessiveHalving
from sklearn.utils._param_validation import HasMethods, Interval, StrOptions
from sklearn.utils.validation import _check_method_params, _num_samples, indexable

from fourfold.errors import MissingExtra
from fourfold.workloads.dataset import Dataset
from fourfold.workloads.tune.search.asked import METHODS, check_arguments, check_folds, named_rightly, options_of
from fourfold.workloads.tune.search.candidates import generated, has_rounds, n_fits_of, proposed
from fourfold.workloads.tune.search.datasets import Folds, asked_for, check_scores
from fourfold.workloads.tune.search.done import Done, Rows
from fourfold.workloads.tune.search.failed import why_all_fail
from fourfold.workloads.tune.search.incremental import Budget, Ladder, best_of
from fourfold.workloads.tune.search.placed import place_for
from fourfold.workloads.tune.search.rounds import Rounds
from fourfold.workloads.tune.search.shown import Shown

if not hasattr(BaseSearchCV, "set_callbacks"):
    raise MissingExtra(
        f"ff.SearchCV needs scikit-learn 1.9 or newer, and {sklearn_version} is installed: pip install -U scikit-learn"
    )


class SearchCV(BaseSearchCV):  # type: ignore[misc]
    """Search the parameters of an estimator by cross-validation, in parallel.

    It is GridSearchCV, RandomizedSearchCV, HalvingRandomSearchCV and a search by Optuna's TPE in one class, with their
    candidates, scores and attributes. Each fit of a candidate on a fold is an item: one that raises, crashes, or takes too
    long costs its own score. Candidates of a Pipeline that have their first steps alike share the fits of these, once per
    fold, unless the pipeline has a `memory`, or a step writes into its rows by `copy=False`.

    Args:
        estimator: Cloned for each fit.
        space: A dict from parameters' names to lists, or distributions of SciPy or Optuna; or a list of such dicts, of which a
            candidate is of one.
        method: "random" draws `n_trials` candidates. "grid" tries each combination of lists. "halving" draws many, and goes
            on with the best of them, with more rows each time. "tpe" proposes by what scored well before, eight at a time.
        n_trials: Candidates. None: 10; for "halving" as many as `min_resources` allows.
        cv: Folds, a splitter, or None for 5 folds, as everywhere in scikit-learn.
        scoring: A name or function, several of them, or None for the estimator's own `score`.
        refit: Fit the best candidate to all rows at the end. The name of a score when there are several, or a function of
            `cv_results_` that gives the row of the best.
        error_score: The score of a fit that failed; "raise" ends the search instead.
        return_train_score: Also score the rows that were trained on.
        random_state: Of candidates, and of the rows that "halving" draws. The same number gives the same candidates.
        n_jobs: Fits at once, in processes. None: one, in this process, or all workers of an `engine` that is given; −1: as
            many as there are cores.
        pruner: None, or `ff.ASHA` or `ff.Hyperband`, for an estimator with `partial_fit`. A resource is one pass over the rows
            then: all candidates begin with few, and the best go on from what they have learned. With "random" or "grid".
        engine: Where fits run, as in `fourfold.Options`. "auto": worker processes when there are several jobs.
        timeout: Seconds that one fit, with its scores, may take. Then fits are in processes, also with one job.
        run: A folder: the same call with it does what is left, after this process was killed, too.
        verbose: 0 for nothing; 1 for what is searched and a progress bar; more for a line per fit, as in scikit-learn.
        factor: Of "halving": the share of candidates that go on is one of so many, and they get as many times more.
        resource: Of "halving": what they get more of: "n_samples", or a parameter of the estimator.
        min_resources: Of "halving": how much the first candidates get: a number, "smallest" or "exhaust".
        max_resources: Of "halving": how much the last may get; "auto" for all rows.
        aggressive_elimination: Of "halving": take several rounds of the least resource when there are more candidates than
            resources for them.

    Attributes:
        cv_results_: A dict of arrays with an entry for each candidate, as in scikit-learn. The time of a fit counts shared
            steps as if it had been alone.
        best_estimator_, best_params_, best_score_, best_index_: Of the best candidate.
        failures_: A `FitFailure` for each fit that has no score of its own: candidate, fold, kind, reason and traceback.
        reports_: The `fourfold.Report` of each round, in fits.
        study_: Of "tpe": the `optuna.Study`.
        n_splits_, scorer_, multimetric_, refit_time_, n_resources_, n_candidates_ …: As in scikit-learn.

    Guarantees: candidates, scores and ranks are those of scikit-learn's searches, and the same for any number of jobs, on any
        engine, where the estimator's own fit is. Callbacks of scikit-learn are told of the search and the refit, not of fits.

    Example:
        >>> import fourfold as ff
        >>> from sklearn.datasets import load_iris
        >>> from sklearn.svm import SVC
        >>> X, y = load_iris(return_X_y=True)
        >>> search = ff.SearchCV(SVC(), {"C": [0.1, 1, 10], "kernel": ["linear", "rbf"]}, method="grid").fit(X, y)
        >>> search.best_params_, round(float(search.best_score_), 3)
        ({'C': 1, 'kernel': 'linear'}, 0.98)
    """

    _parameter_constraints: dict[str, Any] = {  # noqa: RUF012  scikit-learn reads it from the class
        **{name: rules for name, rules in BaseSearchCV._parameter_constraints.items() if name != "pre_dispatch"},
        **{
            name: BaseSuccessiveHalving._parameter_constraints[name]
            for name in ("random_state", "factor", "resource", "min_resources", "max_resources", "aggressive_elimination")
        },
        "space": [dict, list, tuple],
        "method": [StrOptions(set(METHODS))],
        "n_trials": [Interval(Integral, 1, None, closed="left"), None],
        "timeout": [Interval(Real, 0, None, closed="neither"), None],
        "run": [str, os.PathLike, None],
        "pruner": [HasMethods(["rungs"]), None],
        "engine": "no_validation",
    }

    @named_rightly
    def __init__(
        self,
        estimator: Any,
        space: Mapping[str, Any] | Sequence[Mapping[str, Any]],
        *,
        method: Literal["random", "grid", "halving", "tpe"] = "random",
        n_trials: int | None = None,
        cv: Any = None,
        scoring: Any = None,
        refit: Any = True,
        error_score: Any = np.nan,
        return_train_score: bool = False,
        random_state: Any = None,
        n_jobs: int | None = None,
        pruner: Any = None,
        engine: Any = "auto",
        timeout: float | None = None,
        run: str | os.PathLike[str] | None = None,
        verbose: int = 0,
        factor: float = 3,
        resource: str = "n_samples",
        min_resources: int | str = "smallest",
        max_resources: int | str = "auto",
        aggressive_elimination: bool = False,
    ) -> None:
        self.estimator = estimator
        self.space = space
        self.method = method
        self.n_trials = n_trials
        self.cv = cv
        self.scoring = scoring
        self.refit = refit
        self.error_score = error_score
        self.return_train_score = return_train_score
        self.random_state = random_state
        self.n_jobs = n_jobs
        self.pruner = pruner
        self.engine = engine
        self.timeout = timeout
        self.run = run
        self.verbose = verbose
        self.factor = factor
        self.resource = resource
        self.min_resources = min_resources
        self.max_resources = max_resources
        self.aggressive_elimination = aggressive_elimination

    # ---- fit -------------------------------------------------------------------------------------------------------------

    @_fit_context(prefer_skip_nested_validation=False)  # type: ignore[untyped-decorator]
    def fit(self, X: Any, y: Any = None, **params: Any) -> "SearchCV":
        """Try the candidates, and fit the best one.

        Args:
            X: Rows: an array, a DataFrame, a sparse matrix, or any that has a length and can be indexed. Or a Dataset: then
                give `target=`, and `features=`, `weight=` and `by=` as you like: docs/tune.md has what it can do.
            y: What to predict; None for an estimator that needs none.
            **params: Of the estimator's `fit`, cut to each fold where they are as long as X; `groups` for the splitter. With
                scikit-learn's metadata routing they go where they were requested.

        Returns:
            Itself.

        Raises:
            OptionError: An argument cannot be used; before anything runs.
            ValueError: All fits failed; the message has their errors.
            Exception: Under `error_score="raise"`: what a fit raised.
        """
        check_arguments(self)
        if isinstance(X, Dataset):
            return self._fit_dataset(X, y, params)
        options = options_of(self)
        scorers, refit_metric = self._get_scorers()
        X, y = indexable(X, y)
        params = _check_method_params(X, params=params)
        routed = self._get_routed_params_for_fit(params)
        weight = params.get("sample_weight")
        about = {"X": X, "y": y, "metadata": None if weight is None else {"sample_weight": weight}}
        told = self._init_callback_context(max_subtasks=1 + (self.refit is not False))
        told.call_on_fit_task_begin(estimator=self, **about)
        self._set_folds(X, y, routed)
        shown = Shown(self.n_splits_, self._metric())
        rounds = Rounds(options, self.run, self.timeout is not None, shown)
        goes_to = options["engine"] if has_rounds(self) and not rounds.is_recorded else None
        with shown.on_screen(n_fits_of(self), options), place_for((X, y), goes_to) as placed:
            rows = Rows(self, X, y, scorers, routed, rounds, placed)
            done = Done(self, rows.results, self._metric(), shown, partial(why_all_fail, self.estimator, y))
            if self.pruner is None:
                self._run_search(done.evaluate, callback_ctx=told, done=done)
            else:
                Ladder(self.pruner, list(self._generate_candidate_params()), rounds).search(done.scores)
        self._set_best(done, refit_metric)
        if self.refit:
            self._refit(X, y, routed, done.table, told.subcontext(task_name="refit-with-best-params"), about)
        self._set_done(done, scorers, rounds.reports)
        told.call_on_fit_task_end(estimator=self, **about)
        return self

    def _fit_dataset(self, dataset: Dataset, y: Any, params: Mapping[str, Any]) -> "SearchCV":
        """Of rows that are not in memory."""
        asked, options = asked_for(self, y, params), options_of(self)
        check_scores(self.estimator, self.scoring)
        scorers, refit_metric = self._get_scorers()
        shown = Shown()
        folds = Folds(self, dataset, asked, {**options, "progress": False}, scorers, shown)
        self.n_splits_ = shown.n_splits = folds.n_folds
        shown.metric = self._metric()
        done = Done(self, folds.results, self._metric(), shown)
        with shown.on_screen(n_fits_of(self), options):
            self._run_search(done.evaluate, done=done)
        self._set_best(done, refit_metric)
        if self.refit:
            began = time.time()
            self.best_estimator_ = folds.fitted(self.best_params_)
            self.refit_time_ = time.time() - began
            if hasattr(self.best_estimator_, "feature_names_in_"):
                self.feature_names_in_ = self.best_estimator_.feature_names_in_
        self._set_done(done, scorers, [])
        return self

    def _set_done(self, done: Done, scorers: Any, reports: Any) -> None:
        self.scorer_ = scorers._scorers if isinstance(scorers, _MultimetricScorer) else scorers
        self.cv_results_ = done.table
        self.failures_, self.reports_ = done.failures(), reports

    def _set_folds(self, X: Any, y: Any, routed: Any) -> None:
        self._checked_cv_orig = check_cv(self.cv, y, classifier=is_classifier(self.estimator))
        check_folds(self, self._checked_cv_orig)
        self._n_samples_orig = _num_samples(X)
        if self.method == "halving":
            BaseSuccessiveHalving._check_input_parameters(self, X=X, y=y, split_params=routed.splitter.split)
        self.n_splits_ = self._checked_cv_orig.get_n_splits(X, y, **routed.splitter.split)

    def _metric(self) -> str:
        """The name of the score to go by."""
        return self.refit if isinstance(self.refit, str) else "score"

    def _run_search(self, evaluate_candidates: Any, *, callback_ctx: Any = None, done: Done) -> None:
        """Scikit-learn's name for what calls `evaluate_candidates` with candidates until there are no more."""
        if self.method == "halving":
            BaseSuccessiveHalving._run_search(self, evaluate_candidates, callback_ctx=callback_ctx)
        elif self.method == "tpe":
            self.study_ = proposed(self, done.scores_once)
        else:
            evaluate_candidates(self._generate_candidate_params())

    def _generate_candidate_params(self) -> Any:
        """Scikit-learn's name for the candidates that do not depend on the scores of others."""
        return generated(self)

    def _set_best(self, done: Done, refit_metric: Any) -> None:
        """The best candidate, as far as there is one to look for."""
        done.end()
        table, several = done.table, next((each for each in done.scores_found() if isinstance(each, dict)), None)
        self.multimetric_ = several is not None
        if callable(self.scoring) and several is not None:  # it is known only now
            self._check_refit_for_multimetric(several)
            refit_metric = self.refit
        if not self.refit and self.multimetric_:
            return
        if self.method == "halving":
            select = BaseSuccessiveHalving._select_best_index
        else:
            select = self._select_best_index if self.pruner is None or callable(self.refit) else best_of
        self.best_index_ = select(self.refit, refit_metric, table)
        if self.method == "halving" or not callable(self.refit):
            self.best_score_ = table[f"mean_test_{refit_metric}"][self.best_index_]
        self.best_params_ = table["params"][self.best_index_]

    def _refit(self, X: Any, y: Any, routed: Any, table: Mapping[str, Any], told: Any, about: Mapping[str, Any]) -> None:
        best = clone(self.estimator).set_params(**clone(self.best_params_, safe=False))
        self.best_estimator_ = best
        with told.propagate_callback_context(best):
            told.call_on_fit_task_begin(estimator=self, **about)
            began = time.time()
            fit = best.fit if self.pruner is None else Budget(best, 0, int(table["n_resources"][self.best_index_]), y)
            fit(X, *([] if y is None else [y]), **routed.estimator.fit)
            self.refit_time_ = time.time() - began
        if hasattr(best, "feature_names_in_"):
            self.feature_names_in_ = best.feature_names_in_
        told.call_on_fit_task_end(estimator=self, **about)

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.array_api_support = False
        return tags

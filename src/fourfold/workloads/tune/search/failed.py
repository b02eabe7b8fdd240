"""Fits without a score of their own: who they are, and what is said of them, once for each search."""

import re
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from fourfold.workloads.tune.search.fits import Result

MOST_TEXTS = 5
"""Kinds of failures whose text is in a message. Fewer: the one that matters may be missing. More: nobody reads them."""


class FitFailure(NamedTuple):
    """A fit that has no score of its own, and why.

    Attributes:
        candidate: Its row in `cv_results_`.
        split: Its fold.
        params: The candidate.
        kind: "raised"; "unscored" where the fit is well and a score raised; or as in `fourfold.Failure` what became of its
            worker.
        reason: In a line.
        text: All that is known: the traceback, or the last words of the worker.
    """

    candidate: int
    split: int
    params: Mapping[str, Any]
    kind: str
    reason: str
    text: str


def failures_of(candidates: Sequence[Mapping[str, Any]], results: Sequence[Result], n_splits: int) -> list[FitFailure]:
    """Of results in order."""
    failures = []
    for at, result in enumerate(results):
        row, split = divmod(at, n_splits)
        kind, text = result.get("kind", "raised"), result["fit_error"]
        if text is None and "score_error" in result:
            kind, text = "unscored", result["score_error"]
        if text is not None:
            lines = text.strip().splitlines()
            reason = lines[-1] if kind in ("raised", "unscored") else lines[0]
            failures.append(FitFailure(row, split, candidates[row], kind, reason, text))
    return failures


def why_all_fail(estimator: Any, y: Any) -> str:
    """A likely cause that the target has; "" for none."""
    import numpy as np
    from sklearn.base import is_classifier
    from sklearn.utils import get_tags

    name = type(estimator).__name__
    if y is None and get_tags(estimator).target_tags.required:
        return f"{name} needs a target, and there is none: fit(X, y)."
    if y is not None and is_classifier(estimator):
        try:
            classes = set(np.asarray(y).ravel().tolist())
        except TypeError:  # of several targets, sparse
            return ""
        if len(classes) == 1:
            return f"y has one class only, {classes.pop()!r}: there is nothing to tell apart."
    return ""


def raise_if_all_failed(failures: Sequence[FitFailure], n_fits: int, why: Callable[[], str]) -> None:
    """Say that no fit has been one; `why` has a likely cause, or "".

    Raises:
        ValueError: They have all failed.
    """
    failed = [each for each in failures if each.kind != "unscored"]
    if failed and len(failed) == n_fits:
        advice = why() or 'error_score="raise" ends a search at the first fit that fails, with its traceback.'
        raise ValueError(f"All the {n_fits} fits failed. {advice}\n{_texts(failed)}")


def warn_of(failures: Sequence[FitFailure], n_fits: int, error_score: Any) -> None:
    """Warn of those that have failed, and of those without a score."""
    from sklearn.exceptions import FitFailedWarning

    failed = [each for each in failures if each.kind != "unscored"]
    if failed:
        warnings.warn(
            f"\n{len(failed)} fits failed out of a total of {n_fits}: their scores are {error_score}, and failures_ has "
            f"what each of them died of.\n{_texts(failed)}",
            FitFailedWarning,
            stacklevel=2,
        )
    unscored = [each for each in failures if each.kind == "unscored"]
    if unscored:
        warnings.warn(
            f"\nScoring failed for {len(unscored)} fits out of a total of {n_fits}: their score is {error_score}, and "
            f"failures_ has what each score raised.\n{_texts(unscored)}",
            UserWarning,
            stacklevel=2,
        )


def _texts(failures: Iterable[FitFailure]) -> str:
    """One text for those that differ in numbers only, such as that of a process."""
    alike: dict[str, list[FitFailure]] = {}
    for each in failures:
        alike.setdefault(re.sub(r"\d+", "0", f"{each.kind} {each.reason}"), []).append(each)
    parts = []
    for group in list(alike.values())[:MOST_TEXTS]:
        first = group[0]
        others = "" if len(group) == 1 else f" and {len(group) - 1} more"
        who = f"candidate {first.candidate}, {dict(first.params)}, on fold {first.split}"
        parts.append(f"{'-' * 80}\n{who}{others}:\n{first.text.strip()}")
    if len(alike) > MOST_TEXTS:
        parts.append(f"{'-' * 80}\n{len(alike) - MOST_TEXTS} other reasons")
    return "\n".join(parts)

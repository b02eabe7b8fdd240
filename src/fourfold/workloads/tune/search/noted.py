"""Scorers that keep what they raise, where those of scikit-learn warn of it fit by fit."""

from traceback import format_exc
from typing import Any

from sklearn.metrics._scorer import _MultimetricScorer


def noted(scorer: Any, error_score: Any) -> "Noted | NotedEach":
    """A scorer for one fit, which gives `error_score` for a score that cannot be had, and has in `errors` why."""
    return (NotedEach if isinstance(scorer, _MultimetricScorer) else Noted)(scorer, error_score)


class Noted:
    """Of one score, or a function of several."""

    def __init__(self, scorer: Any, error_score: Any) -> None:
        self._scorer, self._error_score = scorer, error_score
        self.errors: list[str] = []

    def __call__(self, estimator: Any, *args: Any, **params: Any) -> Any:
        """The score."""
        try:
            return self._scorer(estimator, *args, **params)
        except Exception:
            if self._error_score == "raise":
                raise
            self.errors.append(format_exc())
            return self._error_score

    def __repr__(self) -> str:
        return repr(self._scorer)  # messages of scikit-learn have it


class NotedEach(_MultimetricScorer):  # type: ignore[misc]
    """Of several: the others have their scores when one has none."""

    def __init__(self, scorer: Any, error_score: Any) -> None:
        super().__init__(scorers=scorer._scorers, raise_exc=scorer._raise_exc)
        self._error_score = error_score
        self.errors: list[str] = []

    def __call__(self, estimator: Any, *args: Any, **params: Any) -> dict[str, Any]:
        """The scores, by name."""
        scores: dict[str, Any] = super().__call__(estimator, *args, **params)
        for name, score in scores.items():
            if isinstance(score, str):  # the traceback
                self.errors.append(f"{name}: {score}")
                scores[name] = self._error_score
        return scores

"""L-BFGS and OWL-QN, as generators: each yields a point, and is sent the value and the gradient there.

The start of each step, the bounds of the line searches and the rules of when to stop are Breeze's, so that a fit takes the
iterations that Spark takes.

Source: Nocedal and Wright, "Numerical Optimization", 2nd edition, algorithms 3.5, 3.6 and 7.4; Andrew and Gao (2007),
"Scalable training of L1-regularized log-linear models"; Breeze, `optimize/` (FirstOrderMinimizer, StrongWolfe, OWLQN).
"""

import math
from collections import deque
from collections.abc import Callable, Generator
from typing import Any, NamedTuple

MEMORY = 10
"""Steps that the curvature is taken from, as Spark has it."""

RECENT = 20
"""Values that one is compared with, to see whether there is progress."""

LEAST_GRADIENT = 1e-8
"""A gradient that short is one of 0, whatever the tolerance: Breeze's number."""

LEAST_AT_CORNERS = 1e-10
"""The same where absolute values are penalised: there the last steps gain less, and with Breeze's number coefficients of some
thousandths are off by 3e-5 of themselves."""

ROUNDING = 1e-6
"""Where no step lowers the value and the gradient is that short, rounding is the reason, and not a fault."""

ARMIJO, CURVATURE = 1e-4, 0.9
DIGITS = 1e-15
"""A share of a value that is rounding. Near the end values differ by no more, while slopes still tell where it is lower:
without it, coefficients of some thousandths were off by 2e-5 of themselves."""

SEARCHES, ZOOMS, BACKTRACKS = 10, 10, 20


class Point(NamedTuple):
    """A place, the value there with all penalties, the gradient of the smooth part, and the least one of all subgradients."""

    x: Any
    value: float
    gradient: Any
    slope: Any


class Found(NamedTuple):
    """Where it ended.

    Attributes:
        x: The place.
        history: The value at the start and after each iteration.
        is_converged: A rule ended it that says so, not the number of iterations.
        gradient_norm: How long the gradient is there.
    """

    x: Any
    history: list[float]
    is_converged: bool
    gradient_norm: float


class SearchFailed(Exception):
    """A line search found no step that is good enough."""


Asking = Generator[Any, tuple[float, Any], Any]
Stop = Callable[[Point, float], bool]


def by_gradient(tol: float, least: float) -> Stop:
    """Breeze's rule: the gradient is short, measured by the value."""
    return lambda point, norm: norm <= max(tol * abs(point.value), least)


def minimise(start: Any, l1: Any, max_iter: int, tol: float, is_flat: Stop) -> Asking:
    """Search the lowest value, from a start.

    Args:
        start: An array.
        l1: How much the absolute value of each coordinate costs, which is not in what is sent; all 0: nothing.
        max_iter: Steps at most.
        tol: Progress over some iterations that is none, as a share of the first value.
        is_flat: Whether a point is good enough, by the length of its slope.

    Returns:
        A Found.
    """
    import numpy as np

    has_corners = bool(np.any(l1 > 0))
    point = yield from _at(start, l1)
    history, recent = [point.value], deque([math.inf], RECENT)
    pairs: deque[tuple[Any, Any]] = deque(maxlen=MEMORY)
    has_failed = False
    while True:
        norm = _norm(point.slope)
        is_still = abs(point.value - max(recent)) <= tol * abs(history[0])
        if is_flat(point, norm) or is_still or len(history) > max_iter:
            return Found(point.x, history, bool(is_flat(point, norm) or is_still), norm)
        direction = -_times_inverse(pairs, point.slope)
        try:
            if has_corners:
                direction[direction * point.slope >= 0] = 0.0
                after = yield from _backtracked(point, direction, l1, is_first=len(history) == 1)
            else:
                after = yield from _searched(point, direction, l1, 1.0 / _norm(direction) if len(history) == 1 else 1.0)
        except SearchFailed:
            if has_failed:
                return Found(point.x, history, norm <= ROUNDING, norm)
            has_failed = True
            pairs.clear()
            continue
        has_failed = False
        _remember(pairs, after.x - point.x, after.gradient - point.gradient)
        point = after
        history.append(point.value)
        recent.append(point.value)


def _at(x: Any, l1: Any) -> Asking:
    import numpy as np

    value, gradient = yield x
    value += float((l1 * np.abs(x)).sum())
    side = gradient + l1 * np.sign(x)
    corner = np.sign(gradient) * np.maximum(np.abs(gradient) - l1, 0.0)
    return Point(x, value, gradient, np.where(x == 0, corner, side))


def _norm(x: Any) -> float:
    return math.sqrt(float((x * x).sum()))


def _dot(a: Any, b: Any) -> float:
    return float((a * b).sum())


def _remember(pairs: deque[tuple[Any, Any]], step: Any, change: Any) -> None:
    """Keep what a step has told of the curvature. Of a line without any, rounding is all that it has told."""
    if _dot(step, change) > 1e-14 * _norm(step) * _norm(change):
        pairs.append((step, change))


def _times_inverse(pairs: deque[tuple[Any, Any]], vector: Any) -> Any:
    """The vector times the inverse of the curvature, as far as that is known: the two loops of L-BFGS."""
    found, shares = vector.copy(), []
    for step, change in reversed(pairs):
        share = _dot(step, found) / _dot(step, change)
        found -= share * change
        shares.append(share)
    if pairs:
        step, change = pairs[-1]
        found *= _dot(step, change) / _dot(change, change)
    for (step, change), share in zip(pairs, reversed(shares), strict=True):
        found += (share - _dot(change, found) / _dot(step, change)) * step
    return found


# ---- L-BFGS: a line search with the strong conditions of Wolfe ------------------------------------------------------------


class _Place(NamedTuple):
    """A place on the line: how far, how steep, how high, and the point."""

    t: float
    steep: float
    value: float
    point: Point


def _searched(start: Point, direction: Any, l1: Any, first: float) -> Asking:
    """The point that a step along the line ends at."""

    def along(t: float) -> Asking:
        point = yield from _at(start.x + t * direction, l1)
        return _Place(t, _dot(point.gradient, direction), point.value, point)

    origin = low = _Place(0.0, _dot(start.gradient, direction), start.value, start)
    if not origin.steep < 0:
        raise SearchFailed
    t = first
    for number in range(SEARCHES):
        here = yield from along(t)
        if not math.isfinite(here.value):
            t /= 2.0
            continue
        if here.value > origin.value + ARMIJO * t * origin.steep or (here.value >= low.value and number > 0):
            return (yield from _zoomed(along, origin, low, here))
        if abs(here.steep) <= CURVATURE * abs(origin.steep):
            return here.point
        if here.steep >= 0:
            return (yield from _zoomed(along, origin, here, low))
        low, t = here, t * 1.5
    raise SearchFailed


def _zoomed(along: Callable[[float], Asking], origin: _Place, low: _Place, high: _Place) -> Asking:
    for _ in range(ZOOMS):
        here = yield from along(_between(high, low) if low.t > high.t else _between(low, high))
        if here.value > origin.value + ARMIJO * here.t * origin.steep or here.value >= low.value:
            high = here
            continue
        if abs(here.steep) <= CURVATURE * abs(origin.steep):
            return here.point
        if here.steep * (high.t - low.t) >= 0:
            high = low
        low = here
    raise SearchFailed


def _between(left: _Place, right: _Place) -> float:
    """Where the cubic through both is lowest, not too near to either."""
    width = right.t - left.t
    least, most = left.t + 0.1 * width, left.t + 0.9 * width
    d1 = left.steep + right.steep - 3 * (left.value - right.value) / (left.t - right.t)
    under = d1 * d1 - left.steep * right.steep
    d2 = math.sqrt(under) if under > 0 else 0.0
    below = right.steep - left.steep + 2 * d2
    t = right.t - width * (right.steep + d2 - d1) / below if below else math.nan
    return min(max(t, least), most) if math.isfinite(t) else left.t + 0.5 * width


# ---- OWL-QN: steps stay in the orthant that they begin in ----------------------------------------------------------------


def _backtracked(start: Point, direction: Any, l1: Any, is_first: bool) -> Asking:
    import numpy as np

    orthant = np.where(start.x != 0, np.sign(start.x), -np.sign(start.slope))
    steep = _dot(start.slope, direction)
    if not steep < 0:
        raise SearchFailed
    t, shrink = (0.5 / _norm(start.gradient), 0.1) if is_first else (1.0, 0.5)
    for _ in range(BACKTRACKS):
        x = start.x + t * direction
        here = yield from _at(np.where((np.sign(x) == orthant) | (l1 == 0), x, 0.0), l1)
        there = _dot(here.slope, direction)
        if not here.value <= start.value + ARMIJO * t * steep + DIGITS * abs(start.value):
            t *= shrink
        elif there < CURVATURE * steep:
            t *= 2.1
        elif there > -CURVATURE * steep:
            t *= shrink
        else:
            return here
    raise SearchFailed

"""The rows of the table: how a race is judged.

Each judge takes a race and a bar and returns one row. A row whose bar could not be measured is a miss, not a
gap.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from measure import Race

LOOP = "loop"
FOURFOLD = "fourfold"


@dataclass(frozen=True)
class Row:
    """One case of a promise, judged.

    Args:
        promise: "P1" …
        case: What was run.
        figure: What the bar speaks of; None when it could not be measured.
        unit: How to read `figure`: "× loop", "of 2×", "ms" …
        bar: The promised limit, None where the row is for orientation only.
        is_met: Whether the promise is kept; None where there is no bar.
        is_lower_better: The side of the bar that is kept.
        loop_s: Median seconds of the plain loop.
        fourfold_s: Median seconds of fourfold.
        peer: The best peer, with its setting.
        peer_s: Its median seconds.
        note: fourfold's own verdict, or why there is no figure.
        laps_s: Seconds of each round of each contestant.
        settings: The setting that each ran with.
        errors: Contestants and settings that failed, with their error.
    """

    promise: str
    case: str
    figure: float | None
    unit: str
    bar: float | None
    is_met: bool | None
    is_lower_better: bool = True
    loop_s: float | None = None
    fourfold_s: float | None = None
    peer: str = ""
    peer_s: float | None = None
    note: str = ""
    laps_s: Mapping[str, Sequence[float]] = field(default_factory=dict)
    settings: Mapping[str, str] = field(default_factory=dict)
    errors: Mapping[str, str] = field(default_factory=dict)


def against_the_loop(promise: str, case: str, race: Race, bar: float, slack_s: float = 0.0, name: str = FOURFOLD) -> Row:
    """At most `bar` times the loop's seconds, or at most `slack_s` more than them."""
    figure, excess_s = race.ratio(name, LOOP), race.excess_s(name, LOOP)
    is_met = figure is not None and (figure <= bar or (excess_s or 0.0) <= slack_s)
    return _row(promise, case, race, figure, "× loop", bar, is_met, name=name)


def against_the_best_peer(
    promise: str, case: str, race: Race, peers: Sequence[str], bar: float | None, name: str = FOURFOLD
) -> Row:
    """At most `bar` times the seconds of the peer with the lowest median."""
    best = race.best(peers)
    figure = race.ratio(name, best) if best else None
    is_met = None if bar is None else figure is not None and figure <= bar
    return _row(promise, case, race, figure, f"× {best or 'peer'}", bar, is_met, peers, name)


def as_efficiency(
    promise: str,
    case: str,
    race: Race,
    workers: int,
    bar: float | None,
    longest_share: float = 0.0,
    name: str = FOURFOLD,
) -> Row:
    """At least `bar` of the shortest possible time, max(loop / workers, longest item)."""
    share = max(1 / workers, longest_share)
    figure = race.median_of(lambda ours, loop: loop * share / ours, name, LOOP)
    is_met = None if bar is None else figure is not None and figure >= bar
    peers = [other for other in race.laps_s if other != LOOP and not other.startswith((FOURFOLD, "bare"))]
    return _row(promise, case, race, figure, "of ideal", bar, is_met, peers, name, is_lower_better=False)


def without_figure(promise: str, case: str, why: str) -> Row:
    """A row that says why there is nothing to compare: a miss."""
    return Row(promise, case, None, "", None, False, note=why)


def _row(
    promise: str,
    case: str,
    race: Race,
    figure: float | None,
    unit: str,
    bar: float | None,
    is_met: bool | None,
    peers: Sequence[str] = (),
    name: str = FOURFOLD,
    is_lower_better: bool = True,
) -> Row:
    best = race.best(peers)
    setting = race.settings.get(best or "", "")
    return Row(
        promise,
        case,
        figure,
        unit,
        bar,
        is_met,
        is_lower_better,
        loop_s=race.median_s(LOOP),
        fourfold_s=race.median_s(name),
        peer=f"{best} ({setting})" if setting else best or "",
        peer_s=race.median_s(best) if best else None,
        note=race.errors.get(name) or race.notes.get(name, ""),
        laps_s=race.laps_s,
        settings=race.settings,
        errors=race.errors,
    )

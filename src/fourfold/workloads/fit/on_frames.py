"""Passes over a frame that lives in a cluster: each is one job there, and its partitions take the places of pieces.

partition ──steps──> tables ──Gather──> Part     where the rows are: one row with a pickled Part comes back
kept rows ──FoldKept──> Part                     the next time: told by tasks that stay, where the cluster has such
Part, Part, … ──combine, in the order of partitions──> finish                                        here
"""

import pickle
from collections.abc import Sequence
from itertools import accumulate
from typing import Any

from fourfold.data.frames import FrameFold, FrameKind, FrameKnown, FramePass, Steps
from fourfold.data.staying import Members, MembersLost
from fourfold.data.steps import Step
from fourfold.workloads.fit.checking import CheckTarget
from fourfold.workloads.fit.contract import Pass
from fourfold.workloads.fit.fitting import driven, features_for
from fourfold.workloads.fit.kept import Kept, name_in
from fourfold.workloads.fit.passes import FoldKept, Gather, finished
from fourfold.workloads.fit.seen import Features
from fourfold.workloads.fit.views import Part, Views


class FramePasses:
    """Looks at all rows of a frame, as often as a recipe wants.

    Args:
        kind: Of frame.
        frame: Its partitions are the same ones in each job, in the same order.
        run: The steps on it.
        features: What rows its tables are.
    """

    def __init__(self, kind: FrameKind, frame: Any, run: FramePass, features: Features) -> None:
        self._kind, self._frame, self._run, self._features = kind, frame, run, features
        self._kept, self._views = Kept(name_in(None)), Views()
        self._counts: list[int] | None = None
        self._asks = True
        self._has_invited = False
        self._members: Members | None = None

    def run(self, passes: list[Pass]) -> list[Any]:
        """Do these at once. Gives what each finished with.

        Raises:
            ValueError: There are no rows, or other ones than in the job before; or an aggregator refuses them.
            Exception: What the cluster makes of an error of a row.
        """
        parts = self._parts(passes)
        counts = [part.n_rows for part in parts]
        if self._counts not in (None, counts):
            raise ValueError(
                f"{self._kind.name} had other partitions in the job before: a fit that goes through the rows several times "
                "needs the same ones each time. Cache or persist it, or write it into files and scan these"
            )
        self._counts = counts
        if not sum(counts):
            raise ValueError("there are no rows to fit")
        return finished(passes, parts)

    def close(self) -> None:
        """Forget what was kept, and let go of those who were asked for it."""
        self._dismiss()
        self._kept.forget()

    def _parts(self, passes: list[Pass]) -> list[Part]:
        if any(each.keep for each in passes):
            self._kept.open()
        firsts = None if self._counts is None else dict(enumerate(accumulate(self._counts, initial=0)))
        wanted, kept = self._views.asked(passes, firsts)
        known = None if kept is None else FoldKept(kept, self._kept, self._features)
        found = self._known(known) if known is not None and self._asks else []
        if not found or not all(found):
            self._dismiss()  # they have the slots that the job wants
            gather = Gather(self._features, wanted, self._kept)
            fold = FrameFold(self._run, gather, None if known is None else FrameKnown(known))
            found = self._kind.gather(self._frame, fold)
        return [pickle.loads(each) for each in found]

    def _known(self, known: FoldKept) -> list[bytes]:
        """What is known of each partition without its rows, b"" of others: told by tasks that stay, or else by a job."""
        n_partitions = len(self._counts or ())
        try:
            if not self._has_invited:
                self._has_invited = True
                self._members = self._kind.members(self._frame, n_partitions)
                if self._members is not None:
                    self._members.share(range(n_partitions), FrameKnown(known.is_there))
            if self._members is not None:
                return self._members.ask(FrameKnown(known))
        except MembersLost:
            self._dismiss()
        found = self._kind.known(self._frame, FrameKnown(known), n_partitions)
        self._asks = sum(map(bool, found)) * 2 > len(found)  # else tasks come to other machines than those with the rows
        return found

    def _dismiss(self) -> None:
        if self._members is not None:
            self._members.close()
            self._members = None


def fitted_to_frame(
    kind: FrameKind,
    frame: Any,
    before: Any,
    steps: Sequence[Step],
    schema: Any,
    estimator: Any,
    target: str | None,
    features: Sequence[str] | None,
    weight: str | None,
) -> Any:
    """The estimator, fitted to a frame behind these steps: see `Frame.fit`."""
    of = features_for(estimator, schema, target, features, weight)
    checked = (*steps, CheckTarget(target, weight)) if of.beside else tuple(steps)
    passes = FramePasses(kind, kind.settled(frame), FramePass(Steps.here(checked), before, schema), of)
    return driven(estimator, of, schema, passes)

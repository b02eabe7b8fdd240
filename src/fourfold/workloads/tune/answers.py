"""What trials ask the desk for: each request is a method of its name."""

import logging
import math
from typing import Any

from fourfold.records import Failure
from fourfold.workloads.tune import states
from fourfold.workloads.tune.ahead import Guess, Stand
from fourfold.workloads.tune.asking import Job, NotYet, Withdrawn
from fourfold.workloads.tune.desk import Desk
from fourfold.workloads.tune.drawing import given
from fourfold.workloads.tune.opened import End, Open, asked, suggest
from fourfold.workloads.tune.rungs import Decision
from fourfold.workloads.tune.study_there import OF_STUDY

SUGGESTIONS = frozenset({"suggest_float", "suggest_int", "suggest_categorical"})
OF_TRIAL = frozenset({"params", "distributions", "user_attrs", "constraints"})
REQUESTS = frozenset(
    {
        *("job", "end", "raised", "again", "suggest", "suggested", "report", "should_prune", "checkpoint", "restore", "quiet"),
        *("set_user_attr", "set_system_attr", "system_attrs", "set_constraint", "get", "study"),
    }
)


class Answers:
    """Answers requests, one at a time.

    Args:
        desk: What they are about.
    """

    def __init__(self, desk: Desk) -> None:
        self._desk, self._study = desk, desk.study
        self._has_warned = False

    def handle(self, what: str, args: tuple[Any, ...]) -> Any:
        """Do what is asked for.

        Raises:
            Exception: What Optuna raises.
        """
        if what not in REQUESTS:
            raise ValueError(f"there is no request {what!r}")
        if what == "job":
            return self.job(*args)
        key, *others = args
        number = key if key >= 0 else self._guessed(key, what, tuple(others))
        return number if number is NotYet else getattr(self, what)(number, *others)

    def _guessed(self, key: int, what: str, args: tuple[Any, ...]) -> Any:
        """The number of a trial that was begun before the study had it; NotYet while it has not."""
        with self._desk.changed:
            guess = self._desk.ahead.of_key(key)
            if what == "suggested" and guess.stand is Stand.OPEN:
                guess.said.append(args)
                return NotYet
            self._desk.wait_while_open(guess)
            if guess.stand is Stand.WITHDRAWN:
                raise Withdrawn
            return NotYet if guess.stand is Stand.OPEN else guess.number

    def job(self, ticket: int) -> Job | None:
        """A trial to run."""
        here = self._desk.job(ticket)
        if here is None:
            return None
        of_study = tuple(each.name for each in self._study.directions), self._study.study_name
        if isinstance(here, Guess):
            return Job(here.number, here.started, *of_study, here.attempts, here.given, guess=here.key)
        trial = here.trial
        is_first = trial.number == self._desk.way.first and self._desk.wait_s > 0
        return Job(trial.number, trial.datetime_start, *of_study, here.attempts, given(trial, here.sampler), is_first)

    def end(self, number: int, kind: str, value: Any) -> None:
        """A trial has come to its end, or to a point where it was told to."""
        with self._desk.changed:
            here = self._of(number)
            if kind == "pruned" and here.is_to_pause:
                here.is_to_pause = False
                self._desk.paused(number)
                return
            if kind == "value":
                self._warn_of_silence(here)
            end = End(states.PRUNED) if kind == "pruned" else end_of(value, len(self._study.directions))
            if end.state == states.INVALID:
                self._desk.failures.append(_invalid(here, end))
            self._desk.ended(number, end)

    def raised(self, number: int) -> None:
        """The objective has raised: what becomes of the trial the outcome of its ticket says."""
        with self._desk.changed:
            here = self._desk.open.get(number)
            if here is not None:
                here.ticket = None

    def again(self, number: int) -> bool:
        """Whether a trial that has raised what may be tried again is."""
        with self._desk.changed:
            self._of(number)
            return self._desk.again(number)

    def suggest(self, number: int, how: str, args: tuple[Any, ...], named: dict[str, Any]) -> Any:
        """A value for a parameter."""
        if how not in SUGGESTIONS:
            raise ValueError(f"a trial has no {how!r}")
        with self._desk.changed:
            try:
                return suggest(self._of(number), how, args, named)
            finally:
                self._desk.has_asked(number)

    suggested = suggest

    def quiet(self, number: int) -> None:
        """It computes, and will probably ask for no other parameter."""
        with self._desk.changed:
            if number == self._desk.way.first:
                self._desk.ahead.is_quiet()
                self._desk.changed.notify_all()

    def report(self, number: int, value: Any, step: Any) -> None:
        """An intermediate value."""
        with self._desk.changed:
            here = self._of(number)
            if here.attempts > 1 and step in here.reported_steps:  # it has begun anew, and says the same again
                return
            here.trial.report(value, step)
            here.reported_steps.add(int(step))
            here.last = (int(step), float(value))
            here.reported.append(here.last)

    def should_prune(self, number: int) -> bool:
        """Whether it should end, or pause."""
        with self._desk.changed:
            here, rungs = self._of(number), self._desk.rungs
            if rungs is None:
                return here.trial.should_prune()
            if not self._desk.checkpoints.has(number):
                must_stop = here.trial.should_prune()
                if must_stop:
                    self._warn()
                return must_stop
            for step, value in here.reported:
                here.is_to_pause = rungs.report(number, step, self._desk.sign * value) == Decision.PAUSE
            here.reported.clear()
            return here.is_to_pause

    def _warn(self) -> None:
        if not self._has_warned:
            self._has_warned = True
            logging.getLogger("fourfold").warning(
                "trials keep nothing by trial.checkpoint(…): those that %s stops early cannot go on later, and are pruned",
                type(self._study.pruner).__name__,
            )

    def _warn_of_silence(self, here: Open) -> None:
        if self._desk.rungs is not None and not here.reported_steps and not self._has_warned:
            self._has_warned = True
            logging.getLogger("fourfold").warning(
                "trial %d has ended and has reported nothing: %s compares what trials give trial.report(value, step), and "
                "stops none without",
                here.trial.number,
                type(self._study.pruner).__name__,
            )

    def checkpoint(self, number: int, data: bytes) -> None:
        """Keep what it wants to go on with."""
        with self._desk.changed:
            here = self._of(number)
            reports = self._study._storage.get_trial(here.trial._trial_id).intermediate_values
            user_attrs = dict(here.user_attrs)
        self._desk.checkpoints.put(number, data, reports, user_attrs)
        with self._desk.changed:
            if self._desk.open.get(number) is not here or here.end is not None:  # it was stopped meanwhile
                self._desk.checkpoints.drop(number)

    def restore(self, number: int) -> bytes | None:
        """What was kept."""
        return self._desk.checkpoints.get(number)

    def set_user_attr(self, number: int, key: str, value: Any) -> None:
        """Something of the user's."""
        with self._desk.changed:
            here = self._of(number)
            here.trial.set_user_attr(key, value)
            here.user_attrs[key] = value

    def set_system_attr(self, number: int, key: str, value: Any) -> None:
        """Something of a sampler's or pruner's."""
        with self._desk.changed:
            self._desk.book.set(self._of(number), key, value)

    def system_attrs(self, number: int) -> dict[str, Any]:
        """What samplers, pruners and we have noted."""
        with self._desk.changed:
            return dict(self._study._storage.get_trial_system_attrs(self._of(number).trial._trial_id))

    def set_constraint(self, number: int, key: str, value: Any) -> None:
        """How far it is from being feasible."""
        with self._desk.changed:
            self._of(number).trial.set_constraint(key, value)

    def get(self, number: int, what: str) -> Any:
        """Something that is known of it."""
        if what not in OF_TRIAL:
            raise ValueError(f"a trial has no {what!r}")
        with self._desk.changed:
            here = self._of(number)
            return dict(here.user_attrs) if what == "user_attrs" else getattr(here.trial, what)

    def study(self, number: int, what: str, args: tuple[Any, ...] | None) -> Any:
        """Something of the study; with arguments it is a method."""
        if what not in OF_STUDY:
            raise ValueError(f"a study has no {what!r} for its trials")
        with self._desk.changed, asked(self._study):
            found = getattr(self._study, what)
            return found if args is None else found(*args)

    def _of(self, number: int) -> Open:
        here = self._desk.open.get(number)
        if here is None or here.end is not None:
            raise ValueError(f"trial {number} is over: the study does not wait for it any more")
        return here


def end_of(value: Any, n_values: int) -> End:
    """What a returned value makes of a trial."""
    values = value if isinstance(value, list) else [value]
    for each in values:
        if each is None:
            return End(states.INVALID, error="the objective returned None, and a number is wanted")
        if isinstance(each, str):
            return End(states.INVALID, error=f"the objective returned {each}, which is no number")
        if math.isnan(each):
            return End(states.INVALID, error="the objective returned nan")
    if len(values) != n_values:
        return End(
            states.INVALID, error=f"the objective returned {len(values)} values, and the study has {n_values} directions"
        )
    return End(states.COMPLETE, values)


def _invalid(here: Open, end: End) -> Failure:
    item = f"trial {here.trial.number} with {here.trial.params}"
    return Failure(here.trial.number, states.INVALID, None, "", end.error, "", item, attempts=here.attempts)

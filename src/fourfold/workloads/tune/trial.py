"""A trial where it runs: what an objective is handed, and what runs it.

desk <── "suggest_float", "report", … ──> Trial <── the objective
"""

import contextlib
import datetime
import pickle
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import cloudpickle
import optuna
from optuna.trial import BaseTrial

from fourfold.execute import current
from fourfold.workloads.tune.asking import Ask, Job, Line, NotYet, Withdrawn
from fourfold.workloads.tune.quiet import Quiet
from fourfold.workloads.tune.study_there import StudyThere


class RunTrial:
    """Called with the number of a ticket: asks for a trial, and runs it.

    Args:
        objective: Of the user; a class is built once per worker.
        init: What with.
        seed: Root of all trials' random numbers; None for none.
        line: To the desk.
        retry_on: Exceptions after which the desk is asked whether the trial is to run again.
    """

    def __init__(
        self,
        objective: Callable[..., Any],
        init: tuple[Any, ...],
        seed: int | None,
        line: Line,
        retry_on: tuple[type[BaseException], ...] = (),
    ) -> None:
        self._objective, self._init, self._seed, self._line = objective, init, seed, line
        self._retry_on = retry_on
        self._built: Callable[[Any], Any] | None = None
        self._building = threading.Lock()

    def __reduce__(self) -> tuple[Any, ...]:
        return RunTrial, (self._objective, self._init, self._seed, self._line, self._retry_on)

    def __call__(self, ticket: int) -> None:
        """Run one trial, if there is one to run.

        Raises:
            Exception: What the objective raises, but for TrialPruned.
        """
        function = self._function()
        with self._line.opened(ticket) as ask:
            while (job := ask("job", ticket)) is not None:
                current.renew()  # the time that it has waited is not the trial's
                try:
                    return self._run(function, ask if job.guess is None else Patient(ask), job)
                except Withdrawn:
                    if job.attempts > 1:  # a worker has died of this ticket: the next trial has one with all its attempts
                        return

    def _run(self, function: Callable[[Any], Any], ask: Ask, job: Job) -> None:
        try:
            end = self._ended(function, Trial(ask, job))
        except Withdrawn:
            raise
        except BaseException as error:
            if isinstance(error, self._retry_on) and ask("again", job.key):
                return
            with contextlib.suppress(Exception):  # nobody listens any more: what was raised is told all the same
                ask("raised", job.key)
            raise
        ask("end", job.key, *end)

    def _ended(self, function: Callable[[Any], Any], trial: "Trial") -> tuple[str, Any]:
        try:
            with numbers_of(trial.number, self._seed), trial.watched():
                value = function(trial)
        except optuna.TrialPruned as pruned:
            return "pruned", str(pruned)
        return "value", plain(value)

    def _function(self) -> Callable[[Any], Any]:
        if not isinstance(self._objective, type):
            return self._objective
        with self._building:
            if self._built is None:
                self._built = self._objective(*self._init)
        return self._built


class Patient(NamedTuple):
    """The way to the desk of a trial that the study does not have yet: what it asks for comes when it is there."""

    ask: Ask

    def __call__(self, what: str, *args: Any) -> Any:
        """See `Ask`."""
        while (answer := self.ask(what, *args)) is NotYet:
            current.renew()  # the time that it waits is not the trial's
        return answer

    def say(self, what: str, *args: Any) -> None:
        """See `Ask`."""
        self.ask.say(what, *args)


@contextlib.contextmanager
def numbers_of(number: int, seed: int | None) -> Iterator[None]:
    """A block in which random numbers follow from the trial's number, as those of an item do from its index."""
    if seed is None:
        yield
        return
    with contextlib.ExitStack() as stack:
        if threading.current_thread() is threading.main_thread():  # the legacy states belong to all threads
            stack.callback(current.save_globals())
            current.seed_globals(seed, number)
        stack.enter_context(current.numbered(number, seed))
        yield


def plain(value: Any) -> Any:
    """What an objective returned, as numbers; what is none, as its text."""
    if value is None:
        return None
    if isinstance(value, Sequence) and not isinstance(value, str | bytes):
        return [_number(each) for each in value]
    return _number(value)


def _number(value: Any) -> Any:
    try:
        return float(value)
    except (TypeError, ValueError):
        return f"{value!r:.200}"


class Trial(BaseTrial):
    """A trial as an objective knows it from Optuna, with `checkpoint` and `restore` besides.

    Args:
        ask: The way to the desk.
        job: Which trial it is.
    """

    def __init__(self, ask: Ask, job: Job) -> None:
        self._ask, self._job = ask, job
        self._quiet: Quiet | None = None

    @contextlib.contextmanager
    def watched(self) -> Iterator[None]:
        """While the objective runs, the desk is told when this trial has probably asked for all, if others wait for that."""
        with contextlib.ExitStack() as stack:
            if self._job.is_first:
                self._quiet = stack.enter_context(Quiet(self._ask, self._job.key))
            yield

    def suggest_float(self, name: str, low: float, high: float, *, step: float | None = None, log: bool = False) -> float:
        """As in Optuna."""
        value: float = self._suggest(
            "suggest_float", name, (low, high, step, log), (name, low, high), {"step": step, "log": log}
        )
        return value

    def suggest_int(self, name: str, low: int, high: int, *, step: int = 1, log: bool = False) -> int:
        """As in Optuna."""
        value: int = self._suggest("suggest_int", name, (low, high, step, log), (name, low, high), {"step": step, "log": log})
        return value

    def suggest_categorical(self, name: str, choices: Sequence[Any]) -> Any:
        """As in Optuna."""
        return self._suggest("suggest_categorical", name, tuple(choices), (name, choices), {})

    def _suggest(self, how: str, name: str, domain: tuple[Any, ...], args: tuple[Any, ...], named: dict[str, Any]) -> Any:
        try:
            return self._asked_for(how, name, domain, args, named)
        finally:
            if self._quiet is not None:  # on threads the sampler and the storage have computed here
                self._quiet.has_asked()

    def _asked_for(self, how: str, name: str, domain: tuple[Any, ...], args: tuple[Any, ...], named: dict[str, Any]) -> Any:
        if self._quiet is not None:
            self._quiet.is_asking()
        known = self._job.given.get(name)
        if known is None or known[:2] != (how, domain):
            return self._ask("suggest", self._job.key, how, args, named)
        self._ask.say("suggested", self._job.key, how, args, named)
        return known[2]

    def suggest_uniform(self, name: str, low: float, high: float) -> float:
        """As in Optuna, which calls it deprecated."""
        return self.suggest_float(name, low, high)

    def suggest_loguniform(self, name: str, low: float, high: float) -> float:
        """As in Optuna, which calls it deprecated."""
        return self.suggest_float(name, low, high, log=True)

    def suggest_discrete_uniform(self, name: str, low: float, high: float, q: float) -> float:
        """As in Optuna, which calls it deprecated."""
        return self.suggest_float(name, low, high, step=q)

    def report(self, value: float, step: int) -> None:
        """As in Optuna."""
        self._ask("report", self._job.key, value, step)

    def should_prune(self) -> bool:
        """As in Optuna. Under `ff.ASHA` a trial that ends by this may go on later: see `checkpoint`."""
        value: bool = self._ask("should_prune", self._job.key)
        return value

    def checkpoint(self, state: Any) -> None:
        """Keep the state of what is trained, for `restore`: of a trial that goes on later, or again after its worker has died.

        Args:
            state: Anything that can be pickled. It takes the place of the one before.
        """
        self._ask("checkpoint", self._job.key, cloudpickle.dumps(state))

    def restore(self, default: Any = None) -> Any:
        """What `checkpoint` has kept last in this trial; `default` where there is nothing."""
        found = self._ask("restore", self._job.key)
        return default if found is None else pickle.loads(found)

    def set_user_attr(self, key: str, value: Any) -> None:
        """As in Optuna."""
        self._ask("set_user_attr", self._job.key, key, value)

    def set_constraint(self, key: str, value: float) -> None:
        """As in Optuna."""
        self._ask("set_constraint", self._job.key, key, value)

    @property
    def study(self) -> StudyThere:
        """The study, as far as it can be asked from here."""
        return StudyThere(self._ask, self._job)

    @property
    def number(self) -> int:
        """As in Optuna."""
        return self._job.number

    @property
    def params(self) -> dict[str, Any]:
        """As in Optuna."""
        value: dict[str, Any] = self._ask("get", self._job.key, "params")
        return value

    @property
    def distributions(self) -> dict[str, Any]:
        """As in Optuna."""
        value: dict[str, Any] = self._ask("get", self._job.key, "distributions")
        return value

    @property
    def user_attrs(self) -> dict[str, Any]:
        """As in Optuna."""
        value: dict[str, Any] = self._ask("get", self._job.key, "user_attrs")
        return value

    def set_system_attr(self, key: str, value: Any) -> None:
        """As in Optuna before 5, which calls it deprecated."""
        self._ask("set_system_attr", self._job.key, key, value)

    @property
    def system_attrs(self) -> dict[str, Any]:
        """As in Optuna before 5, which calls it deprecated."""
        value: dict[str, Any] = self._ask("system_attrs", self._job.key)
        return value

    @property
    def constraints(self) -> dict[str, float]:
        """As in Optuna."""
        value: dict[str, float] = self._ask("get", self._job.key, "constraints")
        return value

    @property
    def datetime_start(self) -> datetime.datetime | None:
        """As in Optuna."""
        return self._job.started

"""`optimize`: trials of Optuna as isolated processes, each of them seen to its end."""

import itertools
import logging
import os
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, closing
from typing import Any, Literal

import fourfold.system.machine as machine
from fourfold.call import Call
from fourfold.errors import MissingExtra, OptionError, OptionTypeError
from fourfold.execute import current
from fourfold.options import RunOfBlock, Settings, resolve, seconds, whole_number
from fourfold.records import Failure
from fourfold.system.interrupts import Shield

try:
    import optuna
except ModuleNotFoundError as missing:
    raise MissingExtra(f"tuning needs {missing.name}, which is not installed: pip install 'fourfold[ml]'") from missing
from optuna.pruners import BasePruner
from optuna.samplers import BaseSampler, TPESampler
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial

from fourfold.workloads.tune import checked, drivers, states
from fourfold.workloads.tune.answers import Answers
from fourfold.workloads.tune.checkpoints import Checkpoints
from fourfold.workloads.tune.desk import WAIT_S, Desk
from fourfold.workloads.tune.line import Here, Served
from fourfold.workloads.tune.opened import Watcher, asked, first_of
from fourfold.workloads.tune.proposing import Way, way_of
from fourfold.workloads.tune.reach import own_address
from fourfold.workloads.tune.recorded import RecordedTrials
from fourfold.workloads.tune.said import Trials, log_end, of_trials
from fourfold.workloads.tune.trial import RunTrial

Direction = Literal["minimize", "maximize"] | StudyDirection
Callback = Callable[[optuna.Study, FrozenTrial], None]


def optimize(
    objective: Callable[[Any], Any],
    n_trials: int | None = None,
    *,
    direction: Direction | None = None,
    directions: Sequence[Direction] | None = None,
    sampler: BaseSampler | None = None,
    pruner: BasePruner | None = None,
    study: optuna.Study | None = None,
    timeout: float | None = None,
    trial_timeout: float | None = None,
    catch: type[BaseException] | Iterable[type[BaseException]] = (),
    callbacks: Iterable[Callback] = (),
    mode: Literal["batch", "async"] = "batch",
    batch_size: int | None = None,
    **options: Any,
) -> optuna.Study:
    """Optimise an ordinary objective of Optuna, each trial in a process of its own.

    This process owns study, sampler and pruner. Suggestions and reports of trials come to it over private lines, so any
    storage of Optuna works, and none is needed.

    Args:
        objective: Takes a trial and returns a number, or one for each direction. A class is built once per worker, with
            `init=`.
        n_trials: How many trials the study has in the end, with those that it has already, and those that other processes
            begin in it meanwhile (the storage is asked before each; of two who begin in the same moment both may). Unfinished
            ones do not count. None: `timeout` ends it.
        direction: "minimize" or "maximize".
        directions: One of them for each value, in their place.
        sampler: Of Optuna; None: TPE, with `seed=`.
        pruner: Of Optuna, or `ff.ASHA(…)`.
        study: A study to continue, with its own direction, sampler and pruner; None: a new one in memory.
        timeout: Seconds after which no trial is begun.
        trial_timeout: Seconds for each trial; a longer one is stopped.
        catch: Exceptions of the objective that do not end the call, as in Optuna.
        callbacks: Called here with the study and each trial that has ended, before the next one begins. After `study.stop()`
            those that run come to their end. (On a cluster what has ended is told of later, and a few more have begun.)
        mode: "batch": what a trial draws depends on its number and on what was told before its batch, not on which worker is
            faster. "async": it depends on what was told when a worker was free, which is faster where trials differ.
            Random, grid and quasi-random search are reproducible either way. Under `ff.ASHA` others are "async" always.
        batch_size: Trials that are proposed together under "batch"; None: as many as there are workers. A result can be had
            again with the same one.
        **options: See `fourfold.Options`. `engine="auto"` means processes. `retries=` runs a trial again that has raised; one
            whose worker died is run again anyway. With `run=` a killed call is finished by the same call.

    Returns:
        The study, with two attributes more: `failures`, a list of `ff.Failure` for trials without a value, each with `index`
        its number; and `report`.

    Raises:
        OptionError: An argument or option cannot be used.
        Exception: What an objective has raised, unless it is in `catch`; the study has that trial as failed.
        NotPicklable: The objective cannot travel to processes; the message says which part of it.
        RunError: The folder of `run=` cannot be used.

    Guarantees: no trial of this call is left running in the study. Should this process be killed, the next call on a study in
        a database tells it of the trials that nobody has any more, and leaves those of others alone. Each trial has a system
        attribute "fourfold:state": complete, pruned, failed, crashed, out of memory, timed out, invalid (nan, None, no
        number) or unfinished (the call has ended before it).

    Example:
        >>> import optuna, fourfold as ff
        >>> def objective(trial):
        ...     return (trial.suggest_float("x", -10, 10) - 2) ** 2
        >>> study = ff.optimize(objective, n_trials=20, sampler=optuna.samplers.RandomSampler(0), workers=2)
        >>> len(study.trials), round(study.best_value, 3)
        (20, 0.003)
    """
    settings = _settings(options, trial_timeout)
    checked.check_objective(objective)
    if n_trials is None and timeout is None:
        raise OptionError(
            "n_trials= is missing: how many trials the study is to have (or timeout=, after which none is begun)"
        )
    if n_trials is not None:
        whole_number("n_trials", n_trials, 1)
    if mode not in ("batch", "async"):
        raise OptionError(f'mode={mode!r} is not known. Choices: "batch", "async"')
    size = whole_number("batch_size", batch_size, 1) if batch_size is not None else settings.workers or machine.cores().n_cores
    own = _study(study, machine.user_name_of(objective), direction, directions, sampler, pruner, settings.seed)
    checked.check_packages(own.sampler)
    limit = seconds("timeout", timeout)
    caught, told = checked.caught(catch), checked.called_back(callbacks)
    is_paused_by_others = hasattr(own.pruner, "rungs")  # which trials go on depends on who was faster: no batch is of one mind
    way = way_of(own.sampler, "async" if is_paused_by_others else mode, size)
    return _Optimizing(objective, own, way, n_trials, limit, caught, told, settings).run()


class _Optimizing:
    """One call of `optimize`."""

    def __init__(
        self,
        objective: Callable[[Any], Any],
        study: optuna.Study,
        way: Way,
        n_trials: int | None,
        timeout: float | None,
        catch: tuple[type[BaseException], ...],
        callbacks: list[Callback],
        settings: Settings,
    ) -> None:
        self._objective, self._study, self._way, self._n_trials = objective, study, way, n_trials
        self._timeout, self._catch, self._callbacks, self._settings = timeout, catch, callbacks, settings
        self._name = machine.user_name_of(objective)

    def run(self) -> optuna.Study:
        """Run all trials."""
        study, settings = self._study, self._settings
        study._stop_flag = False
        study.set_user_attr(states.WAY, self._way.told)
        with ExitStack() as stack:
            record = self._record()
            state = "failed"
            if record is not None:
                stack.callback(lambda: record.close(state))
            run = None if record is None else record.id
            mark = stack.enter_context(drivers.marking(study, run))
            drivers.end_lost(study, run)
            folder = None if record is None else os.path.join(record.path, "checkpoints")
            checkpoints = Checkpoints(folder, None if record is None else record.seal)
            stack.callback(checkpoints.close)
            desk = self._desk(checkpoints, record)
            desk.book.mark, desk.hears = mark, bool(self._callbacks) and desk.wait_s > 0 and not self._is_elsewhere()
            served = Served(Answers(desk).handle, desk.hung_up, lambda ticket, job: desk.undelivered(ticket, job.attempts))
            line = Here(served, lambda: own_address(settings.engine))
            stack.callback(line.close)
            for each in self._callbacks:
                if isinstance(each, Watcher):
                    each.watch(desk.book.watched)
            try:
                if record is not None:
                    record.bring_back(desk, self._way, self._n_trials)
                    self._note(desk, record)
                self._go_through(desk, line, record)
                while desk.may_have_more:  # the last ticket died when its trial was handed to it: somebody else is to run that
                    self._go_through(desk, line, record)
                state = "done" if desk.error is None else "failed"
            except KeyboardInterrupt:
                state = "interrupted"
                raise
            finally:
                desk.close(is_done=state == "done")
                self._note(desk, record)
                study.failures = sorted(desk.failures, key=lambda failure: failure.index)  # type: ignore[attr-defined]
        if desk.error is not None:
            raise desk.error
        return study

    def _record(self) -> RecordedTrials | None:
        path = self._settings.run
        if isinstance(path, RunOfBlock):
            path = None if current.inside_item() else path.of_next_call()
        return None if path is None else RecordedTrials(path, self._objective, self._name, self._study, self._settings)

    def _desk(self, checkpoints: Checkpoints, record: RecordedTrials | None) -> Desk:
        deadline = None if self._timeout is None else time.monotonic() + self._timeout
        first = first_of(self._study) if record is None else record.first
        retries = self._settings.retries
        desk = Desk(self._study, self._way, self._n_trials, deadline, checkpoints, first, self._wait_s(), retries)
        if record is not None:
            desk.book.watch = record.running
        return desk

    def _is_elsewhere(self) -> bool:
        """Whether what has ended is told of later, with others."""
        engine = self._settings.engine
        return engine not in ("threads", "processes") if isinstance(engine, str) else engine.info.elsewhere

    def _wait_s(self) -> float:
        """How long a ticket may wait for a trial."""
        engine, limit = self._settings.engine, self._settings.timeout
        is_loop = engine == "serial" or (not isinstance(engine, str) and engine.info.inline)
        if is_loop or current.inside_item():
            return 0.0
        return WAIT_S if limit is None else min(WAIT_S, limit / 2)  # a ticket that waits has the time of a trial

    def _go_through(self, desk: Desk, line: Here, record: RecordedTrials | None) -> None:
        settings = self._settings
        retry_on = settings.retry_on if isinstance(settings.retry_on, tuple) else (settings.retry_on,)
        fn = RunTrial(self._objective, settings.init, settings.seed, line, retry_on if settings.retries else ())
        inner = Settings(
            **{**vars(settings), "init": (), "seed": None, "run": None, "on_error": "collect", "chunk": 1, "retries": 0}
        )
        call = Call(fn, _tickets(desk), inner, bounded=desk.wait_s == 0, name=self._name, unit="trial", counts=Trials(desk))
        try:
            with closing(call.segments()) as segments:
                for segment in segments:
                    for value in segment.values:
                        if isinstance(value, Failure):
                            desk.failed(value, lambda error: isinstance(error, self._catch))
                    self._note(desk, record)
                    if desk.error is not None:
                        return
            call.raise_if_stopped()
        finally:
            self._study.report = report = of_trials(call.report(), desk)  # type: ignore[attr-defined]
            logging.getLogger("fourfold").info("%s: %s", self._name, report.verdict)

    def _note(self, desk: Desk, record: RecordedTrials | None) -> None:
        """Record, and tell the user's callbacks, what has ended."""
        with Shield():  # what is taken here is nowhere else: Ctrl-C waits until it is recorded
            told, ended = desk.book.told(), desk.book.newly_ended()  # in this order: nobody is told of what is not recorded
            if record is not None and ended:
                for each in ended:
                    record.keep(each, self._way)
                record.beat()
        for trial in told:
            log_end(self._study, trial)
            with asked(self._study):
                for callback in self._callbacks:
                    callback(self._study, trial)
        desk.heard(len(told))


def _tickets(desk: Desk) -> Iterator[int]:
    for ticket in itertools.count():
        if not desk.may_have_more:
            return
        yield ticket


def _settings(options: Any, trial_timeout: float | None) -> Settings:
    if "timeout" in options:
        raise OptionError("timeout= is for the whole study here: trial_timeout= is for each trial")
    for name, why in (("cost", "trials are not known before"), ("chunk", "each trial travels alone")):
        if name in options:
            raise OptionError(f"{name}= has no meaning here: {why}")
    checked.check_names(options)
    settings = resolve({**options, "timeout": trial_timeout})
    if settings.on_error != "raise":
        raise OptionError("on_error= has no meaning here: name in catch= the exceptions that do not end the call")
    return Settings(**{**vars(settings), "engine": "processes"}) if settings.engine == "auto" else settings


def _study(
    study: optuna.Study | None,
    name: str,
    direction: Direction | None,
    directions: Sequence[Direction] | None,
    sampler: BaseSampler | None,
    pruner: BasePruner | None,
    seed: int | None,
) -> optuna.Study:
    if study is None:
        checked.check_directions(direction, directions)
        checked.check_parts(sampler, pruner)
        verbosity = optuna.logging.get_verbosity()
        sampler = TPESampler(seed=seed) if sampler is None else sampler
        several = None if directions is None else list(directions)
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        try:
            return optuna.create_study(  # Hyperband's brackets follow from the name
                study_name=name, direction=direction, directions=several, sampler=sampler, pruner=pruner
            )
        finally:
            optuna.logging.set_verbosity(verbosity)
    if not isinstance(study, optuna.Study):
        raise OptionTypeError(f"study={study!r} must be a study of Optuna; it is of type {type(study).__name__}")
    for name, value in (("direction", direction), ("directions", directions), ("sampler", sampler), ("pruner", pruner)):
        if value is not None:
            raise OptionError(f"{name}= and study= were both given: a study has its own, which optuna.create_study() sets")
    return study

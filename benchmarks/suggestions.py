"""How many trials a driver can propose in a second, by what the study has been told before: the figures of docs/scale.md.

    python benchmarks/suggestions.py

What is measured is the processor time of asking for a trial and for its parameters, which is all that trials share: one is
asked for after the other.
"""

import random
import time

import optuna

from fourfold.workloads.tune.drawing import sampled_by
from fourfold.workloads.tune.opened import asked
from fourfold.workloads.tune.proposing import way_of

N_PARAMETERS = 4
BATCH = 8
TOLD = (100, 1_000, 10_000)

LAP_S, MOST = 2.0, 400
"""Each figure is a mean over so many seconds, or so many trials. Fewer: other programs are seen in it."""


def study_of(sampler: optuna.samplers.BaseSampler, n_told: int) -> optuna.Study:
    """A study that has been told of so many trials."""
    study = optuna.create_study(sampler=sampler)
    names = [f"x{at}" for at in range(N_PARAMETERS)]
    drawn = dict.fromkeys(names, optuna.distributions.FloatDistribution(0, 1))
    numbers = random.Random(0)
    for _ in range(n_told):
        params = {name: numbers.random() for name in names}
        study.add_trial(optuna.create_trial(params=params, distributions=drawn, value=sum(params.values())))
    return study


def seconds_per_trial(sampler: optuna.samplers.BaseSampler, n_told: int, mode: str) -> float:
    """Processor time of proposing one trial."""
    study = study_of(sampler, n_told)
    way = way_of(sampler, mode, BATCH)
    began, n_asked = time.process_time(), 0
    while n_asked < BATCH or (time.process_time() - began < LAP_S and n_asked < MOST):
        trial = study.ask()
        with asked(study), sampled_by(study, way.proposed(trial)):
            for at in range(N_PARAMETERS):
                trial.suggest_float(f"x{at}", 0, 1)
        way.ended(trial.number)
        n_asked += 1
    return (time.process_time() - began) / n_asked


def main() -> None:
    """Print the table."""
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    ways = [("random", "batch"), ("tpe", "batch"), ("tpe", "async")]
    kinds = {"random": optuna.samplers.RandomSampler, "tpe": optuna.samplers.TPESampler}
    for n_told in TOLD:
        for name, mode in ways:
            each_s = seconds_per_trial(kinds[name](seed=0), n_told, mode)
            print(f"{n_told:>6} told, {name} ({mode}): {each_s * 1000:6.2f} ms, {1 / each_s:6.0f} a second", flush=True)


if __name__ == "__main__":
    main()

"""Trials on a cluster: they reach the desk in this process, and a machine that is lost costs none of them."""

import logging
import os
import socket
import time
from typing import Any

import pytest
from clusters import Cluster
from test_deaths import kill

import fourfold as ff

optuna = pytest.importorskip("optuna", reason="the extra `ml` is not installed")


def table(study: Any) -> list[Any]:
    return [(each.params, each.values, each.intermediate_values, each.state.name) for each in study.trials]


def sampled() -> dict[str, Any]:
    optuna.logging.set_verbosity(logging.CRITICAL)
    return {"sampler": optuna.samplers.RandomSampler(3), "pruner": optuna.pruners.MedianPruner(n_startup_trials=100)}


def test_trials_there_are_those_of_here(cluster: Cluster) -> None:
    def fn(trial: Any) -> float:  # it travels by value: this module is not on the workers
        x = trial.suggest_float("x", -10, 10)
        trial.report(abs(x), 0)
        trial.set_user_attr("pid", os.getpid())
        return float(x**2) if not trial.should_prune() else 0.0

    there = ff.optimize(fn, n_trials=12, engine=cluster.engine(), **sampled())
    here = ff.optimize(fn, n_trials=12, engine="serial", **sampled())
    assert table(there) == table(here)
    assert os.getpid() not in {each.user_attrs["pid"] for each in there.trials}
    assert there.report.engine == cluster.kind


def test_a_machine_that_is_lost_costs_no_trial(cluster: Cluster) -> None:
    if not cluster.workers():
        pytest.skip("not applicable: this cluster is one machine: when it is lost, the cluster is")

    def fn(trial: Any) -> float:
        x = trial.suggest_float("x", -10, 10)
        time.sleep(0.1)
        return float(x**2)

    told: list[int] = []

    def callback(study: Any, trial: Any) -> None:
        told.append(trial.number)
        if len(told) == 8:
            kill(cluster.holder())

    try:
        found = ff.optimize(fn, n_trials=40, engine=cluster.engine(), callbacks=[callback], **sampled())
    finally:
        cluster.mend()
    assert [each.state.name for each in found.trials] == ["COMPLETE"] * 40
    assert found.failures == []
    assert len(told) == 40


def test_the_desk_listens_where_the_workers_are_and_nowhere_else(cluster: Cluster) -> None:
    from fourfold.workloads.tune.reach import own_address

    engine = cluster.engine()
    engine.open()
    address = own_address(engine)
    assert address not in (None, "", "0.0.0.0", "::"), "then everybody could come"
    with socket.socket() as probe:
        probe.bind((address, 0))

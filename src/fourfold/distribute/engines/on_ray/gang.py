"""A gang in a placement group: room for all ranks at once, or for none. Each rank is an actor, and this process leads them."""

import contextlib
import importlib
import time
from collections.abc import Callable, Mapping
from typing import Any

from fourfold.distribute.connection import first_line
from fourfold.distribute.engines.on_ray import library
from fourfold.distribute.engines.on_ray.cluster import Cluster
from fourfold.errors import EngineError, GangLost, GangTimeout, WorkerStartFailed
from fourfold.version import VERSION

PLACE_S = 60.0
"""Seconds in which there must be room for all ranks. Shorter: a cluster that starts a machine for them is given up. Longer: so
long says nothing one whose CPUs are all in use."""

START_S = 120.0
"""Seconds in which all actors must be there. Not measured on a cluster that installs environments."""

WATCH_S = 1.0
"""Seconds for which an actor watches its rank until it answers anyway. Shorter: more messages. Longer: nothing, but for an
interrupt: an actor does one thing at a time."""

END_S = 10.0
"""Seconds in which ranks that are stopped must say how they have ended: they have five until they are killed."""

VALUES_S = 120.0
"""Seconds in which the values of ranks that have all ended well must be here. Shorter: one of some gigabytes, such as a large
network, is lost where the net is slow. Longer: a machine that is gone just then is waited for. Not measured."""


def check(machines: list[dict[str, float]] | None, wants: Mapping[str, float], size: int) -> None:
    """Refuse a gang that this cluster can never hold."""
    if machines is None:
        return
    room = sum(min(int(has.get(name, 0.0) / each) for name, each in wants.items()) for has in machines)
    if room < size:
        raise EngineError(
            f"world_size={size} is more than this Ray cluster has room for: {room} ranks that take {dict(wants)} each. Take a "
            "smaller one, or start Ray with more CPUs"
        )


def run(
    cluster: Cluster,
    wants: Mapping[str, float],
    member: str,
    arguments: Mapping[str, Any],
    size: int,
    deadline: float | None,
) -> list[tuple[Any, ...]]:
    """Run the gang to its end, and give its room back."""
    ray = library.ray()
    groups = importlib.import_module("ray.util.placement_group")
    group = groups.placement_group([dict(wants)] * size, strategy="PACK")
    actors: list[Any] = []
    try:
        limit_s = PLACE_S if deadline is None else max(0.0, min(PLACE_S, deadline - time.monotonic()))
        if not group.wait(limit_s):
            raise WorkerStartFailed(
                f"this Ray cluster had no room for {size} ranks at once within {limit_s:.0f} s: its CPUs are in use. Take a "
                "smaller world_size, or wait"
            )
        actors += _actors(ray, cluster, group, wants, member, arguments, size)
        return _Lead(ray, actors, deadline).to_the_end()
    finally:
        with contextlib.suppress(Exception):
            _dismiss(ray, actors)
        with contextlib.suppress(Exception):
            groups.remove_placement_group(group)


def _actors(
    ray: Any, cluster: Cluster, group: Any, wants: Mapping[str, float], member: str, arguments: Mapping[str, Any], size: int
) -> list[Any]:
    strategies = importlib.import_module("ray.util.scheduling_strategies")
    kind = ray.remote(make_actor(cluster.orders.entry, VERSION, cluster.cargo_name, member))
    stored = ray.put(dict(arguments))
    cargo = [cluster.cargo] if cluster.cargo is not None else []
    others = {name: each for name, each in wants.items() if name != "CPU"}
    made = []
    for rank in range(size):
        strategy = strategies.PlacementGroupSchedulingStrategy(group, placement_group_bundle_index=rank)
        options = {"num_cpus": wants["CPU"], "resources": others, "max_restarts": 0, "scheduling_strategy": strategy}
        made.append(kind.options(**options).remote(rank, [stored], cargo))
    return made


class _Lead:
    """Leads the actors of one gang."""

    def __init__(self, ray: Any, actors: list[Any], deadline: float | None) -> None:
        self._ray, self._actors, self._deadline = ray, actors, deadline

    def to_the_end(self) -> list[tuple[Any, ...]]:
        places = self._all("place")
        is_well = "failed" not in self._all("start", places)
        if is_well:
            self._all("go")
            is_well = self._watch()
        refs = [actor.end.remote() for actor in self._actors]
        limit_s = VALUES_S if is_well else END_S
        return [self._get(ref, rank, limit_s) for rank, ref in enumerate(refs)]

    def _all(self, method: str, *arguments: Any) -> list[Any]:
        refs = [getattr(actor, method).remote(*arguments) for actor in self._actors]
        return [self._get(ref, rank, START_S) for rank, ref in enumerate(refs)]

    def _watch(self) -> bool:
        """Wait until all have ended, or one has failed; whether they are all well."""
        running = {actor.wait.remote(WATCH_S): rank for rank, actor in enumerate(self._actors)}
        while running:
            self._look_at_the_time(len(running))
            done, _ = self._ray.wait(list(running), num_returns=1, timeout=WATCH_S)
            for ref in done:
                rank = running.pop(ref)
                state = self._get(ref, rank, START_S)
                if state == "failed":
                    return False
                if state == "runs":
                    running[self._actors[rank].wait.remote(WATCH_S)] = rank
        return True

    def _look_at_the_time(self, n_left: int) -> None:
        if self._deadline is not None and time.monotonic() >= self._deadline:
            raise GangTimeout(f"{n_left} of {len(self._actors)} ranks on Ray had not ended in time")

    def _get(self, ref: Any, rank: int, limit_s: float) -> Any:
        if self._deadline is not None:
            limit_s = max(0.1, min(limit_s, self._deadline - time.monotonic() + END_S))
        try:
            return self._ray.get(ref, timeout=limit_s)
        except self._ray.exceptions.GetTimeoutError as error:
            self._look_at_the_time(len(self._actors))
            raise GangLost(f"rank {rank} of {len(self._actors)} has not answered for {limit_s:.0f} s", rank=rank) from error
        except self._ray.exceptions.RayError as error:
            raise GangLost(f"rank {rank} of {len(self._actors)}: Ray has lost it: {first_line(error)}", rank=rank) from error


def _dismiss(ray: Any, actors: list[Any]) -> None:
    """Let ranks that are there still end in good order, and their actors with them."""
    refs = [actor.end.remote() for actor in actors]
    if refs:
        ray.wait(refs, num_returns=len(refs), timeout=END_S)
    for actor in actors:
        ray.kill(actor)


def make_actor(entry: Callable[..., Any], version: str, cargo_name: str, member: str) -> type:
    """Return the class of the actors. It travels by value: fourfold need not be there."""

    class FourfoldRank:
        def __init__(self, rank: int, stored: list[Any], cargo: list[Any]) -> None:
            import importlib

            import ray

            entry(version, cargo_name, lambda: ray.get(cargo[0]))
            module, _, name = member.partition(":")
            self._rank = getattr(importlib.import_module(module), name)(rank=rank, **ray.get(stored[0]))
            self._end: Any = None

        def place(self) -> Any:
            import ray

            return self._rank.place(str(ray.util.get_node_ip_address()))  # type: ignore[no-untyped-call]

        def start(self, places: Any) -> Any:
            return self._rank.start(places)

        def go(self) -> None:
            self._rank.go()

        def wait(self, seconds: float) -> Any:
            return self._rank.wait(seconds)

        def end(self) -> Any:
            if self._end is None:
                self._end = self._rank.end()
            return self._end

    return FourfoldRank

"""Where ranks find each other, and the variables that tell each of them who it is."""

import contextlib
import os
import socket

import fourfold.system.environment as environment
from fourfold.system.machine import cores, free_thread_variables

LOOPBACK = "127.0.0.1"

RESTARTS = "FOURFOLD_RESTART_COUNT"
"""How often the gang was started again: "0" at first."""

RESTARTS_OF_TORCH = "TORCHELASTIC_RESTART_COUNT"
"""The same, for what was written for torchrun."""

CHECKPOINT = "FOURFOLD_CHECKPOINT"
"""The folder of `checkpoint=`, where there is one."""


def free_port(address: str = LOOPBACK) -> int:
    """A port that nobody listens at. Somebody may come to it before the ranks do."""
    with socket.socket() as probe:
        probe.bind((address, 0))
        return int(probe.getsockname()[1])


def is_free(port: int, address: str = LOOPBACK) -> bool:
    """Whether a rank could listen there now."""
    with contextlib.suppress(OSError), socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        probe.bind((address, port))
        probe.listen(1)
        return True
    return False


def of_this_machine(n_ranks: int) -> dict[str, str]:
    """What all ranks of this machine get: the environment of this process, and a share of the cores for each."""
    threads = str(max(1, cores().n_cores // n_ranks))
    return on_loopback(environment.for_workers() | dict.fromkeys(free_thread_variables(), threads))


def on_loopback(variables: dict[str, str]) -> dict[str, str]:
    """The variables with which gloo listens at the loopback address only, unless they say where it shall."""
    if not os.path.isdir("/sys/class/net/lo"):
        return variables
    return {"GLOO_SOCKET_IFNAME": "lo"} | variables


def of_a_rank(
    rank: int, world_size: int, local: tuple[int, int], master: tuple[str, int], restarts: int, checkpoint: str | None
) -> dict[str, str]:
    """The variables that torch.distributed reads with `init_method="env://"`, and ours.

    Args:
        rank: Its number among all.
        world_size: How many there are.
        local: Its number on its machine, and how many are there.
        master: Where rank 0 may listen.
        restarts: How often the gang was started again.
        checkpoint: The folder of checkpoints.
    """
    variables = {
        "RANK": rank,
        "WORLD_SIZE": world_size,
        "LOCAL_RANK": local[0],
        "LOCAL_WORLD_SIZE": local[1],
        "MASTER_ADDR": master[0],
        "MASTER_PORT": master[1],
        RESTARTS: restarts,
        RESTARTS_OF_TORCH: restarts,
    }
    told = {name: str(value) for name, value in variables.items()}
    return told | ({CHECKPOINT: checkpoint} if checkpoint else {})

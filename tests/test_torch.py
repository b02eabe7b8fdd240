"""Training with the real torch: gradients exchanged by gloo between the ranks of a gang. `pytest -m torch`."""

import os
import signal

import pytest

import fourfold as ff

pytest.importorskip("torch", reason="torch is not installed: scripts/run_tests.py torch installs it where it is at hand")

pytestmark = pytest.mark.torch

STEPS, ROWS = 12, 64


def train(world_size, folder=None, kill_at=None, always=False):
    """Train a small network on this rank's half of each batch; returns the loss of each step over the whole batch."""
    import torch
    import torch.distributed as dist
    from torch.nn.parallel import DistributedDataParallel

    rank, is_again = int(os.environ.get("RANK", 0)), os.environ.get("FOURFOLD_RESTART_COUNT", "0") != "0"
    if world_size > 1:
        dist.init_process_group("gloo")
        assert (dist.get_rank(), dist.get_world_size()) == (rank, world_size)
    torch.manual_seed(1)
    model = torch.nn.Sequential(torch.nn.Linear(8, 16), torch.nn.Tanh(), torch.nn.Linear(16, 1))
    learner = DistributedDataParallel(model) if world_size > 1 else model
    optimizer = torch.optim.SGD(learner.parameters(), lr=0.1, momentum=0.9)
    state = (ff.gang.restore() if folder else None) or {"losses": []}
    if state["losses"]:
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
    losses, begun_at = state["losses"], len(state["losses"])
    for step in range(begun_at, STEPS):
        generator = torch.Generator().manual_seed(step)
        x = torch.randn(ROWS, 8, generator=generator)
        y = x.mean(1, keepdim=True)
        mine = slice(rank * ROWS // world_size, (rank + 1) * ROWS // world_size)
        if step == kill_at and rank == 1 and (always or not is_again):
            os.kill(os.getpid(), signal.SIGKILL)
        optimizer.zero_grad()
        loss = torch.nn.functional.mse_loss(learner(x[mine]), y[mine])
        loss.backward()
        optimizer.step()
        whole = loss.detach().clone()
        if world_size > 1:
            dist.all_reduce(whole)
        losses.append(float(whole) / world_size)
        if folder:
            ff.gang.checkpoint({"losses": losses, "model": model.state_dict(), "optimizer": optimizer.state_dict()})
            dist.barrier()
    if world_size > 1:
        dist.destroy_process_group()
    return losses, begun_at


@pytest.fixture(scope="module")
def curve():
    """The losses of one process on the whole batches."""
    losses, _ = train(1)
    assert losses[-1] < losses[0] / 2
    return losses


def test_two_ranks_have_the_loss_curve_of_one_process_on_the_joined_batch(curve):
    for losses, _ in ff.launch(train, 2, (2,)):
        assert losses == pytest.approx(curve, rel=1e-5)


def test_a_rank_that_is_killed_while_it_trains_costs_no_step_that_was_kept(curve, tmp_path):
    for losses, begun_at in ff.launch(train, 2, (2, "kept", 5), max_restarts=1, checkpoint=tmp_path):
        assert begun_at == 5
        assert losses == pytest.approx(curve, rel=1e-5)


def test_a_rank_that_is_always_killed_is_named_and_the_gang_starts_as_often_as_it_may(tmp_path):
    with pytest.raises(ff.errors.GangFailed, match=r"rank 1 of 2 was killed by SIGKILL.*started again once"):
        ff.launch(train, 2, (2, "kept", 3, True), max_restarts=1, checkpoint=tmp_path)

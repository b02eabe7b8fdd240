"""Workers are killed by somebody else: at a chosen moment of one item, or at random all the time. It costs no item."""

import itertools
import time

import killer
import pytest
from killer import Kill, storm
from running import is_in_time

import fourfold as ff

N_ITEMS = 2000


def on_processes(fn, items, **options):
    return ff.map(fn, items, **{"engine": "processes", "workers": 2, **options})


@pytest.mark.fault("F5")
@pytest.mark.parametrize("phase", killer.PHASES)
@pytest.mark.parametrize("chunk", [1, 16])
@pytest.mark.parametrize("times", [1, 2, 3, 4])
def test_the_number_of_deaths_says_whether_an_item_is_blamed(tmp_path, phase, chunk, times):
    kill = Kill(tmp_path, 61, phase, times)
    items = [kill if x == 61 else x for x in range(100)]
    run = killer.run
    results = on_processes(lambda item: run(lambda x: x * x, item), items, chunk=chunk, on_error="collect")
    rest = [value for x, value in enumerate(results) if x != 61]
    assert rest == [x * x for x in range(100) if x != 61]
    # A death among neighbours counts for nobody: in a chunk it takes one more until the item has died three times alone.
    among_neighbours = chunk > 1
    if times < 3 + among_neighbours:
        assert (results[61], results.failures, kill.count) == (61 * 61, [], times)
    else:
        (failure,) = results.failures
        assert (failure.index, failure.kind, failure.attempts) == (61, "crashed", 3)
        assert kill.count == 3 + among_neighbours


@pytest.mark.fault("F5", faults=20)
@pytest.mark.slow
@pytest.mark.parametrize(("item_s", "workers"), [(0.0, 2), (0.005, 4), (0.02, 8)])
@pytest.mark.parametrize(("seed", "recorded"), [(1, False), (2, True)], ids=["", "recorded"])
def test_a_storm_of_kills_costs_no_item(tmp_path, item_s, workers, seed, recorded):
    def work(x):
        time.sleep(item_s)
        return x * x

    items, begin, n_killed = range(N_ITEMS), time.monotonic(), 0
    for number in itertools.count():
        # A run of its own for each call: what an earlier one has recorded takes no time, in which nobody is killed.
        options = {"run": tmp_path / f"run-{number}"} if recorded else {}
        with storm(seed, every_s=0.05 if item_s else 0.03) as killed:
            results = on_processes(work, items, workers=workers, **options)
        assert results == [x * x for x in items]
        assert results.failures == []
        n_killed += len(killed)
        if n_killed >= 20:
            break
    assert is_in_time(time.monotonic() - begin, 90)

"""`seed=` gives every item numbers of its own: the same on any engine, with any chunk and worker count, on any attempt."""

import random
import subprocess
import sys
import threading

import numpy as np
import pytest
import ways

import fourfold as ff
from fourfold.errors import UnsafeRandomness
from fourfold.execute.current import STAGE, seed_sequence

way = ways.way
notebook = ways.notebook

OWN_PROCESS = ["serial", "processes", "auto", "auto that moves"]
"""The ways in which `random` and `numpy.random` belong to one item at a time."""


@pytest.fixture(params=OWN_PROCESS)
def way_of_its_own(request, monkeypatch):
    return ways.options_of(request.param, monkeypatch)


def draw(item):
    return ff.rng().random(), int(ff.rng().integers(1 << 60))


def draw_everywhere(item):
    return (
        random.random(),
        float(np.random.rand()),
        ff.rng().random(),
        random.getrandbits(70),
        np.random.permutation(5).tolist(),
    )


def drawn_by_definition(seed, index):
    stream = np.random.Generator(np.random.PCG64(np.random.SeedSequence(seed, spawn_key=(0, index))))
    return stream.random(), int(stream.integers(1 << 60))


# ---- the streams of ff.rng() ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("workers", [1, 2, 3])
@pytest.mark.parametrize("chunk", [1, 2, 7, 1000, "auto"])
def test_the_numbers_depend_on_seed_and_index_only(way, chunk, workers):
    values = ff.map(draw, range(40), seed=123, chunk=chunk, **{**way, "workers": workers})
    assert values == [drawn_by_definition(123, index) for index in range(40)]


def test_the_streams_are_children_of_the_root_as_numpy_spawns_them():
    assert STAGE == 0
    (stage,) = np.random.SeedSequence(99).spawn(1)
    for index, child in enumerate(stage.spawn(5)):
        ours = seed_sequence(99, index)
        assert ours.spawn_key == child.spawn_key == (0, index)
        assert ours.generate_state(8).tolist() == child.generate_state(8).tolist()


def test_all_items_and_all_seeds_have_different_numbers():
    values = [value for seed in range(20) for value in ff.map(draw, range(50), seed=seed)]
    assert len(set(values)) == len(values)


def test_neighbouring_streams_are_not_correlated():
    draws = np.array(ff.map(lambda item: ff.rng().standard_normal(500), range(20), seed=0))
    off_diagonal = np.corrcoef(draws)[~np.eye(20, dtype=bool)]
    assert abs(off_diagonal).max() < 0.25


def test_one_item_has_one_stream_however_often_it_asks(way):
    def ask(item):
        first = ff.rng()
        first.random()
        return first is ff.rng(), ff.rng().random()

    expected = [np.random.Generator(np.random.PCG64(seed_sequence(5, index))).random(2)[1] for index in range(10)]
    assert ff.map(ask, range(10), seed=5, chunk=4, **way) == [(True, value) for value in expected]


def test_without_a_seed_the_numbers_are_fresh_each_time(way):
    assert ff.map(draw, range(5), **way) != ff.map(draw, range(5), **way)


def test_outside_of_items_the_numbers_are_fresh_each_time():
    assert ff.rng().random() != ff.rng().random()


@pytest.mark.parametrize("seed", [0, 1, 2**32, 2**128 + 1])
def test_any_whole_number_is_a_seed(seed):
    values = ff.map(draw, range(3), seed=seed)
    assert values == [drawn_by_definition(seed, index) for index in range(3)]
    assert values.report.seed == seed


def test_a_retry_draws_the_same_numbers_again(way, notebook):
    def fail_first(item):
        value = ff.rng().random()
        notebook.write(item, value)
        if item % 3 == 0 and len([line for line in notebook.lines() if line.startswith(f"{item} ")]) == 1:
            raise ValueError("once more")
        return value

    values = ff.map(fail_first, range(10), seed=8, retries=1, chunk=4, **way)
    assert values == [drawn_by_definition(8, index)[0] for index in range(10)]
    assert len(set(notebook.lines())) == 10


def test_a_failure_before_an_item_does_not_shift_its_numbers(way):
    def fail_some(item):
        value = ff.rng().random()
        if item % 4 == 1:
            raise ValueError
        return value

    values = ff.map(fail_some, range(20), seed=3, on_error="collect", chunk=7, **way)
    for index, value in enumerate(values):
        assert isinstance(value, ff.Failure) if index % 4 == 1 else value == drawn_by_definition(3, index)[0]


def test_items_handed_out_in_another_order_keep_their_numbers(way):
    values = ff.map(draw, range(30), seed=4, cost=lambda item: (item * 7) % 30, chunk=4, **way)
    assert values == [drawn_by_definition(4, index) for index in range(30)]


def test_imap_and_reduce_draw_the_same_numbers(way):
    expected = [drawn_by_definition(6, index)[0] for index in range(20)]
    assert [first for first, _ in ff.imap(draw, range(20), seed=6, **way)] == expected
    assert ff.reduce(min, range(20), fn=lambda item: ff.rng().random(), seed=6, **way) == min(expected)


def test_an_instance_that_is_called_per_item_draws_the_items_numbers(way):
    class Sampler:
        def __call__(self, item):
            return draw(item)

    assert ff.map(Sampler, range(10), seed=2, **way) == [drawn_by_definition(2, index) for index in range(10)]


def test_a_call_inside_an_item_has_streams_of_its_own_and_leaves_the_items_alone(way):
    def outer(item):
        before = ff.rng().random()
        inner = ff.map(lambda _: ff.rng().random(), range(3), seed=item)
        return before, list(inner), ff.rng().random()

    for index, (before, inner, after) in enumerate(ff.map(outer, range(4), seed=77, **way)):
        own = np.random.Generator(np.random.PCG64(seed_sequence(77, index))).random(2).tolist()
        assert inner == [drawn_by_definition(index, number)[0] for number in range(3)]
        assert before == own[0]
        assert after == own[1]


# ---- the states that all share ------------------------------------------------------------------------------------------------


def test_legacy_states_are_set_for_each_item(way_of_its_own):
    expected = [ff.map(draw_everywhere, [None] * 25, seed=11, engine="serial", chunk=1)]
    for chunk in (1, 7, "auto"):
        expected.append(ff.map(draw_everywhere, [None] * 25, seed=11, chunk=chunk, **way_of_its_own))
    assert all(values == expected[0] for values in expected)
    assert len({value[0] for value in expected[0]}) == len({value[1] for value in expected[0]}) == 25


def test_legacy_states_do_not_depend_on_how_much_the_item_before_drew(way_of_its_own):
    def draw_much(item):
        random.random()
        for _ in range(item):
            random.random()
            np.random.rand()
        return random.random()

    def draw_two(item):
        random.random()
        for _ in range(item):
            random.random()
        return random.random()

    assert ff.map(draw_much, range(10), seed=1, **way_of_its_own) == ff.map(draw_two, range(10), seed=1, engine="serial")


def states():
    kind, words, *rest = np.random.get_state()
    return random.getstate(), kind, words.tolist(), rest


def test_the_callers_own_states_are_as_before(way_of_its_own):
    random.seed(3)
    np.random.seed(3)
    before = states()
    ff.map(draw_everywhere, range(10), seed=1, **way_of_its_own)
    assert states() == before
    with pytest.raises(ZeroDivisionError):
        ff.map(lambda item: random.random() / 0, range(10), seed=1, **way_of_its_own)
    assert states() == before


def test_the_callers_numbers_between_streamed_values_are_its_own(way_of_its_own):
    random.seed(5)
    expected = [random.random() for _ in range(40)]
    random.seed(5)
    mine, theirs = [], []
    for value in ff.imap(draw_everywhere, range(30), seed=9, **way_of_its_own):
        theirs.append(value)
        mine.append(random.random())
    mine += [random.random() for _ in range(10)]
    assert mine == expected
    assert theirs == ff.map(draw_everywhere, range(30), seed=9, engine="serial")


def test_a_source_that_draws_numbers_draws_the_callers(way_of_its_own):
    def source():
        for _ in range(60):
            yield random.random()

    random.seed(6)
    expected = [random.random() for _ in range(60)]
    random.seed(6)
    assert ff.map(lambda item: (item, random.random())[0], source(), seed=2, **way_of_its_own) == expected


@pytest.mark.parametrize("engine", ["serial", "threads", "processes", "auto"])
def test_a_program_that_has_not_imported_numpy_gets_the_same_numbers(engine):
    code = (
        f"import fourfold as ff; print(ff.map(lambda item: ff.rng().random(), range(3), seed=5, workers=2, engine={engine!r}))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == f"{[drawn_by_definition(5, index)[0] for index in range(3)]}\n"


def test_without_a_seed_the_loop_leaves_the_states_to_the_function():
    random.seed(7)
    expected = [random.random() for _ in range(10)]
    random.seed(7)
    assert ff.map(lambda item: random.random(), range(10)) == expected


@pytest.mark.parametrize("engine", ["threads"])
@pytest.mark.parametrize(
    "function", [lambda item: random.random(), lambda item: float(np.random.rand())], ids=["random", "numpy"]
)
def test_threads_refuse_seeded_items_that_draw_from_a_shared_state(engine, function):
    with pytest.raises(UnsafeRandomness, match=r"Use fourfold.rng\(\) in the function, or engine=\"processes\""):
        ff.map(function, range(10), seed=1, engine=engine, workers=2)
    assert ff.map(function, range(10), engine=engine, workers=2)


def test_threads_that_draw_at_the_same_time_each_have_their_items_stream():
    together = threading.Barrier(2, timeout=60)

    def draw_together(item):
        first = ff.rng().random()
        together.wait()
        return first, int(ff.rng().integers(1 << 60))

    values = ff.map(draw_together, range(8), seed=12, engine="threads", workers=2, chunk=1)
    assert values == [drawn_by_definition(12, index) for index in range(8)]

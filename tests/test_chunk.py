"""The block loop: a chunk's items run at the speed of `map`, and each keeps an outcome of its own."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import fourfold as ff
from fourfold.execute import chunk as chunk_module
from fourfold.execute import current
from fourfold.execute.chunk import Program, is_worker_class
from fourfold.execute.keep import SoFar
from fourfold.records import Chunk, Kind


class Cell:
    """What an engine would share: notes the marks, and says stop when told."""

    def __init__(self, stop_after=None, inline=False):
        self.marks, self.stop_after, self.inline = [], stop_after, inline
        self.whole = inline

    def mark(self, offset, count):
        self.marks.append((offset, count))

    def stopped(self):
        return self.stop_after is not None and len(self.marks) >= self.stop_after


def run(fn, items, start=0, indices=None, cell=None, **program):
    kind, result = Program(fn, **program).prepare()(Chunk(start, items, indices), cell or Cell())
    assert kind is Kind.DONE
    return result


class Clock:
    """Time that passes when items say so."""

    def __init__(self):
        self.now = 0.0

    def __call__(self):
        return self.now


@pytest.fixture
def clock(monkeypatch):
    made = Clock()
    monkeypatch.setattr(chunk_module.time, "perf_counter", made)
    return made


def test_values_and_troubles_have_their_places():
    def fail_odd(item):
        if item % 2:
            raise ValueError(item)
        return item

    result = run(fail_odd, range(6))
    assert result.done == 6
    assert result.values == [0, None, 2, None, 4, None]
    assert [(trouble.offset, trouble.message, trouble.item) for trouble in result.troubles] == [
        (1, "1", "1"),
        (3, "3", "3"),
        (5, "5", "5"),
    ]


@given(st.lists(st.sampled_from(["value", "error", "stop", "exit"]), max_size=60), st.integers(1, 70))
@settings(max_examples=150, deadline=None)
def test_each_item_runs_once_and_has_one_outcome_for_any_block_size(fates, block):
    ran = []

    def live(place):
        ran.append(place)
        match fates[place]:
            case "error":
                raise ValueError(place)
            case "stop":
                raise StopIteration
            case "exit":
                raise SystemExit(place)
        return place

    pace = chunk_module._Pace()
    pace.block = block
    finished, troubles, cell = [], [], Cell()
    chunk_module._run_blocks(live, list(range(len(fates))), SoFar(0, finished, troubles), cell, pace, None)
    assert ran == list(range(len(fates)))
    assert finished == [place if fate == "value" else None for place, fate in enumerate(fates)]
    assert [trouble.offset for trouble in troubles] == [place for place, fate in enumerate(fates) if fate != "value"]
    begins = [offset for offset, _ in cell.marks] + [len(fates)]
    assert begins == sorted(set(begins)), "no block begins twice"
    assert all(begin + count >= after for (begin, count), after in zip(cell.marks, begins[1:], strict=True)), "all were marked"


def test_an_item_is_marked_before_it_runs():
    cell = Cell()
    seen = run(lambda item: cell.marks[-1], range(40), cell=cell).values
    for item, (offset, count) in enumerate(seen):
        assert offset <= item < offset + count


def test_slow_items_run_in_blocks_of_one(clock):
    def slow(item):
        clock.now += chunk_module.BLOCK_S * 3

    cell = Cell()
    run(slow, range(20), cell=cell)
    *blocks, after = cell.marks
    assert {count for _, count in blocks} == {1}
    assert after == (0, 20)  # whoever is slow in pickling may be any of them


def test_fast_items_run_in_blocks_that_grow_and_last_about_the_block_time(clock):
    def fast(item):
        clock.now += chunk_module.BLOCK_S / 1000

    cell = Cell()
    run(fast, range(20_000), cell=cell)
    counts = [count for _, count in cell.marks[:-1]]
    assert counts[:4] == [1, 2, 4, 8]
    assert 250 <= max(counts) <= 2000
    assert len(counts) < 60


def test_items_that_become_slow_shrink_the_blocks(clock):
    def slower(item):
        clock.now += chunk_module.BLOCK_S * (1e-3 if item < 2000 else 1)

    cell = Cell()
    run(slower, range(4000), cell=cell)
    assert cell.marks[-2][1] <= 2


def test_the_pace_is_kept_from_chunk_to_chunk(clock):
    def fast(item):
        clock.now += chunk_module.BLOCK_S / 1000

    prepared = Program(fast).prepare()
    first, second = Cell(), Cell()
    prepared(Chunk(0, range(1000)), first)
    prepared(Chunk(1000, range(1000)), second)
    assert len(second.marks) < len(first.marks)
    assert second.marks[0][1] > 100


def test_a_stop_ends_the_chunk_between_blocks_and_says_how_far_it_came():
    ran = []
    result = run(ran.append, range(100), cell=Cell(stop_after=3))
    assert result.done == len(ran) < 100
    assert result.values == [None] * len(ran)


def test_a_stop_before_the_first_item_runs_nothing():
    result = run(lambda item: 1 / 0, range(5), cell=Cell(stop_after=0))
    assert (result.done, result.values, result.troubles) == (0, [], [])


def test_an_interrupt_in_the_callers_thread_is_no_items_failure():
    def interrupt(item):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(interrupt, range(3), cell=Cell(inline=True))
    assert current.current_index() is None
    assert len(run(interrupt, range(3)).troubles) == 3


@pytest.mark.parametrize("indices", [None, (7, 3, 9)])
def test_an_item_can_ask_for_its_index(indices):
    result = run(lambda item: current.current_index(), "abc", start=40, indices=indices)
    assert result.values == (list(indices) if indices else [40, 41, 42])
    assert current.current_index() is None


def test_the_index_is_right_after_failures_and_in_nested_chunks():
    def outer(item):
        inner = run(lambda _: current.current_index(), range(2), start=100).values
        if item == 1:
            raise ValueError
        return current.current_index(), inner

    assert run(outer, range(3), start=5).values == [(5, [100, 101]), None, (7, [100, 101])]


def test_the_traceback_starts_at_the_functions_own_frame():
    (trouble,) = run(int, ["x"]).troubles
    assert trouble.traceback.count("File ") <= 1
    (trouble,) = run(lambda item: int(item), ["x"]).troubles
    assert "in <lambda>" in trouble.traceback
    assert "execute/chunk.py" not in trouble.traceback


def test_a_fold_gets_the_values_and_the_holes():
    def fail_at_two(item):
        if item == 2:
            raise ValueError
        return item

    result = run(fail_at_two, range(4), start=8, fold=lambda start, values, holes: (start, list(values), holes))
    assert (result.done, result.values) == (4, [(8, [0, 1, None, 3], [2])])


def test_a_fold_of_items_from_all_over_the_input_gets_each_at_its_index():
    def fail_at_two(item):
        if item == 2:
            raise ValueError
        return item

    fold = lambda start, values, holes: (start, values, holes)  # noqa: E731
    result = run(fail_at_two, range(4), start=8, indices=(5, 0, 9, 2), fold=fold)
    assert result.values == [(5, [0], []), (0, [1], []), (2, [3], [])]


def test_only_classes_with_call_are_built_per_worker():
    class Base:
        def __call__(self, item):
            return item

    class Derived(Base):
        pass

    class Plain:
        pass

    assert [is_worker_class(each) for each in (Base, Derived, Plain, int, dict, Base(), len)] == [True, True, *[False] * 5]


# ---- straight into the list of all results ----------------------------------------------------------------------------------


def test_values_go_straight_into_the_list_of_results_while_it_is_their_turn():
    into = [10, 11]
    result = run(lambda item: item * 10, [1, 2], start=2, into=into, cell=Cell(inline=True))
    assert result.values is into
    assert (result.done, into) == (2, [10, 11, 10, 20])


@pytest.mark.parametrize("start", [0, 1, 3])
def test_values_out_of_turn_come_in_a_list_of_their_own(start):
    into = [10, 11]
    result = run(abs, [-1], start=start, into=into, cell=Cell(inline=True))
    assert (result.values, into) == ([1], [10, 11])


def test_a_chunk_with_a_failure_takes_its_values_back():
    into = [10]
    result = run(lambda item: 1 // item, [1, 0, 2], start=1, into=into, cell=Cell(inline=True))
    assert (result.done, result.values, into) == (3, [1, None, 0], [10])
    assert [trouble.offset for trouble in result.troubles] == [1]


def test_the_index_counts_from_where_the_chunk_began():
    into = ["a", "b"]
    run(lambda item: current.current_index(), [0, 0], start=2, into=into, cell=Cell(inline=True))
    assert into == ["a", "b", 2, 3]


def test_a_list_that_shrinks_while_its_window_is_mapped_is_an_error():
    items = list(range(10))

    def shrink(item):
        del items[5:]
        return item

    with pytest.raises(RuntimeError, match="do not change the list during the call"):
        ff.map(shrink, items, engine="serial", chunk=10)

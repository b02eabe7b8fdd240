"""`ff.reduce` combines by a fixed tree: the same bits for any chunk size, worker count, engine and order of arrival."""

import functools
import itertools
import operator
import random
import struct

import pytest
import ways
from hypothesis import given, settings
from hypothesis import strategies as st

import fourfold as ff
from fourfold.aggregate.tree import EMPTY, TreeReduction
from fourfold.errors import OptionError, OptionTypeError, TooManyFailures

way = ways.way
way_to_processes = ways.way_to_processes
notebook = ways.notebook

SIZES = [1, 2, 3, 5, 8, 9, 31, 33, 64, 65]
SOME_SIZES = [1, 3, 8, 33, 64, 65]


def by_the_tree(combine, values):
    """The definition, written as it is said: a block of 2**k leaves is its left half combined with its right half."""
    level = 1
    while level < len(values):
        level *= 2

    def block(start, size):
        if start >= len(values):
            return None
        if size == 1:
            return [values[start]] if values[start] is not EMPTY else []
        left, right = block(start, size // 2), block(start + size // 2, size // 2)
        if not right:
            return left
        return right if not left else [combine(left[0], right[0])]

    return block(0, level)[0]


def sum_text(left, right):
    """Shows where the brackets are."""
    return f"({left}+{right})"


def cancelling(n):
    """Floats of all sizes and both signs: nearly any other order of sums gives other bits."""
    made = random.Random(n)
    return [made.uniform(-1, 1) * 10.0 ** made.randint(-12, 12) for _ in range(n)]


def bits(number):
    return struct.pack("<d", number).hex()


# ---- values ---------------------------------------------------------------------------------------------------------------


def test_the_tree_of_six_is_the_one_in_the_picture():
    assert ff.reduce(sum_text, range(6)) == "(((0+1)+(2+3))+(4+5))"


@pytest.mark.parametrize("chunk", [1, 3, 4, "auto"])
def test_any_number_of_items_is_combined_by_the_definition(way, chunk):
    for n in SIZES if way["engine"] == "serial" else SOME_SIZES:
        assert ff.reduce(sum_text, range(n), chunk=chunk, **way) == by_the_tree(sum_text, list(range(n))), n


@pytest.mark.parametrize("n", [1, 2, 17, 64, 100])
def test_joining_text_equals_the_loop_so_order_is_kept(way, n):
    words = [chr(97 + number % 26) * (number % 3 + 1) for number in range(n)]
    assert ff.reduce(operator.add, words, chunk=3, **way) == "".join(words)


def test_exact_numbers_equal_the_loop(way):
    assert ff.reduce(operator.add, range(1000), fn=lambda x: x * x, **way) == functools.reduce(
        operator.add, (x * x for x in range(1000))
    )


def test_one_item_is_its_own_value_and_nothing_is_combined(way):
    def refuse(left, right):
        raise AssertionError("there is nothing to combine")

    assert ff.reduce(refuse, [7], fn=lambda x: x + 1, **way) == 8


def test_values_may_be_none_false_or_empty(way):
    assert ff.reduce(lambda a, b: None, range(9), **way) is None
    assert ff.reduce(operator.add, [[]] * 9, **way) == []
    assert ff.reduce(operator.or_, [False] * 9, **way) is False


def test_a_lazy_source_is_reduced_without_its_length(way):
    assert ff.reduce(sum_text, iter(range(77)), chunk=5, **way) == by_the_tree(sum_text, list(range(77)))


def test_costly_items_first_may_not_change_the_order_of_combining(way):
    values = ff.reduce(sum_text, range(20), cost=lambda x: (x * 7) % 20, chunk=3, **way)
    assert values == by_the_tree(sum_text, list(range(20)))


def test_no_items_have_no_value_and_it_says_so(way):
    with pytest.raises(OptionError, match="reduce has no value to return: there are no items"):
        ff.reduce(operator.add, [], **way)


# ---- the same bits ------------------------------------------------------------------------------------------------------------


def test_floats_have_the_same_bits_for_every_chunk_size(way):
    values = cancelling(37)
    sizes = [1, 2, 7, 16, 37, "auto"] if way["engine"] in ("processes", "auto") else [*range(1, 38), "auto"]
    digests = {bits(ff.reduce(operator.add, values, chunk=chunk, **way)) for chunk in sizes}
    assert digests == {bits(by_the_tree(operator.add, values))}


def test_floats_have_the_same_bits_for_every_worker_count():
    values = cancelling(200)
    digests = {
        bits(ff.reduce(operator.add, values, chunk=chunk, engine=engine, workers=workers))
        for engine in ("threads", "processes")
        for workers in (1, 3)
        for chunk in (7, "auto")
    }
    assert digests == {bits(by_the_tree(operator.add, values))}


def test_the_test_values_tell_orders_apart():
    values = cancelling(37)
    assert bits(sum(values)) != bits(by_the_tree(operator.add, values)) != bits(sum(reversed(values)))


# ---- failures -------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("on_error", ["skip", "collect"])
@pytest.mark.parametrize("chunk", [1, 2, 5, 16, "auto"])
def test_failed_leaves_are_left_out_and_the_rest_keeps_its_place(way, chunk, on_error, caplog):
    failing = {0, 3, 4, 5, 11, 12, 13, 14, 15, 21}

    def fail(n):
        if n in failing:
            raise ValueError(n)
        return str(n)

    value = ff.reduce(sum_text, range(22), fn=fail, chunk=chunk, on_error=on_error, **way)
    assert value == by_the_tree(sum_text, [EMPTY if n in failing else str(n) for n in range(22)])
    assert "10 failed items" in caplog.text


def test_when_all_fail_there_is_no_value(way):
    with pytest.raises(OptionError, match="no value to return: all 5 items failed"):
        ff.reduce(operator.add, ["x"] * 5, fn=int, on_error="skip", **way)


def test_the_first_failing_item_raises_as_in_the_loop(way):
    with pytest.raises(ValueError, match="'b7'") as caught:
        ff.reduce(operator.add, ["1"] * 7 + ["b7", "b8"], fn=int, chunk=3, **way)
    assert caught.value.__notes__[0].startswith("fourfold: item 7 of int: 'b7' (attempt 1, ")


def test_too_many_failures_end_a_reduction(way):
    with pytest.raises(TooManyFailures):
        ff.reduce(operator.add, ["1"] * 7 + ["b7", "b8"], fn=int, on_error="skip", max_failures=1, **way)


def test_a_retried_leaf_keeps_its_place(way, notebook):
    def fail_once(n):
        if n in (2, 5) and str(n) not in notebook.lines():
            notebook.write(n)
            raise ValueError(n)
        return n

    value = ff.reduce(sum_text, range(9), fn=fail_once, retries=1, chunk=3, **way)
    assert value == by_the_tree(sum_text, list(range(9)))


@pytest.mark.parametrize("chunk", [1, 4, 16])
def test_a_combine_that_raises_ends_the_call_with_its_own_exception(way, chunk):
    def refuse_seven(left, right):
        if 7 in (left, right):
            raise ZeroDivisionError("seven")
        return left + right

    with pytest.raises(ZeroDivisionError, match="seven"):
        ff.reduce(refuse_seven, range(20), chunk=chunk, **way)
    assert ff.reduce(operator.add, range(5), **way) == 10


def test_a_combine_that_raises_in_a_worker_shows_the_line(way_to_processes):
    def refuse(left, right):
        raise ZeroDivisionError("this line")

    with pytest.raises(ZeroDivisionError) as caught:
        ff.reduce(refuse, range(20), chunk=10, **{**way_to_processes, "engine": "processes"})
    assert 'raise ZeroDivisionError("this line")' in str(caught.value.__cause__)


def test_a_combined_value_that_cannot_travel_names_the_path(way_to_processes):
    import threading

    with pytest.raises(TypeError, match=r"a combined value cannot travel back: .*cannot pickle '_thread.lock' object"):
        ff.reduce(lambda a, b: threading.Lock(), range(20), chunk=10, **{**way_to_processes, "engine": "processes"})


def test_combine_must_be_callable():
    with pytest.raises(OptionTypeError, match="combine=3 must be a function of two values"):
        ff.reduce(3, [1])


# ---- the aggregator by itself: laws -------------------------------------------------------------------------------------------------


@st.composite
def arrivals(draw):
    """Values with holes, cut into chunks that arrive in any order: (values, chunks as (start, stop), in arrival order)."""
    n = draw(st.integers(1, 70))
    holes = draw(st.sets(st.integers(0, n - 1), max_size=n - 1))
    cuts = sorted(draw(st.sets(st.integers(1, n), max_size=n)) | {0, n})
    chunks = draw(st.permutations(list(itertools.pairwise(cuts))))
    return [EMPTY if place in holes else str(place) for place in range(n)], chunks


def reduced(tree, values, chunks, late_holes=False):
    """What the driver does: fold each chunk, combine as it comes; holes are made known with the chunk or after all."""
    state, late = tree.identity(), []
    for start, stop in chunks:
        part = values[start:stop]
        holes = [offset for offset, value in enumerate(part) if value is EMPTY]
        state = tree.combine(state, tree.fold(start, [None if value is EMPTY else value for value in part], holes))
        absent = [tree.absent(start + offset) for offset in holes]
        if late_holes:
            late += absent
        else:
            for partial in absent:
                state = tree.combine(state, partial)
    for partial in late:
        state = tree.combine(state, partial)
    return tree.finish(state, len(values))


@given(arrivals(), st.booleans())
@settings(max_examples=300, deadline=None)
def test_the_answer_does_not_depend_on_chunks_arrival_or_holes(given_arrivals, late_holes):
    values, chunks = given_arrivals
    assert reduced(TreeReduction(sum_text), values, chunks, late_holes) == by_the_tree(sum_text, values)


@given(st.integers(1, 5000), st.integers(0, 5000))
@settings(max_examples=200, deadline=None)
def test_a_chunk_travels_as_few_blocks(length, start):
    blocks = TreeReduction(operator.add).fold(start, list(range(length)), [])
    assert len(blocks) <= 2 * max(1, length.bit_length())
    covered = [place for (level, number), _ in blocks for place in range(number << level, (number + 1) << level)]
    assert covered == list(range(start, start + length))


@given(st.lists(st.integers(), min_size=1, max_size=60), st.randoms(use_true_random=False))
@settings(max_examples=200, deadline=None)
def test_every_value_is_combined_exactly_once(values, order):
    calls = 0

    def count(left, right):
        nonlocal calls
        calls += 1
        return left + right

    tree = TreeReduction(count)
    chunks = [(place, place + 1) for place in range(len(values))]
    order.shuffle(chunks)
    assert reduced(tree, values, chunks) == sum(values)
    assert calls == len(values) - 1


def test_a_hole_survives_pickling_as_the_hole():
    import pickle

    assert pickle.loads(pickle.dumps(EMPTY)) is EMPTY

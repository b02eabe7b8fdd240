"""Sources: any iterable becomes consecutive chunks, read lazily, once, and closed at the end."""

import itertools
import pickle

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fourfold.divide.source import Source
from fourfold.errors import OptionError, OptionTypeError

KINDS = {
    "list": list,
    "tuple": tuple,
    "iterator": iter,
    "generator": lambda items: (item for item in items),
    "dictionary": dict.fromkeys,
    "cost": lambda items: list(items),
}


def source_of(kind, items):
    made = KINDS[kind](items)
    return Source(made, cost=lambda item: 1.0) if kind == "cost" else Source(made)


def drained(source, counts):
    chunks = []
    for count in counts:
        chunk = source.take(count)
        if chunk is None:
            break
        chunks.append(chunk)
    return chunks


@pytest.mark.parametrize("kind", KINDS)
@given(n=st.integers(0, 50), counts=st.lists(st.integers(1, 20), max_size=8))
def test_chunks_are_consecutive_and_lose_nothing(kind, n, counts):
    source = source_of(kind, list(range(n)))
    chunks = drained(source, itertools.chain(counts, itertools.repeat(7)))
    assert [item for chunk in chunks for item in chunk.items] == list(range(n))
    start = 0
    for chunk, count in zip(chunks, itertools.chain(counts, itertools.repeat(7)), strict=False):
        assert chunk.start == start
        assert len(chunk.items) <= count
        start += len(chunk.items)
    assert source.take(3) is None


@pytest.mark.parametrize(
    ("items", "total"),
    [
        ([1, 2], 2),
        (range(5), 5),
        ({1, 2, 3}, 3),
        ("ab", 2),
        (iter([1]), None),
        ((n for n in [1]), None),
        (map(abs, [1]), None),
    ],
)
def test_the_total_is_known_when_the_container_says_it(items, total):
    assert Source(items).total == total


def test_only_what_is_taken_is_read():
    counter = itertools.count()
    source = Source(counter)
    source.take(3)
    source.take(4)
    assert next(counter) == 7


def test_lists_are_sliced_and_not_copied_item_by_item():
    assert type(Source(range(10)).take(4).items) is range
    assert type(Source([1, 2, 3]).take(2).items) is list


@pytest.mark.parametrize("kind", [list, tuple])
def test_a_window_is_the_slice_it_stands_for_without_a_copy(kind):
    items = kind(range(100, 120))
    source = Source(items)
    source.take(3, copy=False)
    window, part = source.take(5, copy=False).items, items[3:8]
    assert (len(window), list(window), window[0], window[-1]) == (5, list(part), part[0], part[-1])
    assert window[1:3] == part[1:3]
    assert window[:100] == part
    assert pickle.loads(pickle.dumps(window)) == list(part)
    with pytest.raises(IndexError):
        window[5]
    assert list(source.take(100, copy=False).items) == list(items[8:])
    assert source.take(1, copy=False) is None


def test_a_range_is_its_own_window():
    assert type(Source(range(10)).take(4, copy=False).items) is range


@pytest.mark.fault("F35")
def test_a_list_that_shrinks_while_it_is_read_ends_early():
    items = list(range(10))
    source = Source(items)
    source.take(4)
    del items[5:]
    assert list(source.take(4).items) == [4]
    assert source.take(4) is None


def test_a_broken_iterator_gives_what_it_had_and_then_its_exception():
    def broken():
        yield from range(3)
        raise OSError("broken")

    source = Source(broken())
    assert list(source.take(10).items) == [0, 1, 2]
    for _ in range(2):
        with pytest.raises(OSError, match="broken"):
            source.take(10)


def test_an_iterator_that_has_ended_is_left_alone():
    asked = 0

    class Terminal:
        def __iter__(self):
            return self

        def __next__(self):
            nonlocal asked
            asked += 1
            if asked == 3:
                raise StopIteration
            return asked

    source = Source(Terminal())
    assert list(source.take(10).items) == [1, 2]
    assert source.take(10) is None
    assert asked == 3


def test_an_interrupt_while_reading_is_passed_on_at_once():
    def interrupted():
        yield 1
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        Source(interrupted()).take(10)


def test_close_ends_a_generator_and_nothing_else(tmp_path):
    notes = []

    def generator():
        try:
            yield from range(10)
        finally:
            notes.append("closed")

    source = Source(generator())
    source.take(2)
    source.close()
    source.close()
    assert notes == ["closed"]
    path = tmp_path / "lines"
    path.write_text("a\nb\n")
    with path.open() as file:
        Source(file).close()
        assert file.readline() == "a\n"
    Source([1]).close()


# ---- cost ---------------------------------------------------------------------------------------------------------------------


@given(st.lists(st.floats(0, 100), max_size=30))
def test_the_costly_come_first_and_know_their_place_in_the_input(costs):
    source = Source(list(enumerate(costs)), cost=lambda item: item[1])
    assert source.permuted
    chunks = drained(source, itertools.repeat(4))
    given_out = [item for chunk in chunks for item in chunk.items]
    assert [cost for _, cost in given_out] == sorted(costs, reverse=True) == source.costs
    places = [chunk.index_of(offset) for chunk in chunks for offset in range(len(chunk.items))]
    assert places == [place for place, _ in given_out] == [source.index_of(position) for position in range(len(costs))]


def test_equal_costs_keep_the_order_of_the_input():
    assert list(Source("abcd", cost=lambda item: 1).take(9).items) == list("abcd")


@pytest.mark.parametrize(
    ("cost", "error", "text"),
    [
        (lambda item: None, OptionTypeError, "returned None; it must return a number"),
        (lambda item: -0.1, OptionError, "returned -0.1; a cost must be finite and not negative"),
        (lambda item: float("nan"), OptionError, "a cost must be finite"),
    ],
)
def test_a_bad_cost_names_the_item_and_the_value(cost, error, text):
    with pytest.raises(error, match=text):
        Source([1], cost=cost)

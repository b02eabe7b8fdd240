"""The functions that users call on items: each is one Call and one way to aggregate it."""

import weakref
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing
from typing import Any, Unpack

from fourfold.aggregate.results import Results, Stream
from fourfold.aggregate.tree import TreeReduction
from fourfold.call import Call
from fourfold.errors import JournalError, OptionTypeError
from fourfold.options import Options, resolve


def map(fn: Callable[[Any], Any], items: Iterable[Any], **options: Unpack[Options]) -> Results:
    """Call a function for every item, and return the values in input order.

    It starts as the plain loop, and moves to worker processes when the loop's own figures say that this pays; the report
    has the verdict.

    Args:
        fn: Takes one item. A class with `__call__` is built once per worker with `init=`, then called per item.
        items: Any iterable; it is read lazily, by this thread only.
        **options: See `fourfold.Options`.

    Returns:
        A list in input order with `.failures` and `.report`.

    Raises:
        OptionError: An option or argument cannot be used; before anything starts.
        Exception: Under `on_error="raise"`: what the function raised for the first failing item (under `cost=`,
            the first by cost), with its own type, a note
            that names the item, and the worker's traceback as the cause.
        TooManyFailures: More items failed than `max_failures`.
        JournalError: The folder of `run=` has no room, or cannot be written; `.results` of the error has the values that are
            there, by index.

    Guarantees: one outcome per item; the same values for any engine, worker count and chunk.

    Cost: items and results are pickled when they go to other processes; arrays move through shared memory.

    Example:
        >>> import fourfold as ff
        >>> ff.map(len, ["a", "bb", "ccc"])
        [1, 2, 3]
    """
    results = Results()
    call = Call(fn, items, resolve(options), into=results)
    try:
        with closing(call.in_order()) as segments:
            for segment in segments:
                if segment.values is not results:
                    results.extend(segment.values)
    except JournalError as error:
        call.rescue(error, results)
        raise
    call.raise_if_stopped()
    results.failures, results.report = call.failures.sorted(), call.conclude()
    return results


def imap(fn: Callable[[Any], Any], items: Iterable[Any], ordered: bool = True, **options: Unpack[Options]) -> Stream:
    """Call a function for every item, and give out the values while others are still computed.

    Memory stays bounded: items are read, and results held, only a few chunks ahead of the slowest one.

    Args:
        fn: As for `map`.
        items: As for `map`; it may be endless.
        ordered: True gives values in input order; False as they complete.
        **options: See `fourfold.Options`.

    Returns:
        An iterator with `.failures`, `.report` and `.close()`.

    Raises:
        OptionError: At the call, before anything starts.
        Exception: As for `map`, when the iteration reaches it.

    Example:
        >>> import fourfold as ff
        >>> sorted(ff.imap(abs, iter([-1, 2, -3]), ordered=False))
        [1, 2, 3]
    """
    if not isinstance(ordered, bool):
        raise OptionTypeError(f"ordered={ordered!r} must be True or False")
    call = Call(fn, items, resolve(options), bounded=True)
    stream = Stream(_values(call, ordered), call.failures.sorted, call.report, call.give_up)
    if call.is_recorded:
        weakref.finalize(stream, call.give_up)  # when nobody ever asks for a value
    return stream


def reduce(
    combine: Callable[[Any, Any], Any],
    items: Iterable[Any],
    fn: Callable[[Any], Any] | None = None,
    **options: Unpack[Options],
) -> Any:
    """Combine the values of all items to one, by a fixed binary tree over their order.

    The tree depends on the number of items only, so floating-point sums have the same bits for any chunk size, worker
    count and engine. They may differ in the last bits from `functools.reduce`, which combines from left to right.

    Args:
        combine: Takes two values and returns one; associative, not necessarily commutative.
        items: As for `map`.
        fn: None, or maps each item to the value to combine.
        **options: See `fourfold.Options`. Failed items are left out under "collect" and "skip".

    Raises:
        OptionError: There is no value: no items, or all failed.

    Source: aligned binary blocks; the value of a block depends on its position only (TBB's deterministic reduce).

    Example:
        >>> import fourfold as ff
        >>> ff.reduce(lambda a, b: a + b, range(10), fn=lambda x: x * x)
        285
    """
    if not callable(combine):
        raise OptionTypeError(f"combine={combine!r} must be a function of two values")
    tree = TreeReduction(combine)
    call = Call(fn if fn is not None else _itself, items, resolve(options), tree=tree)
    state, count = tree.identity(), 0
    with closing(call.segments()) as segments:
        for segment in segments:
            for partial in segment.values:
                state = tree.combine(state, partial)
            count += segment.n_items
    call.raise_if_stopped()
    answer = tree.finish(state, count)
    call.conclude()
    call.warn_of_failures("reduce left out")
    return answer


def _itself(item: Any) -> Any:
    return item


def _values(call: Call, ordered: bool) -> Iterator[Any]:
    try:
        with closing(call.in_order() if ordered else call.segments()) as segments:
            for segment in segments:
                yield from segment.values
        call.raise_if_stopped()
    except JournalError as error:
        call.rescue(error)
        raise
    finally:  # also when nobody wants the rest
        call.conclude()

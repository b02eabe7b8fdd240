"""What lies between the driver and a worker: parcels laid out in shared memory, messages, the control page."""

import contextlib
import errno
import gc
import os
import pickle
import socket
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from leaks import open_files

from fourfold.distribute.engines.on_processes import channel, segments
from fourfold.distribute.engines.on_processes.cell import PageCell
from fourfold.distribute.engines.on_processes.handle import new_worker
from fourfold.distribute.engines.on_processes.page import COUNT, FIRST, PAGE_BYTES, STOPS, TICKET, Page
from fourfold.distribute.engines.on_processes.program import SharedProgram
from fourfold.distribute.engines.on_processes.segments import ALIGN, Owner, Place
from fourfold.records import Parcel, Ticket

INLINE = 256
"""A small limit, so that small parcels go through segments."""


def parcel_of(*parts: bytes) -> Parcel:
    return Parcel(parts[0], parts[1:])


def content(parcel: Parcel) -> list[bytes]:
    return [bytes(parcel.head), *(bytes(buffer) for buffer in parcel.buffers)]


SMALL = [b"h", b"b"]
LARGE = [b"head", b"x" * 5000, b"", b"y"]


@pytest.fixture
def owner() -> Iterator[Owner]:
    owner = Owner()
    yield owner
    owner.close()


def carry(owner: Owner, parcel: Parcel, opened: Callable[[Place, int], Any] = segments.open_copy) -> tuple[Place, Any]:
    """Lay out a parcel, and open it as the other side of a channel does; returns its place and what was opened."""
    place, fd = owner.write(parcel, INLINE)
    # The kernel gives the other side a descriptor of its own.
    return place, opened(place, os.dup(fd) if fd >= 0 else -1)


# ---- the layout of a parcel


@given(st.lists(st.binary(max_size=300) | st.integers(0, 3).map(lambda n: b"x" * (n * 300_000)), min_size=1, max_size=8))
def test_a_parcel_is_read_as_it_was_laid_out(parts: list[bytes]) -> None:
    owner = Owner()
    _, parcel = carry(owner, parcel_of(*parts))
    assert content(parcel) == parts
    owner.close()


@given(st.lists(st.binary(max_size=300), min_size=1, max_size=20))
def test_each_part_is_aligned_for_any_number_type(parts: list[bytes]) -> None:
    owner = Owner()
    place, fd = owner.write(parcel_of(*parts), 0)
    parcel, mapping = segments.open_readonly(place, os.dup(fd))
    start = np.frombuffer(mapping, np.uint8).ctypes.data
    addresses = [np.frombuffer(part, np.uint8).ctypes.data for part in (parcel.head, *parcel.buffers) if len(part)]
    assert {(address - start) % ALIGN for address in addresses} <= {0}
    owner.close()


def test_buffers_of_any_number_type_and_shape_are_laid_out_as_bytes(owner: Owner) -> None:
    numbers = memoryview(bytearray(range(64))).cast("d")
    grid = memoryview(bytearray(range(24))).cast("B", shape=[4, 6])
    _, parcel = carry(owner, Parcel(b"head", (numbers, grid)))
    assert content(parcel) == [b"head", bytes(range(64)), bytes(range(24))]


# ---- segments: one side writes, the other reads


def test_a_small_parcel_travels_inside_the_message(owner: Owner) -> None:
    place, parcel = carry(owner, parcel_of(*SMALL))
    assert place.inline is not None
    assert content(parcel) == SMALL


def test_a_large_parcel_travels_through_a_segment(owner: Owner) -> None:
    place, parcel = carry(owner, parcel_of(*LARGE))
    assert place.inline is None
    assert content(parcel) == LARGE


def test_a_released_segment_is_used_again(owner: Owner) -> None:
    first, _ = carry(owner, parcel_of(*LARGE))
    owner.release(first.segment)
    again, parcel = carry(owner, parcel_of(b"other", b"z" * 4000))
    assert again.segment == first.segment
    assert content(parcel) == [b"other", b"z" * 4000]


def test_a_segment_that_is_not_released_is_not_written(owner: Owner) -> None:
    opened = [carry(owner, parcel_of(b"h", bytes([n]) * 500), segments.open_shared) for n in range(5)]
    assert len({place.segment for place, _ in opened}) == 5
    assert [bytes(parcel.buffers[0]) for _, (parcel, _) in opened] == [bytes([n]) * 500 for n in range(5)]


def test_an_abandoned_segment_is_never_written_again(owner: Owner) -> None:
    place, (parcel, _) = carry(owner, parcel_of(*LARGE), segments.open_shared)
    owner.abandon(place.segment)
    for _ in range(3):
        other, _ = carry(owner, parcel_of(b"other", b"z" * 5000))
        assert other.segment != place.segment
        owner.release(other.segment)
    assert content(parcel) == LARGE


def test_a_free_segment_may_grow(owner: Owner) -> None:
    small, _ = carry(owner, parcel_of(*LARGE))
    owner.release(small.segment)
    _, parcel = carry(owner, parcel_of(b"h", b"z" * 3_000_000))
    assert bytes(parcel.buffers[0]) == b"z" * 3_000_000


def test_the_smallest_free_segment_that_is_large_enough_is_taken(owner: Owner) -> None:
    places = [carry(owner, parcel_of(b"h", b"z" * size))[0] for size in (8_000_000, 2_000_000, 1000)]
    for place in places:
        owner.release(place.segment)
    assert carry(owner, parcel_of(b"h", b"z" * 1_500_000))[0].segment == places[1].segment


def test_trimmed_memory_is_given_back(owner: Owner) -> None:
    before = open_memory()
    for place in [carry(owner, parcel_of(b"h", b"z" * 100_000))[0] for _ in range(4)]:
        owner.release(place.segment)
    owner.trim(250_000)
    assert owner.free_bytes <= 250_000
    assert open_memory() == before + 2
    owner.trim(0)
    assert open_memory() == before


def test_an_owner_that_let_go_of_everything_can_be_used_again(owner: Owner) -> None:
    before = open_memory()
    place, _ = carry(owner, parcel_of(*LARGE))
    owner.close()
    assert open_memory() == before
    owner.release(place.segment)
    assert content(carry(owner, parcel_of(*LARGE))[1]) == LARGE


OPENED: dict[str, Callable[[Place, int], Parcel]] = {
    "shared": lambda place, fd: segments.open_shared(place, fd)[0],
    "private": lambda place, fd: segments.open_private(place, fd)[0],
    "copy": segments.open_copy,
}


@pytest.mark.parametrize(
    ("how", "size_bytes"), [("shared", 10), ("shared", 5000), ("private", 5000), ("copy", 10), ("copy", 5000)]
)
def test_items_and_results_are_writable_at_every_size(owner: Owner, how: str, size_bytes: int) -> None:
    _, parcel = carry(owner, parcel_of(b"h", bytes(size_bytes)), OPENED[how])
    view = memoryview(parcel.buffers[0])
    view[0] = 7
    assert view[0] == 7


@pytest.mark.parametrize("size_bytes", [10, 5000])
def test_programs_are_readonly_at_every_size(owner: Owner, size_bytes: int) -> None:
    _, (parcel, _) = carry(owner, parcel_of(b"h", bytes(size_bytes)), segments.open_readonly)
    assert memoryview(parcel.buffers[0]).readonly


@pytest.mark.parametrize("how", ["private", "copy"])
def test_what_is_written_into_a_result_stays_in_this_process(owner: Owner, how: str) -> None:
    place, fd = owner.write(parcel_of(*LARGE), INLINE)
    memoryview(OPENED[how](place, os.dup(fd)).buffers[0])[:3] = b"new"
    assert content(segments.open_copy(place, os.dup(fd))) == LARGE


@pytest.mark.parametrize("opened", [segments.open_readonly, segments.open_shared, segments.open_private])
def test_memory_lives_on_with_those_who_look_at_it_and_goes_with_the_last(owner: Owner, opened: Any) -> None:
    before = mapped_memory()
    _, (parcel, mapping) = carry(owner, parcel_of(*LARGE), opened)
    owner.close()
    del mapping
    assert content(parcel) == LARGE
    del parcel
    assert mapped_memory() == before


LOOKS: dict[str, Callable[[Any], object]] = {
    "a view": lambda buffer: buffer[10:],
    "an array": lambda buffer: np.frombuffer(buffer, np.uint8),
    "a part of an array": lambda buffer: np.frombuffer(buffer, np.uint8)[10:20],
    "an Arrow buffer": pa.py_buffer,
    "an unpickled array": lambda buffer: unpickled_array(buffer),
}


def unpickled_array(buffer: Any) -> Any:
    head = pickle.dumps(np.zeros(len(buffer), np.uint8), 5, buffer_callback=[].append)
    return pickle.loads(head, buffers=[buffer])


@pytest.mark.parametrize("opened", [segments.open_readonly, segments.open_shared])
@pytest.mark.parametrize("kind", LOOKS)
def test_who_still_looks_into_a_segment_is_seen(owner: Owner, kind: str, opened: Any) -> None:
    _, (parcel, mapping) = carry(owner, parcel_of(*LARGE), opened)
    look = LOOKS[kind](parcel.buffers[0])
    del parcel
    assert segments.is_looked_at(mapping)
    del look
    assert not segments.is_looked_at(mapping)


def test_a_parcel_inside_its_message_is_its_readers_own(owner: Owner) -> None:
    _, (parcel, mapping) = carry(owner, parcel_of(*SMALL), segments.open_shared)
    assert content(parcel) == SMALL
    assert not segments.is_looked_at(mapping)


def open_memory() -> int:
    """How many descriptors of our memory this process has."""
    return sum("fourfold" in target for target in open_files().values())


def mapped_memory() -> int:
    """How many mappings of our memory this process has."""
    gc.collect()
    with open("/proc/self/maps") as maps:
        return sum("fourfold" in line for line in maps)


# ---- where the memory comes from


@pytest.mark.skipif(not hasattr(os, "memfd_create"), reason="this system has no memfd")
def test_memory_has_no_name_and_is_closed_in_programs_that_items_start() -> None:
    fd = segments.new_file(100)
    try:
        assert os.readlink(f"/proc/self/fd/{fd}").endswith("(deleted)")
        assert not os.get_inheritable(fd)
    finally:
        os.close(fd)


@pytest.mark.parametrize("parts", [SMALL, LARGE], ids=["inline", "segment"])
def test_without_memfd_parcels_travel_all_the_same(monkeypatch: pytest.MonkeyPatch, owner: Owner, parts: list[bytes]) -> None:
    monkeypatch.delattr(os, "memfd_create", raising=False)
    for size in (1, 1000, 10):
        place, parcel = carry(owner, parcel_of(*parts, b"z" * size))
        assert content(parcel) == [*parts, b"z" * size]
        owner.release(place.segment)


def test_without_memfd_the_memory_is_a_file_without_a_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(os, "memfd_create", raising=False)
    fd = segments.new_file(5000)
    try:
        assert os.readlink(f"/proc/self/fd/{fd}").endswith("(deleted)")
        assert os.fstat(fd).st_size == 5000
        assert os.fstat(fd).st_nlink == 0
        assert not os.get_inheritable(fd)
    finally:
        os.close(fd)


# ---- messages


@pytest.fixture
def ends():
    pair = channel.pair()
    yield pair
    for end in pair:
        end.close()


def test_messages_arrive_whole_and_in_order(ends: tuple[socket.socket, socket.socket]) -> None:
    ours, theirs = ends
    messages = [("ticket", 1, "program", (None, 1, 0, 7)), ("drop", "program"), ("forget", [1, 2]), ("x", b"\0" * 30_000)]
    for message in messages:
        channel.send(ours, message)
    assert [channel.receive(theirs) for _ in messages] == [(message, []) for message in messages]


def test_a_message_may_be_as_long_as_its_limit_says(ends: tuple[socket.socket, socket.socket]) -> None:
    ours, theirs = ends
    message = ("x", b"\1" * (channel.MESSAGE_BYTES - 100))
    channel.send(ours, message)
    assert channel.receive(theirs) == (message, [])


def test_descriptors_arrive_with_their_message(ends: tuple[socket.socket, socket.socket]) -> None:
    ours, theirs = ends
    read_end, write_end = os.pipe()
    channel.send(ours, ("first",))
    channel.send(ours, ("second",), (write_end,))
    os.close(write_end)
    assert channel.receive(theirs) == (("first",), [])
    received = channel.receive(theirs)
    assert received is not None
    (fd,) = received[1]
    assert not os.get_inheritable(fd)
    os.write(fd, b"!")
    assert os.read(read_end, 1) == b"!"
    os.close(fd)
    os.close(read_end)


def test_the_end_of_the_other_side_is_told(ends: tuple[socket.socket, socket.socket]) -> None:
    ours, theirs = ends
    channel.send(ours, ("last words",))
    ours.close()
    assert channel.receive(theirs) == (("last words",), [])
    assert channel.receive(theirs) is None


def test_sending_to_nobody_is_an_error_and_no_signal(ends: tuple[socket.socket, socket.socket]) -> None:
    ours, theirs = ends
    theirs.close()
    with pytest.raises(OSError, match=r"Broken pipe|reset"):
        channel.send(ours, ("hello",))


def test_a_side_that_does_not_read_blocks_nobody_who_asks_not_to_wait(ends: tuple[socket.socket, socket.socket]) -> None:
    ours, _ = ends

    def send_much() -> None:
        for _ in range(10_000):
            channel.send(ours, ("x", b"\0" * 1000), (), socket.MSG_DONTWAIT)

    with pytest.raises(BlockingIOError):
        send_much()


# ---- the control page


@pytest.fixture
def two_pages():
    """One page, as the driver and the worker have it mapped."""
    fd = segments.new_file(PAGE_BYTES)
    os.ftruncate(fd, PAGE_BYTES)
    pages = Page(fd), Page(fd)
    os.close(fd)
    yield pages
    for page in pages:
        page.close()


def test_the_driver_reads_where_the_worker_is(two_pages: tuple[Page, Page]) -> None:
    drivers, workers = two_pages
    cell = PageCell(workers)
    cell.begin(6)
    assert (drivers.fields[TICKET], drivers.fields[COUNT]) == (7, 0)
    cell.mark(40, 10)
    assert (drivers.fields[FIRST], drivers.fields[COUNT]) == (40, 10)
    cell.end()
    assert drivers.fields[TICKET] == 0


@pytest.fixture
def worker_and_cell():
    """The driver's side of a worker that has tickets, and the cell on the other side. No process is needed for this."""
    worker, end, page_fd = new_worker(1, lambda: True)
    page = Page(page_fd)
    os.close(page_fd)
    cell = PageCell(page)
    yield worker, cell
    cell.keep.__self__._memory.close()
    end.close()
    page.close()
    worker.close()
    worker.page.close()


def test_a_ticket_is_stopped_and_no_other(worker_and_cell) -> None:
    worker, cell = worker_and_cell
    worker.page.stop(5)
    cell.begin(4)
    assert not cell.stopped()
    cell.begin(5)
    assert cell.stopped()


def test_a_ticket_to_stop_is_found_after_another_one_has_ended(worker_and_cell) -> None:
    worker, cell = worker_and_cell
    worker.flights.update(dict.fromkeys(range(STOPS), -1))
    for number in range(STOPS):
        worker.page.stop(number)
    for number in range(STOPS):
        cell.begin(number)
        assert cell.stopped()
        worker._done([], number, 0, None, False)
        assert not cell.stopped()


def test_a_ticket_that_could_not_be_sent_is_not_with_the_worker(worker_and_cell, monkeypatch) -> None:
    """Its channel is full, and no open file is left to keep a descriptor for later."""
    worker, _ = worker_and_cell
    while not worker.line._waiting:
        worker.line.send(("rest",))
    monkeypatch.setattr(os, "dup", lambda fd: (_ for _ in ()).throw(OSError(errno.EMFILE, "no open file is left")))
    owner = Owner()
    program = SharedProgram(Parcel(b"f", (bytearray(1 << 20),)), owner, 1, contextlib.nullcontext())
    with pytest.raises(OSError, match="no open file is left"):
        worker.give(Ticket(1, "program", Parcel(b"i"), 1), program)
    monkeypatch.undo()
    worker.give(Ticket(1, "program", Parcel(b"i"), 1), program)
    monkeypatch.setattr(os, "dup", lambda fd: (_ for _ in ()).throw(OSError(errno.EMFILE, "no open file is left")))
    with pytest.raises(OSError, match="no open file is left"):
        worker.give(Ticket(2, "program", Parcel(b"i", (bytearray(1 << 20),)), 1), program)
    monkeypatch.undo()
    assert list(worker.flights) == [1]
    assert [message[0] for message, _ in worker.line._waiting if message[0] != "rest"] == ["program", "ticket"]
    worker.drop("program")
    program.close()
    owner.close()

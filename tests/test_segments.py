"""What lies between the driver and a worker: parcels laid out in shared memory, messages, the control page."""

import gc
import mmap
import os
import socket
from collections.abc import Callable
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fourfold.distribute.engines.on_processes import channel, segments
from fourfold.distribute.engines.on_processes.handle import new_worker
from fourfold.distribute.engines.on_processes.page import COUNT, FIRST, PAGE_BYTES, STOPS, TICKET, Page, PageCell
from fourfold.distribute.engines.on_processes.segments import ALIGN, KEEP_FREE, SMALLEST, Reader, Writer, fill, layout, read
from fourfold.records import Parcel

INLINE = 256
"""A small limit, so that small parcels go through segments."""


def parcel_of(*parts: bytes) -> Parcel:
    return Parcel(parts[0], parts[1:])


def content(parcel: Parcel) -> list[bytes]:
    return [bytes(parcel.head), *(bytes(buffer) for buffer in parcel.buffers)]


def laid_out(parcel: Parcel) -> bytearray:
    lengths, size = layout(parcel)
    memory = bytearray(size)
    fill(memoryview(memory), parcel, lengths)
    return memory


# ---- the layout of a parcel


@given(st.lists(st.binary(max_size=300), min_size=1, max_size=20))
def test_a_parcel_is_read_as_it_was_laid_out(parts: list[bytes]) -> None:
    assert content(read(memoryview(laid_out(parcel_of(*parts))))) == parts


@given(st.lists(st.binary(max_size=300), min_size=1, max_size=20))
def test_each_part_is_aligned_for_any_number_type(parts: list[bytes]) -> None:
    memory = mmap.mmap(-1, 1 << 16)
    parcel = parcel_of(*parts)
    fill(memoryview(memory), parcel, layout(parcel)[0])
    back = read(memoryview(memory))
    whole = memoryview(memory)
    for part in (back.head, *back.buffers):
        if len(part):
            assert _offset(whole, part) % ALIGN == 0
    # Let go of the views, or the mapping cannot be closed.
    del part, back, whole
    memory.close()


def _offset(whole: memoryview, part: Any) -> int:
    return np.frombuffer(part, np.uint8).ctypes.data - np.frombuffer(whole, np.uint8).ctypes.data


def test_buffers_of_any_number_type_and_shape_are_laid_out_as_bytes() -> None:
    numbers = memoryview(bytearray(range(64))).cast("d")
    grid = memoryview(bytearray(range(24))).cast("B", shape=[4, 6])
    back = read(memoryview(laid_out(Parcel(b"head", (numbers, grid)))))
    assert content(back) == [b"head", bytes(range(64)), bytes(range(24))]


# ---- segments that one side writes and the other reads


class TwoSides:
    """A writer and its reader, as they are at both ends of a channel."""

    def __init__(self, *, readonly: bool = False) -> None:
        self.writer, self.reader = Writer(), Reader(readonly=readonly)

    def carry(self, parcel: Parcel) -> tuple[segments.Place, Parcel]:
        place, new = self.writer.write(parcel, INLINE)
        # The kernel gives the other side a descriptor of its own.
        fds = [os.dup(new.fd)] if new is not None else []
        if new is not None:
            new.close_fd()
        return place, read(self.reader.view(place, fds))

    def close(self) -> None:
        self.writer.close()
        self.reader.close()


@pytest.fixture
def sides():
    both = TwoSides()
    yield both
    both.close()


def memory_held() -> int:
    """How many mappings of our memory this process has."""
    gc.collect()
    with open("/proc/self/maps") as maps:
        return sum("fourfold" in line for line in maps)


LARGE = [b"head", b"x" * 5000, b"", b"y"]


def test_a_small_parcel_travels_inside_the_message(sides: TwoSides) -> None:
    place, parcel = sides.carry(parcel_of(b"h", b"b"))
    assert place.inline is not None
    assert content(parcel) == [b"h", b"b"]


def test_a_large_parcel_travels_through_a_segment(sides: TwoSides) -> None:
    place, parcel = sides.carry(parcel_of(*LARGE))
    assert place.inline is None
    assert content(parcel) == LARGE


def test_a_released_segment_is_used_again_and_its_descriptor_is_not_sent_again(sides: TwoSides) -> None:
    first, parcel = sides.carry(parcel_of(*LARGE))
    del parcel
    sides.writer.release(first.segment)
    again, parcel = sides.carry(parcel_of(*LARGE))
    assert (first.segment, first.size > 0) == (again.segment, True)
    assert again.size == 0
    assert content(parcel) == LARGE


def test_a_segment_that_is_not_released_is_not_written(sides: TwoSides) -> None:
    places, parcels = zip(*[sides.carry(parcel_of(b"h", bytes([number]) * 200)) for number in range(5)], strict=True)
    assert len({place.segment for place in places}) == 5
    assert [bytes(parcel.buffers[0]) for parcel in parcels] == [bytes([number]) * 200 for number in range(5)]


def test_an_abandoned_segment_is_never_written_again(sides: TwoSides) -> None:
    place, parcel = sides.carry(parcel_of(*LARGE))
    sides.writer.abandon(place.segment)
    sides.reader.forget([place.segment])
    for _ in range(3):
        other, _ = sides.carry(parcel_of(b"other", b"z" * 5000))
        assert other.segment != place.segment
        sides.writer.release(other.segment)
    assert content(parcel) == LARGE


def test_few_free_segments_are_kept_and_the_other_side_is_told_to_forget_the_rest(sides: TwoSides) -> None:
    places = [sides.carry(parcel_of(*LARGE))[0] for _ in range(KEEP_FREE + 3)]
    forgotten = [id for place in places for id in sides.writer.release(place.segment)]
    assert len(forgotten) == 3
    assert set(forgotten) <= {place.segment for place in places}


def test_a_parcel_larger_than_all_free_segments_gets_a_new_one(sides: TwoSides) -> None:
    small, _ = sides.carry(parcel_of(*LARGE))
    sides.writer.release(small.segment)
    large, parcel = sides.carry(parcel_of(b"h", b"z" * 2 * SMALLEST))
    assert large.segment != small.segment
    assert bytes(parcel.buffers[0]) == b"z" * 2 * SMALLEST


def test_the_smallest_free_segment_that_is_large_enough_is_taken(sides: TwoSides) -> None:
    places = [sides.carry(parcel_of(b"h", b"z" * size))[0] for size in (8 * SMALLEST, 2 * SMALLEST)]
    for place in places:
        sides.writer.release(place.segment)
    place, _ = sides.carry(parcel_of(b"h", b"z" * (SMALLEST + 1)))
    assert place.segment == places[1].segment


def test_both_sides_can_be_used_again_after_they_let_go_of_everything(sides: TwoSides) -> None:
    before = memory_held()
    place, parcel = sides.carry(parcel_of(*LARGE))
    del parcel
    sides.writer.release(place.segment)
    sides.close()
    assert memory_held() == before
    _, parcel = sides.carry(parcel_of(*LARGE))
    assert content(parcel) == LARGE


@pytest.mark.parametrize("parts", [[b"h", b"b"], LARGE], ids=["inline", "segment"])
def test_items_are_writable_at_every_size(sides: TwoSides, parts: list[bytes]) -> None:
    _, parcel = sides.carry(parcel_of(*parts))
    assert not memoryview(parcel.buffers[0]).readonly


@pytest.mark.parametrize("parts", [[b"h", b"b"], LARGE], ids=["inline", "segment"])
def test_what_is_shared_is_readonly_at_every_size(parts: list[bytes]) -> None:
    sides = TwoSides(readonly=True)
    _, parcel = sides.carry(parcel_of(*parts))
    assert memoryview(parcel.buffers[0]).readonly
    del parcel
    sides.close()


LOOKS: dict[str, Callable[[Any], object]] = {
    "a view": lambda buffer: buffer[10:],
    "an array": lambda buffer: np.frombuffer(buffer, np.uint8),
    "a part of an array": lambda buffer: np.frombuffer(buffer, np.uint8)[10:20],
    "an Arrow buffer": pa.py_buffer,
}


@pytest.mark.parametrize("kind", LOOKS)
def test_who_still_looks_into_a_segment_is_seen(sides: TwoSides, kind: str) -> None:
    place, parcel = sides.carry(parcel_of(*LARGE))
    look = LOOKS[kind](parcel.buffers[0])
    del parcel
    assert sides.reader.is_looked_at(place)
    del look
    assert not sides.reader.is_looked_at(place)


def test_a_parcel_inside_its_message_is_its_readers_own() -> None:
    reader = Reader()
    assert not reader.is_looked_at(Writer().write(parcel_of(b"h"), INLINE)[0])


def test_closing_leaves_memory_to_those_who_still_look_at_it(sides: TwoSides) -> None:
    _, parcel = sides.carry(parcel_of(*LARGE))
    sides.close()
    assert content(parcel) == LARGE


def test_memory_is_given_back_when_the_last_view_goes(sides: TwoSides) -> None:
    before = memory_held()
    _, parcel = sides.carry(parcel_of(*LARGE))
    sides.close()
    assert memory_held() > before
    del parcel
    assert memory_held() == before


# ---- where the memory comes from


@pytest.mark.skipif(not hasattr(os, "memfd_create"), reason="this system has no memfd")
def test_memory_has_no_name_and_is_closed_in_programs_that_items_start() -> None:
    fd = segments.new_file(100)
    try:
        assert os.readlink(f"/proc/self/fd/{fd}").endswith("(deleted)")
        assert not os.get_inheritable(fd)
    finally:
        os.close(fd)


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
    worker, end, page_fd = new_worker(1)
    page = Page(page_fd)
    os.close(page_fd)
    yield worker, PageCell(page)
    end.close()
    page.close()
    worker.close()


def test_a_ticket_is_stopped_and_no_other(worker_and_cell) -> None:
    worker, cell = worker_and_cell
    worker.stop_ticket(5)
    cell.begin(4)
    assert not cell.stopped()
    cell.begin(5)
    assert cell.stopped()


def test_a_ticket_to_stop_is_found_after_another_one_has_ended(worker_and_cell) -> None:
    worker, cell = worker_and_cell
    worker.flights.update(dict.fromkeys(range(STOPS), -1))
    for number in range(STOPS):
        worker.stop_ticket(number)
    for number in range(STOPS):
        cell.begin(number)
        assert cell.stopped()
        worker._done([], number, 0, None, False)
        assert not cell.stopped()

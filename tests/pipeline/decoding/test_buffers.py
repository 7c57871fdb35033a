"""Memory that is used again: nothing lies where something else still is, and little is kept."""

import gc
import random
import threading
from collections import deque

import numpy as np
import pyarrow as pa
import pytest

from mediamill.pipeline.decoding.arrow_column import binary_column
from mediamill.pipeline.decoding.buffer_pool import BufferPool
from mediamill.pipeline.decoding.decoder_pool import DecodeRequest, DecodeRules, MediumRequest
from mediamill.pipeline.decoding.memory_estimate import memory_bytes
from mediamill.pipeline.decoding.work_queue import WorkQueue
from mediamill.pipeline.decoding.worker_handle import Row
from mediamill.schemas.job import Limits

MIB = 1024**2


def address(array):
    return array.__array_interface__["data"][0]


@pytest.mark.parametrize("seed", range(4))
def test_no_two_things_that_are_in_use_overlap(seed):
    """By threads, with all ways in which something can be held."""
    draw, warm, faults = random.Random(seed), BufferPool(), []

    def work(mark):
        shelf, held = warm.shelf(), []
        for step in range(150):
            size = draw.choice([0, 1, 63, 64, 5000, 300_000, 3 * MIB])
            array = draw.choice([warm.place, shelf.room])(size)
            array[:] = value = (mark * 100 + step) % 256
            hold = draw.choice([lambda one: one, memoryview, pa.py_buffer, lambda one: one[:]])
            held.append((hold(array), value, size))
            del array
            if len(held) > 12:
                kept, value, size = held.pop(draw.randrange(len(held)))
                found = np.frombuffer(kept, np.uint8) if size else np.empty(0)
                if found.size != size or not (found == value).all():
                    faults.append((mark, step))

    threads = [threading.Thread(target=work, args=(mark,)) for mark in range(3)]
    for one in threads:
        one.start()
    for one in threads:
        one.join()
    assert not faults


def test_a_place_is_used_again_when_nothing_refers_to_it():
    warm = BufferPool()
    first = warm.place(3 * MIB)
    at, view = address(first), memoryview(first)[5:9]
    del first
    assert address(warm.place(3 * MIB)) != at
    del view
    gc.collect()
    assert at in [address(one) for one in [warm.place(3 * MIB) for _ in range(2)]]


def test_no_more_is_kept_than_was_said():
    warm = BufferPool(kept_bytes=8 * MIB)
    held = [warm.place(2 * MIB) for _ in range(10)]
    held.clear()
    assert sum(size * len(free) for size, free in warm._free.items()) == 8 * MIB


def test_rooms_of_a_shelf_lie_side_by_side():
    shelf, end = BufferPool().shelf(), None
    for size in (1, 3, 77, 300_000, 5):
        room = shelf.room(size)
        assert room.size == size
        assert end in (None, address(room))
        end = address(room) + size
    assert shelf.room(40 * MIB).size == 40 * MIB


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("apart", [0.0, 0.03, 1.0])
def test_a_column_is_what_arrow_would_make(seed, apart):
    """Of values side by side, with some gaps, or each somewhere else."""
    draw, warm = random.Random(seed), BufferPool()
    for count in (0, 1, 7, 8, 9, 100):
        values, views, shelf = [], [], warm.shelf()
        for _ in range(count):
            null = draw.random() < 0.3 * (seed % 3)
            values.append(None if null else draw.randbytes(draw.choice([0, 1, 999])))
            if draw.random() < apart:
                shelf = warm.shelf()
            views.append(None if null else put(shelf, values[-1]))
        column = binary_column(views, warm)
        column.validate(full=True)
        assert column.combine_chunks().equals(pa.array(values, pa.large_binary()))
        assert column.null_count == values.count(None)
        assert column.num_chunks <= 8


def put(shelf, value):
    room = shelf.room(len(value))
    room[:] = np.frombuffer(value, np.uint8)
    return room.data


def test_what_lies_side_by_side_is_not_copied():
    warm = BufferPool()
    shelf = warm.shelf()
    values = [put(shelf, bytes([number]) * 1000) for number in range(50)]
    (chunk,) = binary_column(values, warm).chunks
    assert chunk.buffers()[2].address == address(np.asarray(values[0]))


@pytest.mark.parametrize("apart", [False, True])
def test_a_column_keeps_its_memory_through_arrow(apart):
    """As a table, a part of it, and another table made of it."""
    warm = BufferPool()
    shelf = warm.shelf()
    values = []
    for number in range(50):
        values.append(put(warm.shelf() if apart else shelf, bytes([number]) * 50_000))
    table = pa.table({"x": binary_column(values, warm)})
    part = pa.concat_tables([table.slice(10, 5), table.slice(40)])
    del table, values, shelf
    gc.collect()
    for _ in range(3):
        warm.place(4 * MIB)[:] = 0xEE
        warm.place(32 * MIB)[:] = 0xEE
    assert [one.as_py()[:1] + one.as_py()[-1:] for one in part["x"]] == [
        bytes([i, i]) for i in (*range(10, 15), *range(40, 50))
    ]


@pytest.mark.parametrize("seed", range(20))
def test_every_row_is_taken_once_and_each_slot_is_at_neighbours(seed):
    draw = random.Random(seed)
    slots, count = draw.choice([1, 2, 3, 8]), draw.choice([0, 1, 2, 50, 200])
    rows = [
        Row(number, DecodeRequest([MediumRequest(memoryview(bytes(100)))]))
        for number in range(count)
    ]
    lanes, done, runs, last = WorkQueue(deque(rows), slots), [], 0, {}
    while lanes.waiting:
        slot = draw.randrange(slots)
        taken = lanes.take(slot, draw.choice([1, 4, 32]))
        assert taken
        left = taken[draw.randrange(1, len(taken) + 1) :]
        lanes.give(slot, left)
        for row in taken[: len(taken) - len(left)]:
            runs += row.number != last.get(slot, -1) + 1
            last[slot] = row.number
            done.append(row.number)
    assert sorted(done) == list(range(count))
    assert runs <= slots * (2 + count.bit_length())


def test_the_memory_to_ask_for_holds_the_ceilings_of_all_slots():
    limits = Limits()
    both, one = memory_bytes(limits, 2), memory_bytes(limits, 1)
    assert both > DecodeRules.slots * limits.decode_bytes
    assert both - one > limits.decode_bytes
    larger = limits.model_copy(update={"decode_bytes": 2 * limits.decode_bytes})
    assert memory_bytes(larger, 2) - both == 2 * limits.decode_bytes

"""Memory that is used again: no two buffers in use overlap, and little is retained."""

import gc
import random
import threading
from collections import deque

import numpy as np
import pyarrow as pa
import pytest

from mediamill.pipeline.decoding.arrow_column import binary_column
from mediamill.pipeline.decoding.buffer_pool import Arena, BufferPool
from mediamill.pipeline.decoding.decoder_pool import WORKERS, DecodeRequest, MediumRequest
from mediamill.pipeline.decoding.memory_estimate import memory_bytes
from mediamill.pipeline.decoding.work_queue import WorkQueue
from mediamill.pipeline.decoding.worker_handle import PendingRow
from mediamill.schemas.job import Limits

MIB = 1024**2


def address(array):
    return array.__array_interface__["data"][0]


@pytest.mark.parametrize("seed", range(4))
def test_no_two_things_that_are_in_use_overlap(seed):
    """By threads, with all ways in which something can be held."""
    draw, pool, faults = random.Random(seed), BufferPool(), []

    def work(mark):
        arena, held = Arena(pool), []
        for step in range(150):
            size = draw.choice([0, 1, 63, 64, 5000, 300_000, 3 * MIB])
            array = draw.choice([pool.allocate, arena.allocate])(size)
            array[:] = value = (mark * 100 + step) % 256
            hold = draw.choice([lambda one: one, memoryview, pa.py_buffer, lambda one: one[:]])
            held.append((hold(array), value, size))
            del array
            if len(held) > 12:
                buffer, value, size = held.pop(draw.randrange(len(held)))
                found = np.frombuffer(buffer, np.uint8) if size else np.empty(0)
                if found.size != size or not (found == value).all():
                    faults.append((mark, step))

    threads = [threading.Thread(target=work, args=(mark,)) for mark in range(3)]
    for one in threads:
        one.start()
    for one in threads:
        one.join()
    assert not faults


def test_a_buffer_is_used_again_when_nothing_refers_to_it():
    pool = BufferPool()
    first = pool.allocate(3 * MIB)
    at, view = address(first), memoryview(first)[5:9]
    del first
    assert address(pool.allocate(3 * MIB)) != at
    del view
    gc.collect()
    assert at in [address(one) for one in [pool.allocate(3 * MIB) for _ in range(2)]]


def test_no_more_is_retained_than_was_said():
    pool = BufferPool(retained_bytes=8 * MIB)
    held = [pool.allocate(2 * MIB) for _ in range(10)]
    held.clear()
    assert sum(size * len(free) for size, free in pool._free.items()) == 8 * MIB


def test_buffers_of_an_arena_are_contiguous():
    arena, end = Arena(BufferPool()), None
    for size in (1, 3, 77, 300_000, 5):
        buffer = arena.allocate(size)
        assert buffer.size == size
        assert end in (None, address(buffer))
        end = address(buffer) + size
    assert arena.allocate(40 * MIB).size == 40 * MIB


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("apart", [0.0, 0.03, 1.0])
def test_a_column_is_what_arrow_would_make(seed, apart):
    """Of values side by side, with some gaps, or each somewhere else."""
    draw, pool = random.Random(seed), BufferPool()
    for count in (0, 1, 7, 8, 9, 100):
        values, views, arena = [], [], Arena(pool)
        for _ in range(count):
            null = draw.random() < 0.3 * (seed % 3)
            values.append(None if null else draw.randbytes(draw.choice([0, 1, 999])))
            if draw.random() < apart:
                arena = Arena(pool)
            views.append(None if null else put(arena, values[-1]))
        column = binary_column(views, pool)
        column.validate(full=True)
        assert column.combine_chunks().equals(pa.array(values, pa.large_binary()))
        assert column.null_count == values.count(None)
        assert column.num_chunks <= 8


def put(arena, value):
    buffer = arena.allocate(len(value))
    buffer[:] = np.frombuffer(value, np.uint8)
    return buffer.data


def test_what_lies_side_by_side_is_not_copied():
    pool = BufferPool()
    arena = Arena(pool)
    values = [put(arena, bytes([number]) * 1000) for number in range(50)]
    (chunk,) = binary_column(values, pool).chunks
    assert chunk.buffers()[2].address == address(np.asarray(values[0]))


@pytest.mark.parametrize("apart", [False, True])
def test_a_column_keeps_its_memory_through_arrow(apart):
    """As a table, a part of it, and another table made of it."""
    pool = BufferPool()
    arena = Arena(pool)
    values = []
    for number in range(50):
        values.append(put(Arena(pool) if apart else arena, bytes([number]) * 50_000))
    table = pa.table({"x": binary_column(values, pool)})
    part = pa.concat_tables([table.slice(10, 5), table.slice(40)])
    del table, values, arena
    gc.collect()
    for _ in range(3):
        pool.allocate(4 * MIB)[:] = 0xEE
        pool.allocate(32 * MIB)[:] = 0xEE
    assert [one.as_py()[:1] + one.as_py()[-1:] for one in part["x"]] == [
        bytes([i, i]) for i in (*range(10, 15), *range(40, 50))
    ]


@pytest.mark.parametrize("seed", range(20))
def test_every_row_is_taken_once_and_each_worker_gets_neighbours(seed):
    draw = random.Random(seed)
    workers, count = draw.choice([1, 2, 3, 8]), draw.choice([0, 1, 2, 50, 200])
    rows = [
        PendingRow(number, DecodeRequest([MediumRequest(memoryview(bytes(100)))]))
        for number in range(count)
    ]
    queue, done, runs, last = WorkQueue(deque(rows), workers), [], 0, {}
    while queue.waiting:
        worker = draw.randrange(workers)
        taken = queue.take(worker, draw.choice([1, 4, 32]))
        assert taken
        left = taken[draw.randrange(1, len(taken) + 1) :]
        queue.put_back(worker, left)
        for row in taken[: len(taken) - len(left)]:
            runs += row.number != last.get(worker, -1) + 1
            last[worker] = row.number
            done.append(row.number)
    assert sorted(done) == list(range(count))
    assert runs <= workers * (2 + count.bit_length())


def test_the_memory_estimate_covers_the_limits_of_all_workers():
    limits = Limits()
    both, one = memory_bytes(limits, 2), memory_bytes(limits, 1)
    assert both > WORKERS * limits.decode_bytes
    assert both - one > limits.decode_bytes
    larger = limits.model_copy(update={"decode_bytes": 2 * limits.decode_bytes})
    assert memory_bytes(larger, 2) - both == 2 * limits.decode_bytes

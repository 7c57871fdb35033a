"""Staged parts are read in few requests, and only those that fail are retried."""

from collections import Counter

import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from fsspec.implementations.memory import MemoryFileSystem

from mediamill.pipeline.ledger import publish, recovery
from mediamill.pipeline.ledger.state import Group, Part
from mediamill.pipeline.records import ROW_STRUCT
from mediamill.pipeline.storage import storage
from mediamill.pipeline.storage.retries import Backoff, IncompleteError
from mediamill.schemas import columns as c

FOLDERS, TASKS = 40, 5
RUN = "run"


class Counting(MemoryFileSystem):
    """Counts the requests for each range; `broken` ones fail the first time."""

    cachable = False

    def __init__(self):
        super().__init__()
        self.requests = Counter()
        self.broken = set()

    def cat_file(self, path, start=None, end=None, **options):
        self.requests[path, start] += 1
        if (path, start) in self.broken and self.requests[path, start] == 1:
            raise ConnectionResetError("in the middle of it")
        return super().cat_file(path, start, end, **options)


@pytest.fixture
def output(tmp_path):
    fs = Counting()
    url = f"memory://{tmp_path}"
    yield storage.Place(fs, fsspec.core.strip_protocol(url), url)
    MemoryFileSystem.store.clear()


def rows(*indices, text="some text"):
    ordinals = [pa.array([0] * len(indices), pa.int32()), pa.array(indices, pa.int64())]
    return pa.table(
        {
            "id": pa.array(indices, pa.int64()),
            "text": [text] * len(indices),
            c.ROW: pa.StructArray.from_arrays(ordinals, fields=list(ROW_STRUCT)),
        }
    )


def staged(output):
    """Stages a part of two rows for each task and folder. Returns the groups of the folders."""
    publish.permit(output, RUN)
    parts_of = {f"kind={number:02}": [] for number in range(FOLDERS)}
    for task in range(TASKS):
        tables = [
            (folder, rows(*(2 * (task * FOLDERS + number) + i for i in (1, 0))))
            for number, folder in enumerate(parts_of)
        ]
        for folder, part in publish.stage(output, f"t{task}", tables):
            parts_of[folder].append(part)
    return [Group(f"{name}/part.parquet", tuple(parts)) for name, parts in parts_of.items()]


def test_neighbouring_parts_are_read_together(output):
    groups = staged(output)
    contents = publish.read_parts(output, groups)
    assert output.fs.requests.total() == TASKS  # not one for each part
    assert len(contents) == TASKS * FOLDERS
    for group in groups:
        publish.publish(output, group, RUN, contents)
    assert output.fs.requests.total() == TASKS
    for number, group in enumerate(groups):
        table = pq.read_table((output / group.name).path, filesystem=output.fs)
        wanted = [2 * (task * FOLDERS + number) + i for task in range(TASKS) for i in (0, 1)]
        assert table["id"].to_pylist() == wanted


def test_distant_parts_are_read_apart(output):
    few = [("a", rows(1)), ("b", rows(*range(2, 2000))), ("c", rows(2001))]
    (_, a), (_, b), (_, c_) = publish.stage(output, "t", few)
    assert c_.offset - b.offset < publish._GAP_BYTES
    publish.read_parts(output, [Group("one", (a, c_))])
    assert output.fs.requests.total() == 1
    many = [("a", rows(1)), ("b", incompressible(300_000)), ("c", rows(2001))]
    (_, a), (_, b), (_, c_) = publish.stage(output, "t", many)
    assert c_.offset - b.offset > publish._GAP_BYTES
    publish.read_parts(output, [Group("one", (a, c_))])
    assert output.fs.requests.total() == 1 + 2


def incompressible(size):
    return rows(0, text=np.random.default_rng(0).bytes(size).hex())


def test_only_a_range_that_fails_is_read_again(output):
    groups = staged(output)
    path = publish._object(output, "t2").path
    output.fs.broken = {(path, 0)}
    contents = publish.read_parts(output, groups)
    assert len(contents) == TASKS * FOLDERS
    paths = [publish._object(output, f"t{number}").path for number in range(TASKS)]
    assert output.fs.requests == {(one, 0): 2 if one == path else 1 for one in paths}


def test_missing_parts_are_not_replaced_by_others(output):
    groups = staged(output)
    publish.discard(output, ["t1"])
    contents = publish.read_parts(output, groups)
    assert {token for token, _ in contents} == {"t0", "t2", "t3", "t4"}
    with pytest.raises(FileNotFoundError):
        publish.publish(output, groups[0], RUN, contents)
    # The parts are missing because another process has published the file meanwhile.
    storage.put(output / groups[0].name, b"theirs")
    publish.publish(output, groups[0], RUN, contents)
    assert storage.read(output / groups[0].name) == b"theirs"


def test_a_truncated_object_is_an_error(output, monkeypatch):
    monkeypatch.setattr(storage, "_BACKOFF", Backoff(tries=2))
    group = staged(output)[0]
    path = publish._object(output, "t0").path
    output.fs.pipe_file(path, output.fs.cat_file(path)[:100])
    length = group.parts[0].length
    with pytest.raises(IncompleteError, match=f"found 100 bytes of its parts, expected {length}"):
        publish.read_parts(output, [group])


def test_batches_are_small_but_keep_all_threads_busy():
    def group(name, length):
        return Group(name, (Part("t", 0, length, 0, 1),))

    large = [group(f"{n:03}", recovery._BATCH_BYTES) for n in range(20)]
    assert [len(batch) for batch in recovery._batches(large)] == [8, 8, 4]
    small = [group(f"{n:03}", 1000) for n in range(600)]
    assert [len(batch) for batch in recovery._batches(small)] == [256, 256, 88]
    mixed = [*small[:100], *large, *small[100:110]]
    assert [one for batch in recovery._batches(mixed) for one in batch] == mixed

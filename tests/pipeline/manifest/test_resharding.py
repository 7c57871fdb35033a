"""A manifest whose rows are in other files than before goes on: each row comes out once."""

import json
import os
import re

import fsspec
import numpy as np
import pandas as pd
import pyarrow as pa
import pytest

from mediamill.pipeline.ledger import ledger, snapshot
from mediamill.pipeline.ledger.log import log_of
from mediamill.pipeline.ledger.state import RETIRED, count_bits
from mediamill.pipeline.manifest import finished_rows, id_index, resharding, unique_ids
from mediamill.pipeline.stages.read import plan_splits, read_split
from mediamill.pipeline.storage import storage
from mediamill.schemas.errors import JobError
from tests.pipeline.ledger.kill_points import Calls
from tests.pipeline.ledger.test_kill_points import FILE, LEDGER, arrived, dies
from tests.pipeline.manifest.resharded import HEADER, Reshuffler, World


@pytest.fixture
def output():
    """A folder in memory: hundreds of writes to a disk are slow."""
    memory = fsspec.filesystem("memory")
    memory.store.clear()
    memory.pseudo_dirs[:] = [""]
    yield "memory://mill/out"
    memory.store.clear()


def run_and_die(world, draw, monkeypatch):
    """A run that ends as it should, stops after some rows, or is killed at some change."""
    limit = draw.choice([None, draw.randrange(12), draw.randrange(40)])
    last = draw.choice([1_000_000, draw.randrange(1, 60)])
    steps = iter(range(1_000_000))
    dies(lambda: world.run(limit), monkeypatch, lambda name, path: next(steps) >= last)


@pytest.mark.parametrize("seed", range(int(os.environ.get("SEEDS", "12"))))
def test_any_history_of_reshardings_and_kills_finishes_each_row_once(
    tmp_path, output, monkeypatch, seed
):
    world = World(tmp_path / "m", output, [pa.string(), pa.int64()][seed % 2])
    shuffler = Reshuffler(world, seed)
    draw = shuffler.draw
    monkeypatch.setattr(id_index, "_SHARD_HASHES", draw.choice([6, 40, 2_000_000]))
    monkeypatch.setattr(snapshot, "due", lambda state, since: since >= 3)
    shuffler.add()
    shuffler.add()
    world.files["fixed.parquet"] = shuffler.new_ids(9)
    world.store()
    for _ in range(8):
        run_and_die(world, draw, monkeypatch)
        seen = world.visible()
        assert len(seen) == len(set(seen))
        assert set(seen) <= set(world.ids)
        shuffler.change()
    world.run()
    world.assert_finished()


@pytest.fixture
def world(tmp_path, output):
    """Two files of six rows, of which the first file's and one more are finished, some hidden."""
    world = World(tmp_path / "m", output)
    world.files = {
        "a.parquet": [f"a{n}" for n in range(6)],
        "b.parquet": [f"b{n}" for n in "012345"],
    }
    world.store()
    state = world.run(limit=7)
    assert state.counts.rows == 7
    assert 0 < len(world.visible()) < 7
    return world


def kinds(output):
    """The kinds of the log's records, in order."""
    log = log_of(output)
    names = [name for name in storage.list_files(log) if name.endswith(".json")]
    return [json.loads(storage.read(log / name))["kind"] for name in names]


def finish(world, records="reshard"):
    begun = len(kinds(world.output))
    world.run()
    assert kinds(world.output)[begun] == records
    world.assert_finished()


def test_a_renamed_file_keeps_its_bits(world, monkeypatch):
    """Also one that moved to another folder. Older versions can read the log."""
    monkeypatch.setattr(resharding, "read_finished_ids", None)
    a, b = world.files["a.parquet"], world.files["b.parquet"]
    world.files = {"b.parquet": a, "deep/er/c.parquet": b}
    world.store()
    finish(world, "start")
    world.files = {"a.parquet": b, "b.parquet": a, "c.parquet": ["new"]}
    world.store()
    assert world.check()[2].resharding.renamed == {"a.parquet": 1}
    finish(world, "start")


def test_of_renamed_files_the_index_is_kept(world, monkeypatch):
    world.files["c.parquet"] = world.files.pop("a.parquet")
    world.store()
    world.run()
    reads = []
    batches = unique_ids.id_batches
    monkeypatch.setattr(
        unique_ids, "id_batches", lambda file: reads.append(file.name) or batches(file)
    )
    world.files["d.parquet"] = ["new"]
    world.store()
    world.check()
    assert reads == ["d.parquet"]


def test_rows_go_to_the_end_of_a_file_that_stays(world):
    world.files["b.parquet"] += reversed(world.files.pop("a.parquet"))
    world.store()
    finish(world)


def test_the_manifest_becomes_one_file_of_another_name(world, tmp_path):
    world.folder = tmp_path / "other"
    world.files, world.stored = {"all.parquet": sorted(world.ids, reverse=True)}, {}
    world.store()
    world.folder = world.folder / "all.parquet"
    finish(world)


def test_a_finished_row_that_is_gone_is_named(world):
    before = dict(world.files)
    world.files = {"c.parquet": ["a0", "a1", *world.files["b.parquet"][1:], "new"]}
    world.store()
    words = (
        r"m: found 5 of the output's 7 finished rows no longer in the manifest, .*'[ab]\d'.*: put"
    )
    for _ in range(2):
        with pytest.raises(JobError, match=words) as error:
            world.check()
        named = set(re.findall(r"'(\w\d)'", str(error.value)))
        assert named == {"a2", "a3", "a4", "a5", "b0"}
    world.files = before
    world.store()
    finish(world, "start")


def test_many_long_ids_that_are_gone_make_a_short_message(tmp_path, output):
    world = World(tmp_path / "m", output)
    world.files = {"a.parquet": [f"{n:05000}" for n in range(30)], "b.parquet": ["b"]}
    world.store()
    world.run(limit=20)
    del world.files["a.parquet"]
    world.store()
    with pytest.raises(JobError, match=r"found 20 of the output's 20 finished rows") as error:
        world.check()
    assert len(str(error.value)) < 1000


def test_rows_that_were_not_finished_may_be_removed(world):
    world.files["b.parquet"] = ["b5", "b0"]
    world.store()
    _, _, checked = world.check()
    (note,) = checked.notes
    assert "m: at least 4 rows that earlier runs had not finished are no longer" in note
    finish(world)
    world.files["c.parquet"] = ["b1"]  # one comes back: it is a new row
    world.store()
    finish(world, "start")


def test_old_and_new_files_of_an_unfinished_compaction_are_duplicates(world):
    world.files["all.parquet"] = sorted(world.ids)
    world.store()
    with pytest.raises(JobError, match="found 12 ids that occur more than once"):
        world.check()
    del world.files["a.parquet"]
    world.store()
    with pytest.raises(JobError, match="found 6 ids that occur more than once"):
        world.check()
    del world.files["b.parquet"]
    world.store()
    finish(world)


def test_a_duplicate_of_a_moved_row_is_found(world, monkeypatch):
    """The index has the hashes of files that are gone, and cannot be used for those beside them."""
    monkeypatch.setattr(unique_ids, "_MAX_CANDIDATES", 1)
    world.files["c.parquet"] = [*world.files.pop("a.parquet")[::-1], "b3"]
    world.store()
    with pytest.raises(JobError, match=r"'b3' in b.parquet row 3, c.parquet row 6"):
        world.check()


@pytest.mark.parametrize("change", ["removed", "another"])
def test_an_output_without_its_files_is_refused(world, change):
    world.run()
    name = next(name for name in storage.list_files(world.output) if name.endswith(".parquet"))
    data = storage.read(world.output / name)
    if change == "removed":
        storage.remove(world.output / name)
    else:
        storage.put(world.output / "kind=a" / "copy.parquet", data)
    world.files["c.parquet"] = world.files.pop("a.parquet")[::-1]
    world.store()
    with pytest.raises(JobError, match=r"the ids of the 12 finished rows are needed: found \d+ of"):
        world.check()
    storage.put(world.output / name, data)
    storage.remove(world.output / "kind=a" / "copy.parquet")
    finish(world)


def test_an_older_run_on_the_old_files_cannot_finish_rows(world):
    old, manifest, state = world.begin()
    calls = Calls(world.output, old)
    split = plan_splits(manifest, state)[0]
    table = next(iter(read_split(split, manifest.schema, manifest.partitions)))
    world.write(table.slice(0, 1), manifest, old, calls)
    world.files = {"c.parquet": world.ids[::-1]}
    world.store()
    _, _, state = world.begin()
    finished = state.counts.rows
    for _ in range(2):
        with pytest.raises(ledger.TakenOverError, match="run run-3 has begun on the same output"):
            world.write(table.slice(2), manifest, old, calls)
    assert ledger.load(world.output).counts.rows == finished == 8
    finish(world, "start")


def test_rows_that_an_older_run_finishes_after_the_check(world):
    old, manifest, state = world.begin()
    table = next(
        iter(read_split(plan_splits(manifest, state)[0], manifest.schema, manifest.partitions))
    )
    world.files = {"c.parquet": world.ids[::-1]}
    world.store()
    _, state, checked = world.check()
    world.write(table, manifest, old, Calls(world.output, old))
    with pytest.raises(ledger.TakenOverError, match="run run-2 has finished rows while"):
        ledger.begin(world.output, state, "n", HEADER, checked.files, 5, checked.resharding)
    finish(world)


def test_half_a_hash_is_not_an_id(world, monkeypatch):
    for half in ("hash_ids", "plain_ids"):
        with monkeypatch.context() as patch:
            if half == "hash_ids":
                patch.setattr(finished_rows, half, lambda ids: np.zeros(len(ids), np.uint64))
            else:
                patch.setattr(finished_rows.pd.util, "hash_array", colliding)
            world.files = {f"{half}.parquet": world.ids[::-1]}
            world.store()
            found = world.check()[2].resharding.finished[f"{half}.parquet"]
            assert count_bits(found) == 7
            ids = world.files[f"{half}.parquet"]
            bits = np.unpackbits(found, bitorder="little")[:12]
            assert {value for value, bit in zip(ids, bits, strict=True) if bit} == FINISHED
    finish(world)


FINISHED = {*(f"a{n}" for n in range(6)), "b0"}


def colliding(values, hash_key="", categorize=True, hash_array=pd.util.hash_array):
    return (
        hash_array(values, categorize=False) if not hash_key else np.zeros(len(values), np.uint64)
    )


def test_a_visible_file_that_the_log_does_not_know_yet_counts_once(world, monkeypatch):
    assert dies(world.run, monkeypatch, arrived([FILE, LEDGER]))
    world.files = {"b.parquet": world.ids[::-1]}
    world.store()
    _, state, checked = world.check()
    assert any(storage.exists(world.output / name) for name in state.groups)
    assert count_bits(checked.resharding.finished["b.parquet"]) == state.counts.rows
    finish(world)


def test_killed_at_every_change(world):
    """The run that finds the manifest in other files is killed before each change in turn."""
    store = dict(fsspec.filesystem("memory").store)
    world.files = {"b.parquet": world.ids[1::2], "c.parquet": [*world.ids[-2::-2], "new"]}
    world.store()
    for step in range(1, 1000):
        fsspec.filesystem("memory").store.clear()
        fsspec.filesystem("memory").store.update(store)
        steps = iter(range(1, 1_000_000))
        with pytest.MonkeyPatch.context() as patch:
            dead = dies(world.run, patch, lambda name, path: next(steps) >= step)  # noqa: B023
        world.run()
        world.assert_finished()
        if not dead:
            break
    assert step > 20


@pytest.mark.parametrize("kind", [pa.int32(), pa.int64(), pa.large_string(), "dictionary"])
def test_ids_of_other_types(tmp_path, output, kind):
    """The output has ids as int64 or string, whatever the manifest has."""
    is_text = kind == "dictionary" or pa.types.is_large_string(kind)
    world = World(tmp_path / "m", output)
    if kind == "dictionary":
        kind = pa.dictionary(pa.int32(), pa.string())
    world.id_type = kind
    numbers = range(-4, 9)
    ids = [f"ü {n}" for n in numbers] if is_text else list(numbers)
    world.files = {"a.parquet": ids}
    world.store()
    world.run(limit=5)
    world.files = {"b.parquet": ids[::-1]}
    world.store()
    finish(world)


def test_a_snapshot_after_a_resharding(world):
    world.files = {"b.parquet": world.ids[::-1]}
    world.store()
    _, _, state = world.begin()
    again = snapshot.parse(snapshot.dump(state))
    assert again.files == state.files == [RETIRED, RETIRED, *state.files[2:]]
    for one, other in zip(again.done, state.done, strict=True):
        assert np.array_equal(one, other)
    assert count_bits(state.done[2]) == 7


def test_a_damaged_bitmap_is_a_damaged_log(world):
    world.files = {"b.parquet": world.ids[::-1]}
    world.store()
    world.begin()
    log = log_of(world.output)
    name = storage.list_files(log)[kinds(world.output).index("reshard")]
    record = json.loads(storage.read(log / name))
    for text in ("", "!!", "QUJD"):
        storage.put(log / name, json.dumps(record | {"finished": {"2": text}}).encode())
        with pytest.raises(JobError, match="the output's log is damaged"):
            ledger.load(world.output)

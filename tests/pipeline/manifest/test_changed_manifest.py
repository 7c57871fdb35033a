"""A manifest that changed between two runs, before any row was finished. See test_resharding.py for
finished rows.
"""

import os

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from mediamill.pipeline.ledger import ledger
from mediamill.pipeline.manifest import manifest as manifests
from mediamill.pipeline.manifest import unique_ids
from mediamill.pipeline.plan import check
from mediamill.schemas.errors import JobError
from tests.pipeline.world import make_job, write_manifest


def rows(*ids):
    texts = pa.array(ids, pa.string())
    return pa.table({"id": texts, "uri": texts, "kind": pa.array(["k"] * len(ids), pa.string())})


def write(path, *ids, **options):
    write_manifest(path, rows(*ids), **options)


def begin(job):
    """What a run does before it starts."""
    plan = check(job)
    plan.new_ids.save()
    state = ledger.load(plan.output)
    run = f"run {state.sequence}"
    bound, per_file = dict(plan.bound), job.rows_per_file
    ledger.begin(plan.output, state, run, bound, plan.files, per_file, plan.resharding)
    return ledger.load(plan.output)


@pytest.fixture
def begun(tmp_path):
    """A manifest, and a job whose output was started with it."""
    folder = tmp_path / "m"
    write(folder / "a.parquet", "a0", "a1", "a2", "a3", row_group_size=2)
    write(folder / "b.parquet", "b0", "b1")
    write(folder / "empty.parquet")
    job = make_job(folder, tmp_path / "out", partition_by=["kind"])
    begin(job)
    return folder, job


def added(folder):
    write(folder / "0.parquet", "z0")


def grown(folder):
    write(folder / "a.parquet", "a0", "a1", "a2", "a3", "a4", row_group_size=2)


def empty_grown(folder):
    write(folder / "empty.parquet", "e0")


def all_grown(folder):
    grown(folder)
    empty_grown(folder)
    added(folder)
    write(folder / "b.parquet", "b0", "b1", "b2", "b3")


def other_compression(folder):
    write(folder / "a.parquet", "a0", "a1", "a2", "a3", compression="zstd", row_group_size=1)


def touched(folder):
    os.utime(folder / "a.parquet")


def empty_removed(folder):
    (folder / "empty.parquet").unlink()


def reordered(folder):
    write(folder / "a.parquet", "a0", "a2", "a1", "a3", row_group_size=2)


def reordered_and_grown(folder):
    write(folder / "a.parquet", "a1", "a0", "a2", "a3", "a4")


def row_removed_inside(folder):
    write(folder / "a.parquet", "a0", "a2", "a3")


def row_removed_at_the_end(folder):
    write(folder / "a.parquet", "a0", "a1", "a2")


def row_removed_and_added(folder):
    write(folder / "a.parquet", "a1", "a2", "a3", "a4")


def all_rows_removed(folder):
    write(folder / "a.parquet")


def inserted_before(folder):
    write(folder / "a.parquet", "new", "a0", "a1", "a2", "a3")


def id_changed(folder):
    write(folder / "a.parquet", "a0", "a1", "xx", "a3", row_group_size=2)


def removed(folder):
    (folder / "b.parquet").unlink()


def renamed(folder):
    (folder / "b.parquet").rename(folder / "c.parquet")


def moved_to_another_file(folder):
    write(folder / "a.parquet", "a0", "a1", "a2", "a3", "b0", "b1")
    (folder / "b.parquet").unlink()


def swapped(folder):
    write(folder / "a.parquet", "b0", "b1")
    write(folder / "b.parquet", "a0", "a1", "a2", "a3")


def same_size_and_time(folder):
    path = folder / "a.parquet"
    was = path.stat()
    write(path, "a0", "a3", "a2", "a1", row_group_size=2)
    assert path.stat().st_size == was.st_size
    os.utime(path, ns=(was.st_atime_ns, was.st_mtime_ns))
    assert path.stat().st_mtime_ns == was.st_mtime_ns


def id_of_an_old_file(folder):
    write(folder / "c.parquet", "c0", "b1")


def id_of_its_own_old_rows(folder):
    write(folder / "a.parquet", "a0", "a1", "a2", "a3", "a1")


def without_a_column(folder):
    write_manifest(folder / "a.parquet", rows("a0", "a1", "a2", "a3").drop_columns("kind"))


def long_value(folder):
    table = rows("c0").set_column(2, "kind", pa.array(["x" * 300]))
    write_manifest(folder / "c.parquet", table)


@pytest.mark.parametrize(
    ("change", "total"),
    [
        (added, 7),
        (grown, 7),
        (empty_grown, 7),
        (all_grown, 11),
        (other_compression, 6),
        (touched, 6),
        (empty_removed, 6),
        (without_a_column, 6),
    ],
)
def test_additions_are_accepted(begun, change, total):
    folder, job = begun
    change(folder)
    assert check(job).manifest.rows == total
    state = begin(job)
    assert [file.name for file in state.files[:3]] == ["a.parquet", "b.parquet", "empty.parquet"]
    assert sum(file.rows for file in state.files) == total
    if total < 11:
        all_grown(folder)  # and it can grow again
        assert sum(file.rows for file in begin(job).files) == 11


@pytest.mark.parametrize(
    ("change", "total", "removed"),
    [
        (reordered, 6, 0),
        (reordered_and_grown, 7, 0),
        (row_removed_inside, 5, 1),
        (row_removed_at_the_end, 5, 1),
        (row_removed_and_added, 6, 0),
        (all_rows_removed, 2, 4),
        (inserted_before, 7, 0),
        (id_changed, 6, 0),
        (removed, 4, 2),
        (renamed, 6, 0),
        (moved_to_another_file, 6, 0),
        (swapped, 6, 0),
        (same_size_and_time, 6, 0),
    ],
)
def test_rows_that_are_not_finished_may_go_anywhere(begun, change, total, removed):
    folder, job = begun
    change(folder)
    plan = check(job)
    assert plan.manifest.rows == total
    words = f"m: at least {removed} rows that earlier runs had not finished are no longer"
    assert [words in note for note in plan.notes] == [True] * bool(removed)
    state = begin(job)
    live = {file.name: file.rows for file in state.files if file.rows}
    assert live == {file.name: file.rows for file in check(job).manifest.files if file.rows}
    files = sorted(folder.iterdir())
    ids = [value for file in files for value in pq.read_table(file)["id"].to_pylist()]
    for file in files:
        file.unlink()
    write(folder / "one.parquet", *reversed(ids), "one more")  # and it can change again
    assert sum(file.rows for file in begin(job).files) == total + 1
    assert not check(job).resharding.retired


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (id_of_an_old_file, "'b1' in b.parquet row 1, c.parquet row 1"),
        (id_of_its_own_old_rows, "'a1' in a.parquet row 1, a.parquet row 4"),
        (long_value, "c.parquet: partition_by names column 'kind', where found a value of 300"),
    ],
)
def test_other_changes_are_refused_with_a_message(begun, change, words):
    folder, job = begun
    change(folder)
    for _ in range(2):
        with pytest.raises(JobError, match=words) as error:
            check(job)
        assert "\n" not in str(error.value)


@pytest.fixture
def opened(monkeypatch):
    """The manifest files that were read, footers and ids."""
    places = []
    footer, batches = manifests._read_footer, unique_ids.id_batches
    monkeypatch.setattr(
        manifests, "_read_footer", lambda place: places.append(place) or footer(place)
    )
    monkeypatch.setattr(
        unique_ids, "id_batches", lambda file: places.append(file.place) or batches(file)
    )
    return lambda: {place.url.rpartition("/")[2] for place in places}


def test_of_an_unchanged_manifest_one_footer_is_read(begun, opened):
    _, job = begun
    check(job)
    assert opened() == {"a.parquet"}


def test_of_a_changed_manifest_only_the_changes_are_read(begun, opened):
    folder, job = begun
    added(folder)
    check(job)
    assert opened() == {"0.parquet", "a.parquet"}


def test_s3(s3, tmp_path, caplog):
    """One listing instead of a request for each file; a new content has a new ETag."""
    import fsspec

    fs = fsspec.filesystem("s3", use_listings_cache=False)
    folder = f"{s3}/changed/{tmp_path.name}"

    def put(name, *ids):
        write(tmp_path / name, *ids)
        fs.put_file(str(tmp_path / name), f"{folder}/m/{name}")

    for number in range(12):
        put(f"{number:02}.parquet", f"{number:02}-a", f"{number:02}-b")
    job = make_job(f"{folder}/m", f"{folder}/out")
    begin(job)
    caplog.set_level("INFO", logger="werkzeug")
    caplog.clear()
    check(job)
    requests = [record.getMessage() for record in caplog.records]
    touched = {name for name in (f"{n:02}.parquet" for n in range(12)) if name in "".join(requests)}
    assert touched == {"00.parquet"}
    assert sum("prefix=" in line and "/m/" in line for line in requests) <= 2
    put("05.parquet", "05-b", "05-a")
    assert check(job).resharding.retired == {5}

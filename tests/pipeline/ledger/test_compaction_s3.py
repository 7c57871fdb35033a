"""A compaction on an object store, killed at each of its changes, with a reader at each of them."""

import fsspec
import pyarrow.parquet as pq
import pytest

from mediamill.pipeline import compact as compaction_run
from mediamill.pipeline.ledger import compaction, ledger, publish, recovery
from mediamill.pipeline.storage import storage
from tests.pipeline.ledger.compaction_kills import IDS, exact_ids, nightly_runs


class KilledError(BaseException):
    """The process is gone."""


def plain_ids(output):
    tables = [
        pq.read_table((output / name).path, filesystem=output.fs, columns=["id"])
        for name in publish.visible_files(output)
    ]
    return sorted(row for table in tables for row in table["id"].to_pylist())


def look(output):
    assert exact_ids(output) == IDS
    seen = plain_ids(output)
    assert len(seen) == len(set(seen)), "a row is visible twice"
    assert seen == IDS or not storage.exists(output / recovery.SUCCESS)


def compact_killed(output, number, monkeypatch):
    """Returns whether the compaction was killed before its change of that number."""
    steps = 0

    def dying(change):
        def call(place, *arguments):
            nonlocal steps
            if "lease" not in place.path and ("put" not in change.__name__ or arguments):
                steps += 1
                if steps == number:
                    raise KilledError
            return change(place, *arguments)

        return call

    with monkeypatch.context() as patch:
        patch.setattr(compaction, "_THREADS", 1)
        for name in ("put", "put_file", "put_if_absent", "remove"):
            patch.setattr(storage, name, dying(getattr(storage, name)))
        try:
            compaction_run.compact(output.url, 9)
        except KilledError:
            return True
    return False


@pytest.mark.slow
@pytest.mark.parametrize("partition_by", [(), ("kind",)])
def test_killed_at_every_change(s3, tmp_path, monkeypatch, partition_by):
    original = storage.resolve(f"{s3}/compact/{tmp_path.name}/original")
    nightly_runs(original, partition_by, step=6)
    before = len(publish.visible_files(original))
    fs = fsspec.filesystem("s3", use_listings_cache=False)
    number = 0
    while True:
        number += 1
        output = storage.resolve(f"{s3}/compact/{tmp_path.name}/{number}")
        for name in storage.list_files(original):
            fs.cp_file((original / name).path, (output / name).path)
        was_killed = compact_killed(output, number, monkeypatch)
        look(output)
        assert not compaction_run.compact(output.url, 9).atomic
        assert exact_ids(output) == plain_ids(output) == IDS
        assert len(publish.visible_files(output)) < before
        assert storage.exists(output / recovery.SUCCESS)
        assert recovery.is_settled(output, ledger.load(output))
        if not was_killed:
            break
    print(f"{number - 1} kills")
    assert number > 20

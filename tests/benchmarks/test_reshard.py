"""A finished job whose manifest is in other files joins the ids once, whatever is killed."""

import numpy as np
import pyarrow.dataset as pads
import pytest
import torch  # noqa: F401 - so that the checkpoint is checked in this process

from benchmarks import reshard
from mediamill.pipeline.plan import check
from mediamill.pipeline.run import run
from mediamill.pipeline.storage import storage

ROWS = 400


class KilledError(BaseException):
    pass


@pytest.fixture
def folder(tmp_path):
    """A finished job whose manifest was written anew since."""
    ids = np.arange(ROWS)
    reshard.write_manifest(tmp_path, ids, reshard.OLD_FILES)
    reshard.first(tmp_path)
    reshard.finish_half(tmp_path, ids)
    reshard.write_manifest(tmp_path, ids[::-1], reshard.NEW_FILES)
    reshard.resharded(tmp_path)
    reshard.again(tmp_path)
    reshard.finish_rest(tmp_path)
    reshard.write_manifest(tmp_path, ids, 3)
    return tmp_path


def visible(folder):
    ids = pads.dataset(folder / "out", format="parquet").to_table(columns=["id"])["id"]
    return sorted(ids.to_pylist())


def test_it_joins_at_the_first_start_only(folder):
    wanted = visible(folder)
    assert len(set(wanted)) == ROWS
    assert reshard.complete(folder)["joined"]
    assert not reshard.complete(folder)["joined"]
    records = sorted(reshard.log(folder).iterdir())
    assert not reshard.complete(folder)["joined"]
    assert sorted(reshard.log(folder).iterdir()) == records
    assert visible(folder) == wanted


def test_a_renamed_file_is_recorded_too(folder):
    reshard.complete(folder)
    name = sorted((folder / "manifest").iterdir())[0]
    name.rename(name.with_name("other.parquet"))
    for is_recorded in (False, True):
        plan = check(reshard.job(folder))
        assert plan.is_recorded == is_recorded
        assert run(reshard.job(folder), plan).skipped == ROWS


def test_killed_at_every_change(folder, monkeypatch):
    wanted, job = visible(folder), reshard.job(folder)
    for step in range(1, 100):
        calls = iter(range(1, 1_000_000))

        def dying(action):
            def act(*arguments, **options):
                if next(calls) >= step:  # noqa: B023
                    raise KilledError
                return action(*arguments, **options)

            return act

        plan = check(job)
        assert not plan.rows_left
        with monkeypatch.context() as patch:
            for name in ("put", "put_if_absent", "remove", "move"):
                patch.setattr(storage, name, dying(getattr(storage, name)))
            try:
                run(job, plan)
                killed = False
            except KilledError:
                killed = True
        (folder / "out/_mediamill/lease.json").unlink(missing_ok=True)
        assert visible(folder) == wanted
        assert (folder / "out/_SUCCESS").exists(), "readers have all rows at every moment"
        if not killed:
            break
        if check(job).is_recorded:  # a kill after the record: the next one begins with a new order
            reshard.write_manifest(folder, np.random.default_rng(step).permutation(ROWS), 3)
    assert 4 < step < 99
    assert check(job).is_recorded

"""A full disk is one sentence with the folder and the room left, and leaves nothing behind."""

import base64
import os
import pickle
import re
import subprocess
import tempfile
import time

import numpy as np
import pytest

from mediamill.pipeline.faults import PermanentError, stopped_by
from mediamill.pipeline.fetching.budget import Reservation
from mediamill.pipeline.fetching.fetcher import Fetcher
from mediamill.pipeline.fetching.spool import Spool
from mediamill.pipeline.manifest import id_index
from mediamill.pipeline.manifest.id_index import HashSorter
from mediamill.pipeline.storage import local_files, storage
from mediamill.pipeline.storage.disk_room import free_room
from tests.pipeline.fetching.rules import fetch_rules


@pytest.fixture
def small(tmp_path):
    """A file system of 100 kB, on which one of 60 kB is a full one."""
    folder = tmp_path / "small"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=100k", "tmpfs", str(folder)]
    if os.geteuid() != 0 or subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("only root may mount a small file system")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


def full(folder):
    return re.escape(str(folder)) + r"\S* on machine \S+: the disk is full \([^)]* free\), expected"


@pytest.mark.parametrize("write", ["put", "put_if_absent", "put_file"])
def test_what_does_not_fit_is_said_and_leaves_nothing(small, tmp_path, write):
    place = storage.resolve(str(small / "out" / "file"))
    content = bytes(200_000)
    if write == "put_file":
        (tmp_path / "source").write_bytes(content)
        content = tmp_path / "source"
    with pytest.raises(PermanentError, match=full(small)) as error:
        getattr(storage, write)(place, content)
    assert str(error.value).count("\n") == 0
    again = pickle.loads(pickle.dumps(error.value))  # noqa: S301 - Ray does it
    assert str(again) == str(error.value)
    assert stopped_by(error.value) is error.value
    assert list((small / "out").iterdir()) == []
    storage.put(place, bytes(50_000))


def test_ids_that_are_sorted_need_all_of_their_room(small, monkeypatch):
    """A nearly full disk takes a part of a write without an error."""
    monkeypatch.setattr(tempfile, "tempdir", str(small))
    monkeypatch.setattr(id_index, "_SHARD_HASHES", 5000)  # of 40 kB
    sorter = HashSorter(20_000)
    hashes = np.arange(5000, dtype=np.uint64)
    sorter.add(hashes)
    sorter.add(hashes)
    with pytest.raises(PermanentError, match=full(small)):
        sorter.add(hashes)
    sorter.close()


def test_a_row_is_not_blamed_for_a_full_disk(small, tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(small))
    fetcher = Fetcher(fetch_rules(10**6, 5.0, str(tmp_path), memory_bytes=1000, ahead_bytes=10**6))
    for size in (50_000, 200_000, 50_000):
        data = os.urandom(size)
        uri = "data:;base64," + base64.b64encode(data).decode()
        if size > 100_000:
            with pytest.raises(PermanentError, match=full(small)):
                fetcher.fetch(uri, Reservation(fetcher.budget))
        else:
            medium = fetcher.fetch(uri, Reservation(fetcher.budget))
            assert medium.path.read_bytes() == data
            Spool.release([medium.path])
            del medium
        assert fetcher.budget.held == 0


def test_what_a_killed_writer_left_is_removed_after_a_minute(tmp_path):
    below = tmp_path / "log"
    below.mkdir()
    old, new = below / f".{'a' * 32}.tmp", below / f".{'b' * 32}.tmp"
    others = [below / "000000000001.json", below / ".mine.tmp", tmp_path / "x.tmp"]
    for path in (old, new, *others):
        path.write_text("")
    for path in (old, *others):
        os.utime(path, (time.time() - 100, time.time() - 100))
    storage.remove_stale(storage.resolve(str(tmp_path)), below=False)
    assert old.exists()
    storage.remove_stale(storage.resolve(str(tmp_path)))
    assert {path for path in tmp_path.rglob("*") if path.is_file()} == {new, *others}
    local_files.remove_stale(tmp_path / "none")


def test_the_room_of_a_folder_that_does_not_exist(tmp_path):
    assert re.fullmatch(r"[\d.e+]+ [kMGT]?B(ytes)? free", free_room(tmp_path / "a" / "b"))

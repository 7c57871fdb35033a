"""A checkpoint comes to a machine once, whole, and as it was when the job was checked."""

import errno
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import fsspec
import pytest

from mediamill.model.tiny import CHECKPOINT
from mediamill.pipeline.checkpoint import machine_copy
from mediamill.pipeline.checkpoint.checkpoint_hash import CheckpointHash, content_hash
from mediamill.pipeline.checkpoint.machine_copy import local_folder
from mediamill.pipeline.faults import RunError
from mediamill.pipeline.storage import storage
from tests.pipeline.checkpoint import copy_kills
from tests.servers.s3 import faulty_s3

ROOT = Path(__file__).parents[3]
MEMORY = Path("/dev/shm")  # writes are made durable hundreds of times, which disks take long for
PIECE = 500_000
WEIGHTS = "model.safetensors"
PIECES = -(-(CHECKPOINT / WEIGHTS).stat().st_size // PIECE)
HERE = CheckpointHash.of(storage.resolve(str(CHECKPOINT)))


@pytest.fixture(scope="module")
def server():
    with faulty_s3(seed=5, rate=0.0) as found, pytest.MonkeyPatch.context() as patch:
        for name, value in found.environment.items():
            patch.setenv(name, value)
        fsspec.filesystem("s3").clear_instance_cache()  # of those that know another server
        fs = fsspec.filesystem("s3", use_listings_cache=False, skip_instance_cache=True)
        fs.mkdir("copies")
        yield found
    fsspec.filesystem("s3").clear_instance_cache()


@pytest.fixture
def url(server, request, monkeypatch):
    """A checkpoint on an S3 server, whose pieces are small here."""
    monkeypatch.setattr(machine_copy, "_CHUNK_BYTES", PIECE)
    found = f"s3://copies/{request.node.name[-40:].strip('[]')}"
    upload(found)
    yield found
    server.faults.rate = 0.0


def upload(url, folder=CHECKPOINT):
    fs = fsspec.filesystem("s3", use_listings_cache=False)
    for path in folder.iterdir():
        fs.put_file(str(path), f"{url.removeprefix('s3://')}/{path.name}")


@pytest.fixture
def asked(server, monkeypatch):
    """Method and path of each request."""
    seen = []
    draw = server.faults.draw

    def listen(method, path):
        seen.append((method, path.partition("?")[0]))
        return draw(method, path)

    monkeypatch.setattr(server.faults, "draw", listen)
    return seen


def of_weights(asked):
    return sum(method == "GET" and path.endswith(WEIGHTS) for method, path in asked)


def is_copy(folder):
    return all((folder / one.name).read_bytes() == one.read_bytes() for one in CHECKPOINT.iterdir())


def test_actors_that_start_at_once_fetch_it_once(url, asked, tmp_path):
    with ThreadPoolExecutor(8) as actors:
        found = list(actors.map(lambda _: local_folder(url, HERE, str(tmp_path)), range(8)))
    assert set(found) == {tmp_path / HERE.whole}
    assert is_copy(found[0])
    assert of_weights(asked) == PIECES
    assert {path.name for path in tmp_path.iterdir()} == {HERE.whole, f"{HERE.whole}.lock"}
    before = len(asked)
    assert local_folder(url, HERE, str(tmp_path)) == found[0]
    assert len(asked) == before


def test_what_only_prepares_takes_no_weights(url, asked, tmp_path):
    small = local_folder(url, HERE, str(tmp_path), weights=False)
    names = {path.name for path in small.iterdir()}
    assert names == {path.name for path in CHECKPOINT.iterdir()} - {WEIGHTS}
    assert of_weights(asked) == 0
    whole = local_folder(url, HERE, str(tmp_path))
    assert local_folder(url, HERE, str(tmp_path), weights=False) in (small, whole)
    shutil.rmtree(small)
    asked.clear()
    assert local_folder(url, HERE, str(tmp_path), weights=False) == whole
    assert not asked


def test_faults_of_the_store_are_worked_around(url, server, tmp_path):
    server.faults.rate = 0.2
    before = server.faults.total
    assert is_copy(local_folder(url, HERE, str(tmp_path)))
    assert server.faults.total > before


def test_another_checkpoint_is_never_given_the_name(url, tmp_path):
    other = CheckpointHash("0" * 32, "1" * 32)
    for weights in (True, False):
        with pytest.raises(RunError, match=r"has changed since the job was checked: found content"):
            local_folder(url, other, str(tmp_path), weights)
    assert all(path.suffix == ".lock" for path in tmp_path.iterdir())


def test_a_change_while_it_comes_is_noticed(url, asked, server, tmp_path, monkeypatch):
    """Also one that the hash does not see, since it takes samples of large files only."""
    monkeypatch.setattr("mediamill.model.checkpoint.content_hash._WHOLE_BYTES", 1_000_000)
    monkeypatch.setattr("mediamill.model.checkpoint.content_hash._SAMPLES", 2)
    changed = bytearray((CHECKPOINT / WEIGHTS).read_bytes())
    changed[2_000_000] ^= 1
    content = CheckpointHash.of(storage.resolve(str(CHECKPOINT)))
    path = "/" + url.removeprefix("s3://") + f"/{WEIGHTS}"
    fs = fsspec.filesystem(
        "s3", use_listings_cache=False, skip_instance_cache=True, endpoint_url=server.direct
    )

    def change(*_):
        fs.pipe_file(path.lstrip("/"), bytes(changed))

    # HEADs come before the first piece.
    server.hooks[path] = [lambda _, method: change() if method == "GET" else None] * 4
    with pytest.raises(RunError, match="has changed since the job was checked"):
        local_folder(url, content, str(tmp_path))
    server.hooks.clear()
    assert content_hash(storage.resolve(url)) == content.whole
    assert {path.name for path in tmp_path.iterdir()} == {f"{content.whole}.lock"}


def test_a_full_disk_is_a_sentence_and_what_came_is_kept(url, asked, tmp_path, monkeypatch):
    write, left = os.pwrite, [PIECES // 2]

    def full(*arguments):
        left[0] -= 1
        if left[0] < 0:
            raise OSError(errno.ENOSPC, "No space left on device")
        return write(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(os, "pwrite", full)
        with pytest.raises(RunError, match=r"the disk is full \(.* free\), .*\(resources\.cache\)"):
            local_folder(url, HERE, str(tmp_path))
    came = sum(WEIGHTS in line for line in pieces(tmp_path))
    asked.clear()
    with monkeypatch.context() as patch:
        patch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(9, 9, 5))
        with pytest.raises(RunError, match=r"found 0\.0 GB free, expected 0\.0 GB for a "):
            local_folder(url, HERE, str(tmp_path))
    assert of_weights(asked) == 0
    assert is_copy(local_folder(url, HERE, str(tmp_path)))
    assert of_weights(asked) == PIECES - came


def pieces(cache):
    [partial] = cache.glob(".*.partial")
    return (partial / ".pieces").read_text().splitlines()[1:]


def test_a_copy_that_was_damaged_is_made_again(url, tmp_path):
    made = local_folder(url, HERE, str(tmp_path))
    with (made / WEIGHTS).open("r+b") as file:
        file.truncate(1000)
    assert is_copy(local_folder(url, HERE, str(tmp_path)))


def test_copies_that_were_left_behind_are_swept(url, tmp_path):
    old, young = tmp_path / ".old.partial", tmp_path / ".young.partial"
    for folder in (old, young):
        folder.mkdir()
        (folder / WEIGHTS).write_bytes(b"half")
    long_ago = time.time() - 3 * 24 * 3600
    for path in (old / WEIGHTS, old):
        os.utime(path, (long_ago, long_ago))
    local_folder(url, HERE, str(tmp_path))
    assert not old.exists()
    assert young.exists()


def test_a_cache_that_cannot_be_made_is_named(url, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(RunError, match=r"cannot be written .*: name another one \(resources\.cac"):
        local_folder(url, HERE, str(tmp_path / "file" / "cache"))


def test_a_local_folder_is_itself_when_it_is_the_same(tmp_path):
    for weights in (True, False):
        assert local_folder(str(CHECKPOINT), HERE, str(tmp_path), weights) == CHECKPOINT
    other = shutil.copytree(CHECKPOINT, tmp_path / "model")
    (other / "chat_template.jinja").write_text("another")
    with pytest.raises(RunError, match="found another checkpoint on machine"):
        local_folder(str(other), HERE, str(tmp_path))
    with pytest.raises(RunError, match="expected it on every machine"):
        local_folder(str(tmp_path / "none"), HERE, str(tmp_path))


def test_killed_at_every_step_and_gone_on_with(tmp_path):
    where = MEMORY if os.access(MEMORY, os.W_OK) else tmp_path
    with tempfile.TemporaryDirectory(dir=where) as folder:
        command = [sys.executable, "-m", "tests.pipeline.checkpoint.copy_kills", folder]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    fetched = json.loads(done.stdout)["fetched"]
    # Each piece has at least four steps. The later the kill, the less is left to do.
    assert len(fetched) > 4 * copy_kills.PIECES
    assert (fetched[0], fetched[-1]) == (copy_kills.PIECES - 1, 0)  # one has no bytes
    assert len(set(fetched)) > 3

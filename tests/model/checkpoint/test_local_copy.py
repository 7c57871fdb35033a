"""Weights at a URL come to this machine once, whole, and are checked."""

import multiprocessing
import os
from pathlib import Path

import pytest

from mediamill.model.checkpoint import content_hash, local_copy
from mediamill.model.checkpoint.folder import Folder
from mediamill.model.errors import ModelError

FILES = {"a.safetensors": bytes(range(256)) * 40, "b.safetensors": b""}


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setattr(local_copy, "_REQUEST_BYTES", 1000)
    return tmp_path / ".cache" / "mediamill"


@pytest.fixture
def remote(tmp_path, cache):
    folder = Folder.of(f"memory://copies/{tmp_path.name}")
    for name, data in FILES.items():
        folder.fs.pipe_file(folder.full(name), data)
    folder.fs.pipe_file(folder.full("other.safetensors"), b"not needed")
    return folder


def copied(folder):
    return local_copy.local_copy(folder, list(FILES))


def names(cache):
    return sorted(path.name for path in cache.iterdir() if path.suffix != ".lock")


def test_a_local_folder_is_itself(tmp_path, cache):
    folder = Folder.of(tmp_path)
    assert local_copy.local_copy(folder, ["none.safetensors"]) is folder
    assert not cache.exists()


def test_the_files_are_copied_once(remote, cache, monkeypatch):
    copy = copied(remote)
    assert copy.is_local
    assert str(copy) == str(remote)
    assert {name: copy.read(name) for name in FILES} == FILES
    assert not copy.exists("other.safetensors")
    monkeypatch.setattr(local_copy, "_download", None)
    assert copied(remote).root == copy.root
    assert len(names(cache)) == 1


def test_another_content_is_another_copy(remote, cache):
    first = copied(remote)
    remote.fs.pipe_file(remote.full("a.safetensors"), b"another")
    second = copied(remote)
    assert second.read("a.safetensors") == b"another"
    assert first.read("a.safetensors") == FILES["a.safetensors"]


def test_a_damaged_copy_is_made_again(remote, cache):
    copy = copied(remote)
    os.truncate(copy.full("a.safetensors"), 100)
    assert copied(remote).read("a.safetensors") == FILES["a.safetensors"]
    Path(copy.root).rename(cache / f".{Path(copy.root).name}.partial")  # as if it was cut off
    assert copied(remote).read("a.safetensors") == FILES["a.safetensors"]


def test_a_change_while_it_is_copied_is_refused(remote, cache, monkeypatch):
    download = local_copy._download

    def changed(folder, sizes, target):
        remote.fs.pipe_file(remote.full("a.safetensors"), FILES["a.safetensors"][::-1])
        download(folder, sizes, target)

    monkeypatch.setattr(local_copy, "_download", changed)
    with pytest.raises(ModelError, match="the weights have changed while they were copied"):
        copied(remote)
    assert names(cache) == []


def test_a_missing_file_is_named(remote):
    remote.fs.rm_file(remote.full("b.safetensors"))
    with pytest.raises(ModelError, match=r"memory://.*/b\.safetensors: found no such file"):
        copied(remote)


def test_a_cache_that_cannot_be_written_is_named(remote, cache):
    cache.parent.write_text("a file")
    with pytest.raises(ModelError, match=r"cannot be copied to .*mediamill \(.*make room there"):
        copied(remote)


def test_processes_that_load_at_once_copy_once(remote, cache, tmp_path, monkeypatch):
    log = tmp_path / "downloads"
    download = local_copy._download

    def logged(*arguments):
        with log.open("a") as file:
            file.write("x")
        download(*arguments)

    monkeypatch.setattr(local_copy, "_download", logged)
    context = multiprocessing.get_context("fork")
    loaders = [context.Process(target=copied, args=(remote,)) for _ in range(3)]
    for loader in loaders:
        loader.start()
    for loader in loaders:
        loader.join()
        assert loader.exitcode == 0
    assert log.read_text() == "x"


def test_large_files_count_with_samples(monkeypatch):
    monkeypatch.setattr(content_hash, "_WHOLE_BYTES", 10)
    monkeypatch.setattr(content_hash, "_HEAD_BYTES", 100)
    monkeypatch.setattr(content_hash, "_SAMPLE_BYTES", 8)
    reads = []

    def read(name, start, stop):
        reads.append((start, stop))
        return FILES[name][start:stop]

    digest = content_hash.content_hash({"a.safetensors": 10240}, read)
    assert len(digest) == 32
    assert (reads[0], reads[1], reads[-1]) == ((0, 100), (100, 108), (10232, 10240))
    assert len(reads) == 33

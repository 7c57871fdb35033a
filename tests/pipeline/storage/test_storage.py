"""Places, URLs without secrets, and atomic writes."""

import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from mediamill.pipeline.storage import storage
from mediamill.schemas.errors import JobError


@pytest.fixture(params=["local", "s3"])
def folder(request, tmp_path):
    """An empty folder in each kind of storage."""
    if request.param == "local":
        return storage.resolve(str(tmp_path))
    return storage.resolve(f"{request.getfixturevalue('s3')}/storage/{tmp_path.name}")


def test_of_many_writers_exactly_one_creates_the_file(folder):
    place = folder / "log" / "1.json"
    contents = [f"writer {number}".encode() * 100 for number in range(12)]
    with ThreadPoolExecutor(12) as writers:
        won = list(writers.map(lambda data: storage.put_if_absent(place, data), contents))
    assert won.count(True) == 1
    assert storage.read(place) == contents[won.index(True)]
    assert storage.list_files(folder) == ["log/1.json"]


def test_put_replaces_and_move_can_be_repeated(folder):
    source, target = folder / "a" / "x.staged", folder / "b=1" / "x"
    storage.put(source, b"old")
    storage.put(source, b"new")
    storage.move(source, target)
    storage.move(source, target)
    assert storage.read(target) == b"new"
    assert storage.list_files(folder) == ["b=1/x"]


def test_moving_a_missing_file_to_a_missing_target_is_an_error(folder):
    with pytest.raises(FileNotFoundError):
        storage.move(folder / "none", folder / "target")


def test_a_folder_that_does_not_exist_is_empty_and_removing_a_missing_file_is_fine(folder):
    assert storage.list_files(folder / "none") == []
    storage.remove(folder / "none")


def test_a_crash_during_a_put_leaves_the_old_content(tmp_path):
    place = storage.resolve(str(tmp_path / "file"))
    storage.put(place, b"whole")
    process = os.fork()
    if process == 0:
        os.fsync = lambda descriptor: os._exit(9)  # the bytes are written, the file is not renamed
        storage.put(place, b"half")
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]) == 9
    assert storage.read(place) == b"whole"


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("s3://key:secret@bucket/a", "s3://bucket/a"),
        ("https://host/a.jpg?X-Amz-Signature=abc#part", "https://host/a.jpg"),
        ("/data/a?b.jpg", "/data/a?b.jpg"),
    ],
)
def test_redacted_urls_have_no_secrets(url, expected):
    assert storage.redact(url) == expected
    assert storage.redact_text(f"GET {url} failed") == f"GET {expected} failed"


def test_paths_become_absolute_and_file_urls_paths(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert storage.absolute("a/../b/") == str(tmp_path / "b")
    assert storage.absolute("file:///data/x/") == "/data/x"
    assert storage.absolute("~/x") == str(Path.home() / "x")
    assert storage.absolute("s3://bucket/a/") == "s3://bucket/a"


@pytest.mark.parametrize("url", ["nosuch://a/b", "simplecache::s3://a/b"])
def test_unknown_schemes_are_job_errors(url):
    with pytest.raises(JobError, match=r"nosuch|'::'"):
        storage.resolve(url)

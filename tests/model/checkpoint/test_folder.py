"""Folders on disk and at URLs: what is found, what is refused, and that names stay inside."""

import os
from pathlib import Path

import fsspec
import pytest

from mediamill.model.checkpoint.folder import Folder, parse_json
from mediamill.model.errors import ModelError


@pytest.fixture
def place(tmp_path):
    folder = tmp_path / "a folder, naïve 日本 100% #1?[x]"
    folder.mkdir()
    (folder / "config.json").write_text('{"a": 1}')
    (folder / "sub").mkdir()
    (tmp_path / "secret.json").write_text("{}")
    return folder


def test_every_spelling_of_a_local_folder(place, monkeypatch):
    monkeypatch.chdir(place.parent)
    link = place.parent / "link"
    link.symlink_to(place)
    spellings = [place, str(place), f"{place}/", place.name, Path(place.name), f"./{place.name}"]
    spellings += [f"file://{place}", place.as_uri(), f"file://localhost{place}", link, "link/"]
    for where in spellings:
        folder = Folder.of(where)
        assert folder.read_json("config.json") == {"a": 1}
        assert folder.is_local
        assert Folder.of(folder) is folder
        assert str(folder) == str(where)


def test_a_relative_folder_stays_the_same_after_a_change_of_directory(place, monkeypatch):
    monkeypatch.chdir(place.parent)
    folder = Folder.of(place.name)
    monkeypatch.chdir("/")
    assert folder.exists("config.json")


def test_the_home_folder(place, monkeypatch):
    monkeypatch.setenv("HOME", str(place.parent))
    assert Folder.of(f"~/{place.name}").exists("config.json")


def test_what_is_not_a_folder_is_refused(place):
    with pytest.raises(ModelError, match=r"config\.json: found a file, expected a checkpoint fold"):
        Folder.of(place / "config.json")
    with pytest.raises(ModelError, match=r"/none: found no such folder, expected a checkpoint fol"):
        Folder.of(place / "none")
    with pytest.raises(ModelError, match=r"found no such folder.* of the hub is hf://own/model\)"):
        Folder.of("own/model")
    with pytest.raises(ModelError, match=r"found no such folder"):
        Folder.of(f"file://{place}/none")


def test_files_that_are_not_there(place):
    folder = Folder.of(place)
    assert folder.read("none.json") is None
    assert folder.read_json("none.json") is None
    assert not folder.exists("sub")
    assert folder.read("sub") is None
    os.mkfifo(place / "pipe")  # reading it would wait for ever
    assert folder.read("pipe") is None
    (place / "broken").symlink_to(place / "nowhere")
    assert not folder.exists("broken")


def test_a_link_to_a_file_is_that_file(place):
    # So the hub's own cache is laid out.
    (place / "linked.json").symlink_to(place.parent / "secret.json")
    folder = Folder.of(place)
    assert folder.read_json("linked.json") == {}
    assert folder.size("linked.json") == 2


@pytest.mark.parametrize(
    "name", ["../secret.json", "..", ".", "", "sub/x", "/etc/passwd", "a\\b", "a\0b"]
)
def test_names_never_lead_out_of_the_folder(place, name):
    for folder in (Folder.of(place), Folder.of("memory://some/model")):
        for act in (folder.read, folder.exists, folder.size):
            with pytest.raises(ModelError, match="is no name of a file of the folder"):
                act(name)


def test_a_file_that_may_not_be_read_is_an_error_and_not_missing(place, monkeypatch):
    folder = Folder.of(place)

    def denied(*_args, **_more):
        raise PermissionError("denied")

    monkeypatch.setattr(folder.fs, "cat_file", denied)
    with pytest.raises(ModelError, match=r"config\.json cannot be read: denied"):
        folder.read("config.json")


def test_folders_in_memory_and_on_s3(s3):
    for url in ("memory://folders/a model", f"{s3}/folders/a model/"):
        fs, root = fsspec.core.url_to_fs(url)
        root = root.rstrip("/")
        fs.pipe_file(f"{root}/config.json", b'{"b": 2}')
        fs.pipe_file(f"{root}/empty.txt", b"")
        folder = Folder.of(url)
        assert not folder.is_local
        assert folder.read_json("config.json") == {"b": 2}
        assert folder.path("config.json") == f"{url.rstrip('/')}/config.json"
        assert folder.read("empty.txt") == b""
        assert folder.read("none.json") is None
        assert folder.size("config.json") == 8
        assert folder.read_range("config.json", 2, 5) == b'b":'
        with pytest.raises(ModelError, match=r"got \d+ bytes, expected the 10 from byte 2 on"):
            folder.read_range("config.json", 2, 12)
        fs.pipe_file(f"{root}/late.json", b"{}")  # what comes later is seen
        assert folder.exists("late.json")


def test_a_bucket_that_is_not_there(s3):
    assert Folder.of("s3://no-such-bucket/model").read("config.json") is None


def test_a_server_that_is_not_there_is_an_error_and_not_a_missing_file(s3):
    folder = Folder.of("s3://mill/model")
    folder.fs = fsspec.filesystem(
        "s3",
        endpoint_url="http://127.0.0.1:1",
        config_kwargs={"retries": {"max_attempts": 0}, "connect_timeout": 1},
    )
    folder.fs.retries = 1
    with pytest.raises(ModelError, match=r"s3://mill/model/config\.json cannot be read"):
        folder.read("config.json")


def test_urls_that_cannot_be_opened():
    with pytest.raises(ModelError, match=r"nonsense://a/b cannot be opened: Protocol not known"):
        Folder.of("nonsense://a/b")
    assert str(Folder.of("hf://owner/name")) == "hf://owner/name"  # nothing is asked of the hub yet


def test_secrets_are_not_shown(s3):
    folder = Folder.of("memory://user:password@host/model?token=secret")
    for text in (str(folder), folder.path("config.json")):
        assert "password" not in text
        assert "secret" not in text


@pytest.mark.parametrize("content", [b"{", b"\xff", b"", b"[" * 100_000, b"9" * 5000, b"[1]", b"3"])
def test_what_is_no_json_object_is_refused(content):
    with pytest.raises(ModelError, match=r"config\.json"):
        parse_json(content, "config.json")

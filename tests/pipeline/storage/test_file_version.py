"""Versions differ where contents may differ."""

import os
from datetime import UTC, datetime

import pytest

from mediamill.pipeline.storage import storage
from mediamill.pipeline.storage.file_version import file_version, same_content


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "file"
    path.write_bytes(b"one")
    return path


def version(path):
    return file_version(storage.resolve(str(path)))


def test_an_unchanged_file_has_one_version(file):
    assert version(file) == version(file) != ""


def test_another_content_of_the_same_size_and_time_has_another_version(file):
    before, was = version(file), file.stat()
    file.write_bytes(b"two")
    os.utime(file, ns=(was.st_atime_ns, was.st_mtime_ns))
    assert (file.stat().st_size, file.stat().st_mtime_ns) == (was.st_size, was.st_mtime_ns)
    assert version(file) != before


def test_another_link_changes_the_version_but_not_the_content(file):
    before = version(file)
    file.with_name("link").hardlink_to(file)
    assert version(file) != before
    assert same_content(before, version(file))
    file.write_bytes(b"three")
    assert not same_content(before, version(file))


def test_a_symbolic_link_has_the_version_of_its_target(file):
    link = file.with_name("link")
    link.symlink_to(file)
    before = version(link)
    file.write_bytes(b"other")
    assert version(link) != before


class Store:
    """A storage that is not local; no test sends it a request."""

    path = "x"
    is_local = False


TIME = datetime(2024, 1, 1, tzinfo=UTC)


@pytest.mark.parametrize(
    ("info", "expected"),
    [
        ({"size": 3, "ETag": '"ab-2"', "LastModified": TIME}, "3 ab-2"),
        ({"size": 3, "generation": "17", "updated": "2024"}, "3 17"),
        ({"size": 3, "last_modified": TIME}, "3 @2024-01-01T00:00:00+00:00"),
        ({"size": 3}, ""),
        ({"size": None, "ETag": "ab"}, ""),
    ],
)
def test_versions_of_object_stores(info, expected):
    assert file_version(Store(), info) == expected


def test_etags_show_another_content_and_times_do_not():
    assert same_content("3 @2024-01-01T00:00:00+00:00", "3 @1704067200.0")
    assert not same_content("3 ab", "3 cd")
    assert not same_content("3 ab", "4 ab")
    assert same_content("", "3 ab")

"""Videos that many rows name are fetched once and not copied; a header comes without the rest."""

import multiprocessing
import os
import subprocess
import threading
import time

import numpy as np
import pytest

from mediamill.model.media.duration import duration_s
from mediamill.pipeline.fetching import spool
from mediamill.pipeline.fetching.budget import Reservation
from mediamill.pipeline.fetching.disk_cache import DiskCache
from mediamill.pipeline.fetching.fetcher import Fetcher
from mediamill.pipeline.fetching.spool import Spool
from mediamill.schemas.errors import ErrorCode, RowError
from tests.films import film
from tests.pipeline.fetching.rules import fetch_rules
from tests.servers.faulty_http import faulty_http

MIB = 1024**2


@pytest.fixture(autouse=True)
def _own_temporary_folder(tmp_path, monkeypatch):
    (tmp_path / "tmp").mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "tmp"))


def rules(folder, **changes):
    settings = {
        "max_bytes": 10**8,
        "timeout_s": 30.0,
        "base": str(folder),
        "private_addresses": True,
        "memory_bytes": 1000,
        "in_place": True,
        "cache_bytes": 20 * MIB,
        "pause_s": 0.01,
    }
    return fetch_rules(**{**settings, **changes})


def got(fetcher, uri):
    return fetcher.fetch(uri, Reservation(fetcher.budget))


def padded(data, size):
    """An MP4 file with its index at the end and so many bytes of nothing before it."""
    at = data.index(b"moov") - 4
    free = size.to_bytes(4, "big") + b"free" + bytes(size - 8)
    return data[:at] + free + data[at:]


def test_a_local_file_is_read_where_it_lies_whatever_its_name_leads_to_later(tmp_path):
    data = np.random.default_rng(1).bytes(50_000)
    (tmp_path / "video").write_bytes(data)
    medium = got(Fetcher(rules(tmp_path)), "video")
    assert medium.path is not None
    assert not list((tmp_path / "tmp").rglob("spool/*"))
    # Another process, as the one that decodes, sees the same inode after the name was taken over.
    (tmp_path / "secret").write_bytes(b"secret")
    (tmp_path / "secret").replace(tmp_path / "video")
    assert subprocess.run(["cat", medium.path], capture_output=True, check=True).stdout == data
    assert medium.path.stat().st_size == 50_000
    path = medium.path
    del medium
    assert not path.exists()  # the handle is closed


def test_what_may_not_be_read_is_not_read_in_place_either(tmp_path):
    (tmp_path / "in").mkdir()
    (tmp_path / "out").write_bytes(bytes(5000))
    (tmp_path / "in" / "link").symlink_to(tmp_path / "out")
    (tmp_path / "in" / "large").write_bytes(bytes(5000))
    for uri, code in (("link", "fetch_denied"), ("../out", "fetch_denied"), ("no", "not_found")):
        with pytest.raises(RowError) as caught:
            got(Fetcher(rules(tmp_path / "in")), uri)
        assert code in caught.value.code
    with pytest.raises(RowError, match=r"limits\.max_bytes"):
        got(Fetcher(rules(tmp_path / "in", max_bytes=4000)), "large")


def test_a_remote_file_comes_once_for_all_who_ask(tmp_path):
    data = np.random.default_rng(2).bytes(3 * MIB)
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "video").write_bytes(data)
    with faulty_http(tmp_path / "site") as site:
        uri = f"{site.url}/video"
        fetchers = [Fetcher(rules(tmp_path)) for _ in range(3)]  # as of three processes
        found = []
        threads = [
            threading.Thread(target=lambda one=one: found.append(got(one, uri)))
            for one in fetchers * 2
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        whole = [one for one in site.ranges if one[1] not in ("bytes=0-0",)]
        assert len(whole) == 1  # the rest have asked for a byte, to hear the version
        assert len(found) == 6
        assert len({one.path for one in found}) == 6
        assert all(one.path.read_bytes() == data for one in found)
        assert len({one.path.stat().st_ino for one in found}) == 1
        Spool.release(one.path for one in found)
        # Another content of that name is another file.
        (tmp_path / "site" / "video").write_bytes(data[::-1])
        assert got(fetchers[0], uri).path.read_bytes() == data[::-1]
        # What is in use stays; the last one who leaves puts out the light.
        spool.sweep()
        assert got(fetchers[1], uri).path.read_bytes() == data[::-1]
        del fetchers, threads
        spool.sweep()
        assert not list((tmp_path / "tmp").rglob("kept"))


def test_the_least_recently_used_file_makes_room(tmp_path):
    (tmp_path / "site").mkdir()
    for name in "abcd":
        (tmp_path / "site" / name).write_bytes(np.random.default_rng(ord(name)).bytes(MIB))
    with faulty_http(tmp_path / "site") as site:
        fetcher = Fetcher(rules(tmp_path, cache_bytes=3 * MIB))

        def fetched(name):
            """Whether it had to be."""
            before = len([one for one in site.ranges if one[1] != "bytes=0-0"])
            Spool.release([got(fetcher, f"{site.url}/{name}").path])
            time.sleep(0.02)  # the order of use is told by a clock
            return len([one for one in site.ranges if one[1] != "bytes=0-0"]) > before

        assert [fetched(name) for name in "abc"] == [True] * 3
        assert [fetched(name) for name in "abc"] == [False] * 3
        assert fetched("a") is False
        assert fetched("d") is True  # b goes
        assert [fetched(name) for name in "acd"] == [False] * 3
        assert fetched("b") is True
        kept = list((tmp_path / "tmp").rglob("kept/spool/*"))
        assert sum(one.stat().st_size for one in kept) <= 3 * MIB


def test_between_two_steps_of_a_job_the_files_stay_and_after_them_they_go(tmp_path):
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "video").write_bytes(np.random.default_rng(4).bytes(MIB))
    with faulty_http(tmp_path / "site") as site:
        with spool.hold_shared_folder():
            for _ in range(2):
                fetcher = Fetcher(rules(tmp_path))
                Spool.release([got(fetcher, f"{site.url}/video").path])
                del fetcher  # as at the end of a step
                spool.sweep()
            assert [one[1] for one in site.ranges].count("bytes=0-0") == 2
            assert len(site.ranges) == 3
        assert not list((tmp_path / "tmp").rglob("kept"))


def _fill_and_die(folder, url):
    fetcher = Fetcher(rules(folder))
    with fetcher._cache.entry(url, "v", 5):
        os._exit(9)


def test_who_is_killed_while_fetching_holds_nobody_up(tmp_path):
    process = multiprocessing.get_context("fork").Process(
        target=_fill_and_die, args=(tmp_path, "http://x/y")
    )
    process.start()
    process.join()
    cache = DiskCache(Spool(), MIB)
    with cache.entry("http://x/y", "v", 5) as entry:
        assert entry.get() is None


def test_without_a_version_nothing_is_kept(tmp_path):
    body = np.random.default_rng(3).bytes(100_000)
    (tmp_path / "site").mkdir()
    with faulty_http(tmp_path / "site") as site:
        site.answers["/video"] = (200, {}, body)
        fetcher = Fetcher(rules(tmp_path))
        assert got(fetcher, f"{site.url}/video").path.read_bytes() == body
        assert got(fetcher, f"{site.url}/video").path.read_bytes() == body
        assert not [one for one in (tmp_path / "tmp").rglob("kept/spool/*") if one.stat().st_size]


def head_of(fetcher, uri):
    return fetcher.fetch_partial(uri, Reservation(fetcher.budget))


@pytest.mark.parametrize("faults", [0.0, 0.3])
def test_header_and_index_of_a_large_file_are_enough_and_few_bytes(tmp_path, faults):
    data, _ = film(0, [2, 2], side=64)
    at_end = padded(data, 6 * MIB)
    at_start, _ = film(0, [2, 2], side=64, movflags="faststart")
    at_start += (6 * MIB).to_bytes(4, "big") + b"free" + bytes(6 * MIB - 8)
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "end.mp4").write_bytes(at_end)
    (tmp_path / "site" / "start.mp4").write_bytes(at_start)
    with faulty_http(
        tmp_path / "site", seed=4, rate=faults, kinds=("503", "reset", "cut", "short_range")
    ) as site:
        fetcher = Fetcher(rules(tmp_path, tries=12))
        for name, content in (("end.mp4", at_end), ("start.mp4", at_start)):
            medium, whole = head_of(fetcher, f"{site.url}/{name}")
            assert not whole
            facts = medium.path.stat()
            assert facts.st_size == len(content)
            assert facts.st_blocks * 512 < 2 * MIB  # the rest are holes
            assert duration_s(medium.path, complete=False) == duration_s(content) == 4.0
            Spool.release([medium.path])
        if not faults:
            asked = [one[1] for one in site.ranges]
            assert asked == [
                "bytes=0-1048575",
                f"bytes={at_end.index(b'moov') - 4}-{len(at_end) - 1}",
                "bytes=0-1048575",
            ]
    assert not list((tmp_path / "tmp").rglob("spool/*"))


def test_small_and_local_files_and_servers_without_ranges_come_whole(tmp_path):
    data, _ = film(0, [2], side=64)
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "small.mp4").write_bytes(data)
    large = padded(data, 6 * MIB)
    (tmp_path / "site" / "large.mp4").write_bytes(large)
    with faulty_http(tmp_path / "site", rate=1.0, kinds=("no_range",)) as site:
        fetcher = Fetcher(rules(tmp_path))
        for name, content in (("small.mp4", data), ("large.mp4", large)):
            medium, whole = head_of(fetcher, f"{site.url}/{name}")
            assert whole
            assert medium.path.read_bytes() == content
        medium, whole = head_of(fetcher, str(tmp_path / "site" / "large.mp4"))
        assert whole
        assert medium.path.read_bytes() == large
        with pytest.raises(RowError, match="max_bytes") as caught:
            head_of(Fetcher(rules(tmp_path, max_bytes=MIB)), f"{site.url}/large.mp4")
        assert caught.value.code == ErrorCode.FETCH_TOO_LARGE
        with pytest.raises(RowError) as caught:
            head_of(fetcher, f"{site.url}/none.mp4")
        assert caught.value.code == ErrorCode.FETCH_NOT_FOUND


def test_boxes_that_lie_end_the_search(tmp_path):
    """Sizes of 0, 1 and beyond the end, and boxes that go on for ever."""
    tail = bytes(3 * MIB)
    heads = {
        "zero": bytes(4) + b"ftyp" + tail,
        "tiny": (7).to_bytes(4, "big") + b"mdat" + tail,
        "huge": (1).to_bytes(4, "big") + b"mdat" + (2**63).to_bytes(8, "big") + tail,
        "many": ((8).to_bytes(4, "big") + b"free") * (3 * MIB // 8),
        "moov": (2**31).to_bytes(4, "big") + b"moov" + tail,
        "jump": (2**20 + 4).to_bytes(4, "big") + b"free" + tail,
    }
    (tmp_path / "site").mkdir()
    for name, content in heads.items():
        (tmp_path / "site" / name).write_bytes(content)
    with faulty_http(tmp_path / "site") as site:
        fetcher = Fetcher(rules(tmp_path))
        for name, content in heads.items():
            before = len(site.ranges)
            medium, whole = head_of(fetcher, f"{site.url}/{name}")
            assert not whole
            assert medium.path.stat().st_size == len(content)
            assert len(site.ranges) - before <= 17

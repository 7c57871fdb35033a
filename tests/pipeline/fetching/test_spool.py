"""Temporary files of living, ended and killed processes."""

import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from mediamill.pipeline.fetching import spool
from mediamill.pipeline.fetching.spool import Spool

CHILD = """
import sys, tempfile
from mediamill.pipeline.fetching.spool import Spool
tempfile.tempdir = sys.argv[1]
one = Spool()
path = one.new()
path.write_bytes(b"x")
print(path, flush=True)
sys.stdin.read()
"""


@pytest.fixture(autouse=True)
def _temporary(tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))


@pytest.fixture
def child(tmp_path):
    """Another process with a file in its spool."""
    started = []

    def start():
        process = subprocess.Popen(
            [sys.executable, "-c", CHILD, str(tmp_path)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        started.append(process)
        return process, Path(process.stdout.readline().strip())

    yield start
    for process in started:
        process.kill()
        process.communicate()


def test_files_go_when_they_are_released(tmp_path):
    one = Spool()
    path = one.new()
    path.write_bytes(b"x")
    again = Spool.share(path)
    Spool.release([path, None, str(path)])
    assert not path.exists()
    assert again.read_bytes() == b"x"
    other = tmp_path / "mine"
    other.write_bytes(b"mine")
    Spool.release([other, again])
    assert other.exists()
    assert not again.exists()


def test_nothing_is_made_before_it_is_needed(tmp_path):
    Spool()
    assert not list(tmp_path.iterdir())


def test_a_process_that_ends_takes_its_files_along(child):
    process, path = child()
    assert path.exists()
    process.communicate()
    assert process.returncode == 0
    assert not list(spool.root_folder().iterdir())


def test_what_a_killed_process_left_goes_with_the_next_sweep(child):
    living, kept = child()
    killed, left = child()
    killed.send_signal(signal.SIGKILL)
    killed.wait()
    assert left.exists()
    Spool()
    assert not left.parent.parent.exists()
    assert kept.exists()
    living.communicate()


def test_a_spool_that_is_gone_is_removed():
    one = Spool()
    path = one.new()
    path.write_bytes(b"x")
    del one
    assert not path.exists()
    assert not list(spool.root_folder().iterdir())


def test_sweeps_and_beginnings_do_not_meet():
    """Many begin and sweep at once; nobody loses what it has."""
    wrong = []

    def begin():
        for _ in range(30):
            one = Spool()
            path = one.new()
            path.write_bytes(b"x")
            spool.sweep()
            if not path.exists():
                wrong.append(path)

    threads = [threading.Thread(target=begin) for _ in range(8)]
    for one in threads:
        one.start()
    for one in threads:
        one.join()
    assert not wrong
    spool.sweep()
    assert not list(spool.root_folder().iterdir())


def test_a_folder_that_others_may_write_to_is_not_used():
    root = spool.root_folder()
    root.mkdir()
    root.chmod(0o777)
    with pytest.raises(PermissionError, match="belongs to another user"):
        Spool().new()
    root.rmdir()
    root.symlink_to("/tmp")
    with pytest.raises(PermissionError):
        Spool().new()

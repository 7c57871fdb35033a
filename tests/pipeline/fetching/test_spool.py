"""Temporary files of running, ended and killed processes."""

import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from mediamill.pipeline.fetching import spool
from mediamill.pipeline.fetching.spool import Spool

PROCESS = """
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
def other_process(tmp_path):
    """Another process with a file in its spool."""
    started = []

    def start():
        process = subprocess.Popen(
            [sys.executable, "-c", PROCESS, str(tmp_path)],
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


def test_released_files_are_removed(tmp_path):
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


def test_no_folder_is_created_before_it_is_needed(tmp_path):
    Spool()
    assert not list(tmp_path.iterdir())


def test_a_process_removes_its_files_when_it_ends(other_process):
    process, path = other_process()
    assert path.exists()
    process.communicate()
    assert process.returncode == 0
    assert not list(spool.root_folder().iterdir())


def test_the_next_sweep_removes_the_files_of_a_killed_process(other_process):
    running, running_file = other_process()
    killed, killed_file = other_process()
    killed.send_signal(signal.SIGKILL)
    killed.wait()
    assert killed_file.exists()
    Spool()
    assert not killed_file.parent.parent.exists()
    assert running_file.exists()
    running.communicate()


def test_a_deleted_spool_removes_its_files():
    one = Spool()
    path = one.new()
    path.write_bytes(b"x")
    del one
    assert not path.exists()
    assert not list(spool.root_folder().iterdir())


def test_sweeps_do_not_remove_new_spools():
    """Many spools are created and swept in parallel; none loses a file."""
    lost = []

    def create_and_sweep():
        for _ in range(30):
            one = Spool()
            path = one.new()
            path.write_bytes(b"x")
            spool.sweep()
            if not path.exists():
                lost.append(path)

    threads = [threading.Thread(target=create_and_sweep) for _ in range(8)]
    for one in threads:
        one.start()
    for one in threads:
        one.join()
    assert not lost
    spool.sweep()
    assert not list(spool.root_folder().iterdir())


def test_a_folder_that_other_users_can_write_to_is_refused():
    root = spool.root_folder()
    root.mkdir()
    root.chmod(0o777)
    with pytest.raises(PermissionError, match="belongs to another user"):
        Spool().new()
    root.rmdir()
    root.symlink_to("/tmp")
    with pytest.raises(PermissionError):
        Spool().new()

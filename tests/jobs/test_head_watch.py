"""A head that goes away is told, before Ray's core ends the process without a word."""

import socket
import subprocess
import sys

CODE = """
import sys, time
from mediamill.jobs import head_watch
from mediamill.jobs.progress.reporter import JsonReporter

head_watch._head_address = lambda: sys.argv[1]
head_watch._POLL_S, head_watch._SILENT_S = 0.05, 0.2
with head_watch.ending_without_head(JsonReporter(sys.stderr)):
    time.sleep(float(sys.argv[2]))
"""


def watch(address, seconds):
    command = [sys.executable, "-c", CODE, address, str(seconds)]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)


def test_a_head_that_is_gone_ends_the_process_with_a_sentence():
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"127.0.0.1:{server.getsockname()[1]}"
        assert (watch(address, 1.0).returncode, watch(address, 1.0).stderr) == (0, "")
    ended = watch(address, 60)
    assert ended.returncode == 1
    assert ended.stderr == (
        f"error: the head of the Ray cluster at {address} is gone; when it runs again, run the "
        "same command again to go on: rows that are finished are kept\n"
    )

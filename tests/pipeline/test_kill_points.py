"""A write that is killed at any of its steps loses and doubles nothing."""

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parents[2]


MEMORY = Path("/dev/shm")  # writes are made durable hundreds of times, which disks take long for


def test_killed_at_every_step_and_resumed(tmp_path):
    where = MEMORY if os.access(MEMORY, os.W_OK) else tmp_path
    with tempfile.TemporaryDirectory(dir=where) as folder:
        command = [sys.executable, "-m", "tests.pipeline.kill_points", folder]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads(done.stdout)
    # Kills before the first file, among files of one commit, and after the last one were met.
    assert found["kills"] > 50
    assert {0, 9, 18} < set(found["rows_seen"])
    assert len(found["rows_seen"]) > 5

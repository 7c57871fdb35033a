"""A coordinator that is killed again and again ends the command with one sentence."""

import os
import signal
import subprocess
import sys
import time

import pytest

from tests import processes
from tests.pipeline.world import draw_media, picture_rows, write_manifest

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]


@pytest.mark.parametrize("pause_s", [0.0, 2.0], ids=["at-its-start", "while-it-works"])
def test_it_is_killed_again_and_again(tmp_path, pause_s):
    rows = picture_rows(draw_media(tmp_path / "media"), 10)
    manifest = str(write_manifest(tmp_path / "m.parquet", rows))
    options = ["--model", "built-in", "--prompt", "Describe the picture."]
    command = [sys.executable, "-m", "mediamill", "caption", manifest, str(tmp_path / "out")]
    with (tmp_path / "log").open("w") as log:
        process = subprocess.Popen([*command, *options], stdout=log, stderr=log)
        seen, killed, first = {}, set(), None
        try:
            while process.poll() is None:
                assert first is None or time.monotonic() - first < 600, "a quiet machine takes 20 s"
                for pid in processes.descendants(process.pid) - killed:
                    if not processes.title(pid).startswith("ray::Coordinator"):
                        continue
                    now = time.monotonic()
                    if now - seen.setdefault(pid, now) >= pause_s:
                        os.kill(pid, signal.SIGKILL)
                        killed.add(pid)
                        first = first or now
                time.sleep(0.02)
        finally:
            processes.end_at_once([process.pid, *processes.descendants(process.pid)])
    lines = (tmp_path / "log").read_text().splitlines()
    said = [line for line in lines if not line.startswith('{"event": "progress"')]
    assert process.returncode == 1, said
    assert 3 <= len(killed) <= 5
    (sentence,) = said
    assert sentence.startswith(
        "error: the job failed: the coordinator, the process that owns the ledger, was killed 3 "
        "times, and no row was finished in between; the machine may lack memory"
    )
    assert sentence.endswith("the same command goes on: rows that are finished are kept")

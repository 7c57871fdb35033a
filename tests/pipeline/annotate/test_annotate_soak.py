"""Three hours of video and two hundred clips: memory, kills, and an engine that does not wait."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.dataset as pads
import pytest

from benchmarks import annotate as bench
from mediamill.pipeline.annotate.annotate import annotate, check_annotation
from mediamill.pipeline.ledger import ledger
from mediamill.pipeline.storage import storage
from tests import processes
from tests.pipeline.world import write_manifest

ROOT = Path(__file__).parents[3]
WORKER_BYTES = 1.5e9
MARK = "ANNOTATE_TEST"  # of the environment of a run and of all that it starts

pytestmark = [pytest.mark.soak, pytest.mark.timeout(3600)]


@pytest.fixture(scope="module")
def film(tmp_path_factory):
    """The folder of a video of three hours, and what is seen when."""
    folder = tmp_path_factory.mktemp("film")
    return folder, bench.long_video(folder / "long.mp4")


def finished(output):
    return ledger.load(storage.resolve(str(output))).counts.rows


def test_three_hours_are_annotated_in_little_memory_and_through_a_kill(film, tmp_path):
    folder, _ = film
    environment = {**os.environ, MARK: str(tmp_path)}
    run = subprocess.Popen(
        [sys.executable, "-m", "benchmarks.annotate", "long", str(folder)],
        cwd=ROOT,
        env=environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    windows = folder / "timeline" / "windows"
    while finished(windows) < 400 and run.poll() is None:
        time.sleep(1)
    os.kill(run.pid, signal.SIGKILL)
    processes.end_at_once(processes.with_variable(MARK, str(tmp_path)) - {run.pid})
    run.wait()
    before = finished(windows)
    assert 400 <= before < 1080
    with bench.watched() as peaks:
        made = bench.long(folder)
    print({kind: f"{size / 2**20:.0f} MiB" for kind, size in peaks.bytes.items()})
    assert (made.windows.rows, made.windows.errors) == (bench.HOURS * 360, {})
    assert made.windows.skipped >= before
    assert 0 < peaks.bytes["worker"] < WORKER_BYTES
    rows = pads.dataset(str(windows), format="parquet").to_table().to_pylist()
    assert sorted(row["window"] for row in rows) == list(range(1080))
    for row in rows:
        assert row["start_s"] == 10.0 * row["window"]
        assert row["frame_times_s"][0] == row["start_s"]
        assert len(row["frame_times_s"]) == 20
    assert len({row["sha256"] for row in rows}) == 1
    (video,) = pads.dataset(str(folder / "timeline" / "videos")).to_table().to_pylist()
    assert [one["start_s"] for one in video["segments"]] == [10.0 * n for n in range(1080)]


def test_events_anywhere_in_three_hours_are_found(film):
    folder, events = film
    chosen = np.random.default_rng(9).choice(len(events), 40, replace=False).tolist()
    table = {
        "id": ["v"],
        "uri": [str(folder / "long.mp4")],
        "start_s": pa.array([[events[n][0] for n in chosen]], pa.list_(pa.float64())),
        "end_s": pa.array([[events[n][1] for n in chosen]], pa.list_(pa.float64())),
    }
    write_manifest(folder / "events.parquet", pa.table(table))
    job = bench.job_of(folder / "events.parquet", folder / "events", annotate__windows="given")
    made = annotate(check_annotation(job))
    assert made.windows.errors == {}
    rows = pads.dataset(str(folder / "events" / "windows")).to_table().to_pylist()
    said = {row["window"]: row["text"] for row in rows}
    assert [said[at] for at in range(40)] == [events[n][2] for n in chosen]


def test_two_hundred_clips_keep_an_engine_busy(tmp_path):
    made, busy = bench.clips(tmp_path)
    assert made.windows.rows == made.windows.ok == 200
    assert made.windows.binds == "generate"
    assert busy > 0.9

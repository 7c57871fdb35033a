"""A run that is stopped half-way goes on after its manifest was compacted, on a real Ray cluster.

The stages are simulated (faulty_stages.py).
"""

import random
from pathlib import Path

import pytest

from mediamill.pipeline.run import Drained, RunError, Stages, Stop, check, run
from tests.pipeline.coordinator.faulty_stages import FaultyGenerate, FaultyPrepare
from tests.pipeline.world import assert_each_once, make_job, read_output, write_manifest

STAGES = Stages(FaultyPrepare, FaultyGenerate)
pytestmark = pytest.mark.timeout(400)  # a busy machine starts processes slowly


def rows(numbers):
    """Every eighth row takes a second, until the second run."""
    return [
        {"id": f"row-{n:05}", "uri": "x", "prompt": "be good" if n % 8 else "slow"} for n in numbers
    ]


def test_a_compacted_manifest_goes_on(tmp_path, ray_cluster):
    for day in range(10):
        write_manifest(tmp_path / f"m/{day}.parquet", rows(range(day * 160, day * 160 + 160)))
    job = make_job(tmp_path / "m", tmp_path / "out", rows_per_file=50, resources__batch_rows=32)
    stop = Stop()

    def stop_early(progress):
        if progress.rows_done >= 50:
            stop.request()

    with pytest.raises(Drained):
        run(job, stages=STAGES, on_progress=stop_early, stop=stop)
    traces = Path(f"{job.output}-traces")
    (traces / "hurry").touch()
    before = {row["id"] for row in read_output(job.output)}
    assert 50 <= len(before) < 1600
    plan = check(job)
    order = list(range(1620))  # with 20 new ones
    random.Random(0).shuffle(order)
    for day in range(10):
        (tmp_path / f"m/{day}.parquet").unlink()
    for part in range(2):
        write_manifest(tmp_path / f"m/all-{part}.parquet", rows(order[part::2]))
    with pytest.raises(RunError, match="the manifest's file has changed while the job ran"):
        run(job, plan, stages=STAGES)
    assert {row["id"] for row in read_output(job.output)} == before
    (traces / "calls").unlink()
    summary = run(job, stages=STAGES)
    assert (summary.rows, summary.ok, summary.skipped) == (1620, 1620, len(before))
    assert_each_once(read_output(job.output), [row["id"] for row in rows(range(1620))])
    answered = [line for line in (traces / "calls").read_text().splitlines() if "answered" in line]
    again = {name for line in answered for name in line.split(": ")[1].split()}
    assert again.isdisjoint(before)
    assert len(again) == 1620 - len(before)
    assert run(job, stages=STAGES).skipped == 1620

"""Each row comes out once although drivers, actors and tasks are killed with SIGKILL."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from mediamill.pipeline.ledger import ledger
from mediamill.pipeline.run import RunError, run
from mediamill.pipeline.storage import storage
from tests import processes
from tests.pipeline.world import (
    assert_each_once,
    draw_media,
    make_job,
    picture_rows,
    read_output,
    write_manifest,
)

ROOT = Path(__file__).parents[3]
ROWS = 160
DRIVER = """
import json, sys
from mediamill.pipeline.run import run
from mediamill.schemas.job import load_job
job, address = json.loads(sys.argv[1])
run(load_job(None, job), address=address)
"""


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """A folder, a manifest whose rows make many commits, and the ids of its rows."""
    folder = tmp_path_factory.mktemp("faults")
    media = draw_media(folder / "media")
    rows = picture_rows(media, ROWS)
    rows[7]["uri"] = str(folder / "gone.jpg")
    return folder, write_manifest(folder / "m.parquet", rows), [row["id"] for row in rows]


def job_for(world, name):
    return make_job(
        world[1], world[0] / name, partition_by=["kind"], rows_per_file=8, resources__batch_rows=4
    )


def start_driver(job, address=None):
    """The job in a process of its own, in a cluster of its own unless an address is given."""
    settings = json.dumps([job.model_dump(mode="json"), address])
    command = [sys.executable, "-c", DRIVER, settings]
    return subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True)


def done_rows(job):
    return ledger.load(storage.resolve(job.output)).counts.rows


def wait_until(condition, event, process=None, seconds=200.0):
    end = time.monotonic() + seconds
    while not condition():
        assert process is None or process.poll() is None, process.communicate()[1][-3000:]
        assert time.monotonic() < end, f"waited in vain for {event}"
        time.sleep(0.05)


def kill(process):
    process.send_signal(signal.SIGKILL)
    process.communicate()


def named(title, root):
    """The processes that descend from `root` and have this in their title."""
    return [pid for pid in processes.descendants(root) if title in processes.title(pid)]


def assert_finished(world, job, summary):
    rows = read_output(job.output)
    assert_each_once(rows, world[2])
    assert (summary.rows, summary.ok, dict(summary.errors)) == (
        ROWS,
        ROWS - 1,
        {"fetch_not_found": 1},
    )
    texts = {}
    for row in rows:
        if row["status"] == "ok":
            texts.setdefault(row["uri"], set()).add(row["text"])
    assert all(len(values) == 1 for values in texts.values())  # the same text in every process
    assert not (Path(job.output) / ledger.HIDDEN / "staged").is_dir() or not list(
        (Path(job.output) / ledger.HIDDEN / "staged").iterdir()
    )


@pytest.mark.slow
def test_a_driver_is_killed_and_its_cluster_dies_with_it(world, ray_cluster):
    job = job_for(world, "own")
    driver = start_driver(job)
    wait_until(lambda: done_rows(job) > 0, "a commit", driver)
    family = {
        pid for word in ("MapWorker", "Coordinator", "raylet") for pid in named(word, driver.pid)
    }
    assert len(family) >= 4
    kill(driver)
    # Ray's own agents take up to a minute longer.
    wait_until(lambda: not family & processes.parents().keys(), "its workers to end", seconds=60)
    seen = read_output(job.output)
    assert_each_once(seen, [row["id"] for row in seen])
    between = done_rows(job)
    assert 0 < between < ROWS
    summary = run(job)
    assert summary.skipped == between
    assert_finished(world, job, summary)


@pytest.mark.slow
def test_a_driver_is_killed_at_its_start_and_the_next_one_loses_its_lease(world, ray_cluster):
    job = job_for(world, "driver")
    first = start_driver(job, ray_cluster)
    # Once the run has begun, before it has finished a row.
    begun = Path(job.output) / ledger.HIDDEN / "log" / "000000000002.json"
    wait_until(begun.exists, "the run to begin", first)
    kill(first)
    assert done_rows(job) == 0

    second = start_driver(job, ray_cluster)
    wait_until(lambda: done_rows(job) > 0, "a commit", second)
    with pytest.raises(RunError, match=rf"at work on it \(process {second.pid} on machine"):
        run(job)
    # As if the machine had been cut off for so long that its lease expired.
    (Path(job.output) / ledger.HIDDEN / "lease.json").unlink()
    summary = run(job)
    errors = second.communicate(timeout=200)[1]
    assert second.returncode != 0
    assert RunError.__name__ in errors
    assert f"run {summary.run_id} has begun on the same output" in errors
    assert summary.skipped > 0
    assert_finished(world, job, summary)


def test_actors_and_tasks_are_killed_in_the_middle(world, ray_cluster):
    job = job_for(world, "workers")
    ended = []

    def work():
        ended.append(run(job))

    driver = threading.Thread(target=work, daemon=True)
    driver.start()
    killed = []

    def kill_first(title):
        for pid in named(title, os.getpid())[:1]:
            os.kill(pid, signal.SIGKILL)
            killed.append(title)
        return title in killed or bool(ended)

    # Ray's titles of processes that are running a task.
    wait_until(lambda: kill_first("_FetchAndPrepare)).submit"), "media to be prepared")
    wait_until(lambda: kill_first("_GenerateAndParse)).submit"), "rows to be generated")
    wait_until(lambda: named("ray::Write", os.getpid()) or ended, "rows to be written")
    kill_first("ray::Coordinator")  # write tasks have to wait for it
    wait_until(lambda: kill_first("ray::Write"), "rows to be written")
    wait_until(lambda: done_rows(job) or ended, "a commit")
    processes.end_at_once(
        named("ray::Coordinator", os.getpid())[:1]
    )  # unless that was the last commit
    driver.join(250)
    assert ended, "the run did not end"
    assert len(killed) == 4, killed
    assert_finished(world, job, ended[0])

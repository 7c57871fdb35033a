"""Replicas of several processes on a cluster of several nodes.

Whichever process dies or hangs, each row comes out once and with the text of a single process, and
no process is left behind.
"""

import json
import os
import signal
import threading
import time

import pytest

from mediamill.pipeline.ledger import ledger
from mediamill.pipeline.run import run
from mediamill.pipeline.storage import storage
from mediamill.schemas.job import render_job
from tests import processes
from tests.pipeline.world import (
    assert_each_once,
    draw_media,
    make_job,
    picture_rows,
    read_output,
    write_manifest,
)
from tests.soak.cluster import LocalCluster, environment, folders
from tests.soak.driver import Driver

ROWS = 600
RANK, LEADER = "mediamill.model.tensor_parallel.worker", "_GenerateAndParse"
SILENCE_S = 15.0  # see model/tensor_parallel/tensor_parallel_engine.py


@pytest.fixture(scope="module")
def cluster():
    """Three nodes, on any of which a replica may run."""
    with folders() as places:
        variables = environment(places, {})
        with LocalCluster(3, 2, places, variables) as found:
            found.variables = variables | {"RAY_ADDRESS": found.address}
            yield found


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    folder = tmp_path_factory.mktemp("ranks")
    media = draw_media(folder / "media")
    rows = picture_rows(media, ROWS)
    for row in rows[5::60]:
        row["uri"] = str(media["clip"])
    return folder, write_manifest(folder / "m.parquet", rows), [row["id"] for row in rows]


def start(world, cluster, name, **changes):
    job = make_job(
        world[1],
        world[0] / name,
        rows_per_file=16,
        resources__batch_rows=4,
        resources__prepare_workers=1,
        resources__dtype="float32",
        **changes,
    )
    path = world[0] / f"{name}.yaml"
    path.write_text(render_job(job))
    return job, Driver(path, cluster.variables)


def finish(driver):
    code, output, errors = driver.finish()
    assert code == 0, errors
    return json.loads(output.strip().rpartition("\n")[2])


def texts(job, ids):
    rows = read_output(job.output)
    assert_each_once(rows, ids)
    return {row["id"]: (row["text"], row["output_tokens"], row["sha256"]) for row in rows}


def ranks(cluster):
    """The processes of the other ranks, each with its parent."""
    parents = processes.parents()
    family = cluster.family() & parents.keys()
    return {pid: parents[pid] for pid in family if RANK in processes.title(pid)}


def wait_for(condition, event, driver, seconds=120.0):
    end = time.monotonic() + seconds
    while not (found := condition()):
        assert not driver.over, f"the job ended before {event}: {driver.finish()}"
        assert time.monotonic() < end, f"waited in vain for {event}: {driver.stderr()}"
        time.sleep(0.05)
    return found


def test_a_rank_is_killed_and_its_replica_is_replaced(tmp_path, ray_cluster):
    media = draw_media(tmp_path / "media")
    rows = picture_rows(media, 180)  # the first commit has 64 of them
    rows[5]["uri"] = str(media["clip"])
    settings = {"resources__batch_rows": 4, "resources__dtype": "float32", "rows_per_file": 8}
    alone = make_job(write_manifest(tmp_path / "a.parquet", rows[:12]), tmp_path / "a", **settings)
    run(alone)
    expected = {row["uri"]: row["text"] for row in read_output(alone.output)}
    job = make_job(
        write_manifest(tmp_path / "m.parquet", rows),
        tmp_path / "out",
        resources__tensor_parallel=2,
        **settings,
    )
    killed = []

    def kill_a_rank():
        while not ledger.load(storage.resolve(job.output)).counts.rows:
            time.sleep(0.05)
        ours = processes.descendants(os.getpid())
        killed.extend(pid for pid in ours if RANK in processes.title(pid))
        processes.end_at_once(killed)

    killer = threading.Thread(target=kill_a_rank, daemon=True)
    killer.start()
    summary = run(job)
    killer.join()
    found = read_output(job.output)
    assert_each_once(found, [row["id"] for row in rows])
    assert len(killed) == summary.engines_replaced == 1
    assert all(row["text"] == expected[row["uri"]] for row in found)
    assert len(expected) == 7


@pytest.mark.soak
def test_ranks_and_leaders_that_die_or_hang_are_replaced(world, cluster):
    job, driver = start(world, cluster, "one")
    finish(driver)
    expected = texts(job, world[2])

    job, driver = start(world, cluster, "many", resources__replicas=2, resources__tensor_parallel=2)

    def done():
        return ledger.load(storage.resolve(job.output)).counts.rows

    def more_rows():
        before = done()
        wait_for(lambda: done() > before, "a further commit", driver)

    wait_for(lambda: len(ranks(cluster)) == 2, "two replicas", driver)
    more_rows()
    (killed, first), (hung, second) = ranks(cluster).items()
    os.kill(killed, signal.SIGKILL)
    os.kill(hung, signal.SIGSTOP)  # no replica works until one is replaced
    assert not processes.wait_for_end([first], 20)
    assert not processes.wait_for_end([hung, second], SILENCE_S + 20)

    wait_for(lambda: ranks(cluster), "another replica", driver)
    more_rows()
    other, leader = min(ranks(cluster).items())
    os.kill(leader, signal.SIGKILL)
    assert not processes.wait_for_end([other], 10)

    def node_at_work():
        homes = {
            pid: index
            for index, raylet in enumerate(cluster.raylets)
            for pid in processes.descendants(raylet)
        }
        # Not the first one, which the driver runs on.
        return next((homes[pid] for pid in ranks(cluster) if homes.get(pid)), None)

    index = wait_for(node_at_work, "a replica on another node", driver)
    more_rows()
    gone = processes.descendants(cluster.raylets[index])
    cluster.kill_node(index)
    assert not processes.wait_for_end(gone, 10)
    cluster.replace_node(index)

    summary = finish(driver)
    assert texts(job, world[2]) == expected
    assert summary["engines_replaced"] == 2  # a killed leader is not counted
    assert not processes.wait_for_end(ranks(cluster), 20)

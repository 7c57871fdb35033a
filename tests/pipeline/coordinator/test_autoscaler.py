"""Runs on clusters whose nodes join and leave: every GPU is used, and no row is lost."""

import json
import subprocess
import sys
import time
from collections import Counter

import pytest

from mediamill.model.tiny import CAPTION_PROMPT, CHECKPOINT
from mediamill.schemas.job import load_job
from tests.pipeline.coordinator.pool_stages import traces
from tests.pipeline.world import assert_each_once, read_output, write_manifest
from tests.soak.cluster import ROOT, LocalCluster, environment, folders

pytestmark = [pytest.mark.soak, pytest.mark.timeout(900)]
PATIENCE_S = 240.0


class Job:
    """A run with slow stages, in a process of its own."""

    def __init__(self, folder, variables, rows, slow, **resources):
        self.ids = [f"row-{number}" for number in range(rows)]
        table = [{"id": name, "uri": "file:///nowhere.jpg"} for name in self.ids]
        settings = {
            "job": "caption",
            "manifest": str(write_manifest(folder / "m.parquet", table)),
            "output": str(folder / "out"),
            "model": str(CHECKPOINT),
            "prompt": CAPTION_PROMPT,
            "rows_per_file": 64,
            "resources.batch_rows": 8,
            **{f"resources.{name}": value for name, value in resources.items()},
        }
        self.config = load_job(None, settings)
        self._errors = (folder / "stderr").open("w+")
        self.process = subprocess.Popen(
            [
                sys.executable,
                "-m",
                "tests.pipeline.coordinator.pool_stages",
                json.dumps(settings | {"slow": slow}),
            ],
            cwd=ROOT,
            env=variables,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            text=True,
        )

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.process.kill()
        self.process.communicate()
        self._errors.close()

    def hurry(self):
        (traces(self.config) / "hurry").touch()

    def bottleneck_before_hurry(self):
        began = (traces(self.config) / "hurry").stat().st_mtime
        return [line[2] for line in self.lines("progress") if line[0] < began][-1]

    def lines(self, name):
        path = traces(self.config) / name
        text = path.read_text() if path.exists() else ""
        return [json.loads(line) for line in text.splitlines() if line.endswith("]")]

    def actors(self, stage, since=0.0):
        """The number of actors of a stage that have worked on each node."""
        calls = {
            (call[2], call[3])
            for call in self.lines("calls")
            if call[1] == stage and call[0] > since
        }
        return Counter(node for node, _ in calls)

    def wait_for(self, condition, event):
        until = time.monotonic() + PATIENCE_S
        while not condition():
            assert self.process.poll() is None, self.stderr()
            assert time.monotonic() < until, f"{event} did not come: {self.lines('progress')[-3:]}"
            time.sleep(0.2)

    def stderr(self):
        self._errors.seek(0)
        return self._errors.read()[-4000:]

    def finish(self):
        output, _ = self.process.communicate(timeout=PATIENCE_S)
        assert self.process.returncode == 0, self.stderr()
        assert_each_once(read_output(self.config.output), self.ids)
        return json.loads(output.splitlines()[-1])


@pytest.fixture(scope="module")
def cluster():
    """A head with CPUs; nodes that join have a GPU."""
    with folders() as places:
        variables = environment(places, {})
        with LocalCluster(1, 3, places, variables, gpus=1) as found:
            yield found, variables | {"RAY_ADDRESS": found.address}


def test_a_job_waits_for_the_first_gpu_and_then_for_prepare_workers(cluster, tmp_path):
    """The prepare pool grows, since the engine starves, and the progress names the bottleneck."""
    nodes, variables = cluster
    slow = {"prepare": 0.5, "generate": 0.0}
    with Job(tmp_path, variables, 2000, slow, device="cuda", prepare_workers="1..3") as job:
        job.wait_for(lambda: job.lines("progress"), "progress that names what is missing")
        assert "no GPU" in job.lines("progress")[0][1]
        nodes.add_node()
        job.wait_for(lambda: job.actors("prepare").total() > 1, "more prepare workers")
        assert job.lines("progress")[-1][1] is None
        job.hurry()
        assert job.finish()["ok"] == 2000
        assert job.bottleneck_before_hurry() == "prepare"


def test_the_prepare_pool_stays_small_while_the_engine_is_the_bottleneck(cluster, tmp_path):
    _, variables = cluster
    slow = {"prepare": 0.0, "generate": 1.0}
    with Job(tmp_path, variables, 400, slow, prepare_workers="1..3") as job:
        assert job.finish() == {"rows": 400, "ok": 400, "binds": "generate"}
        assert job.actors("prepare").total() == 1


def test_a_run_takes_the_gpu_of_a_node_that_joins_and_survives_its_end(cluster, tmp_path):
    nodes, variables = cluster
    slow = {"prepare": 0.0, "generate": 4.0}
    with Job(tmp_path, variables, 1000, slow, prepare_workers=1) as job:
        job.wait_for(lambda: len(job.actors("generate")) == 1, "the first answers")
        nodes.add_node()
        job.wait_for(lambda: len(job.actors("generate")) == 2, "answers of the node that joined")
        assert set(job.actors("generate").values()) == {1}
        nodes.kill_node(2)  # and it is not replaced
        job.hurry()
        assert job.finish() == {"rows": 1000, "ok": 1000, "binds": "generate"}

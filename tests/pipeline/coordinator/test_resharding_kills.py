"""Each row comes out once although the manifest is in other files at each start, and runs and
compactions are killed with SIGKILL at random moments.
"""

import os
import random
import subprocess
import sys
import time
import zlib
from contextlib import ExitStack
from pathlib import Path

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

from mediamill.model.tiny import CAPTION_PROMPT
from mediamill.pipeline.ledger import ledger
from mediamill.pipeline.ledger.log import log_of
from mediamill.pipeline.ledger.publish import visible_files
from mediamill.pipeline.storage import storage
from tests import processes
from tests.media import jpeg
from tests.pipeline.manifest.resharded import Reshuffler
from tests.servers.s3 import faulty_s3
from tests.soak.cluster import LocalCluster, environment, folders

pytestmark = [pytest.mark.slow, pytest.mark.timeout(3000)]

ROOT = Path(__file__).parents[3]
ROUNDS = int(os.environ.get("ROUNDS", "8"))
SIMULATED = """
import sys
from mediamill.pipeline.run import run
from mediamill.schemas.job import load_job
from tests.soak.simulated import STAGES
summary = run(load_job(sys.argv[1], {}), address=sys.argv[2], stages=STAGES)
print(summary.rows, "rows")
"""


class Files:
    """A manifest's files, by name the ids of their rows; see `Reshuffler`."""

    id_type = pa.string()

    def __init__(self, url, uris, seed):
        self.place, self.uris, self.draw = storage.resolve(url), uris, random.Random(seed)
        self.files, self.stored = {}, {}

    @property
    def ids(self):
        return [value for ids in self.files.values() for value in ids]

    def store(self):
        for name in self.stored.keys() - self.files.keys():
            storage.remove(self.place / name)
        for name, ids in self.files.items():
            if self.stored.get(name) != ids:
                numbers = [zlib.crc32(value.encode()) for value in ids]
                table = pa.table(
                    {
                        "id": pa.array(ids, pa.string()),
                        "uri": pa.array([self.uris[n % len(self.uris)] for n in numbers]),
                        "kind": pa.array(["ab"[n % 2] for n in numbers], pa.string()),
                    }
                )
                sink = pa.BufferOutputStream()
                pq.write_table(table, sink, row_group_size=self.draw.randrange(1, 20))
                storage.put(self.place / name, sink.getvalue().to_pybytes())
        self.stored = {name: list(ids) for name, ids in self.files.items()}


class Job:
    """A command whose processes are killed. output: its folder or bucket."""

    def __init__(self, command, output, variables, draw):
        self.command, self.output = command, storage.resolve(output)
        self.variables, self.draw = variables, draw
        self.kills = {}

    def records(self):
        """The number of the log's last record."""
        names = [name for name in storage.list_files(log_of(self.output)) if name[0] != "."]
        return max((int(name[:12]) for name in names), default=0)

    def start(self, command):
        return subprocess.Popen(
            command,
            cwd=ROOT,
            env=self.variables,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def kill(self, kind, command, most_records):
        """Kills the command after some new records of the log, or soon after its start."""
        process, before = self.start(command), self.records()
        early = self.draw.random() < 0.2
        wanted = 0 if early else self.draw.randrange(1, most_records)
        pause = self.draw.uniform(0, 15 if early else 0.5)
        end = time.monotonic() + 300
        while process.poll() is None and self.records() < before + wanted:
            assert time.monotonic() < end, f"no further record: {process.stdout.read()}"
            time.sleep(0.02)
        time.sleep(pause)
        done = process.poll()
        family = [process.pid, *processes.descendants(process.pid)]
        processes.end_at_once(family)
        said = process.communicate()[0]
        assert done in (None, 0), said
        name = f"{kind} {'ended' if done == 0 else 'killed'}"
        self.kills[name] = self.kills.get(name, 0) + 1
        print(f"{time.strftime('%X')} {name} at record {self.records()}", flush=True)

    def finish(self):
        """Runs the command to its end; returns what it said."""
        process = self.start(self.command)
        said = process.communicate(timeout=600)[0]
        assert process.returncode == 0, said
        return said

    def visible(self):
        ids = []
        for name in visible_files(self.output):
            with self.output.fs.open((self.output / name).path, "rb") as file:
                ids += pq.read_table(file, columns=["id"])["id"].to_pylist()
        return sorted(ids)


@pytest.mark.parametrize("kind", ["simulated", "real"])
@pytest.mark.parametrize("where", ["disk", "s3"])
def test_reshardings_and_kills(tmp_path, monkeypatch, kind, where):
    seed = int(os.environ.get("SEED", "1"))
    draw = random.Random(seed)
    with ExitStack() as stack:
        places = stack.enter_context(folders())
        base, server = str(tmp_path), {}
        if where == "s3":
            server = stack.enter_context(faulty_s3(rate=0)).environment
            for name, value in server.items():
                monkeypatch.setenv(name, value)
            fsspec.filesystem("s3", skip_instance_cache=True).mkdir("kills")
            base = "s3://kills"
        variables = environment(places, server)
        for number in range(4):
            storage.put(storage.resolve(f"{base}/{number}.jpg"), jpeg(56, 84, seed=number))
        files = Files(f"{base}/m", [f"{base}/{number}.jpg" for number in range(4)], seed)
        output = f"{base}/out"
        settings = {"partition_by": ["kind"], "rows_per_file": 5, "resources": {"batch_rows": 4}}
        settings |= {"manifest": f"{base}/m", "output": output, "prompt": CAPTION_PROMPT}
        settings |= {"job": "caption", "model": "built-in", "generation": {"max_new_tokens": 6}}
        (tmp_path / "job.yaml").write_text(yaml.safe_dump(settings))
        cluster = stack.enter_context(LocalCluster(1, 4, places, variables))
        program = ["-m", "mediamill", "run", str(tmp_path / "job.yaml"), "--address"]
        if kind == "simulated":
            program = ["-c", SIMULATED, str(tmp_path / "job.yaml")]
        job = Job([sys.executable, *program, cluster.address], output, variables, draw)
        _reshard_and_kill(files, job, draw, seed)
        print(where, kind, job.kills)


def _reshard_and_kill(files, job, draw, seed):
    compact = [sys.executable, "-m", "mediamill", "compact", job.output.url]
    shuffler = Reshuffler(files, seed)
    for _ in range(4):
        files.files[shuffler.new_name()] = shuffler.new_ids(15)
    files.store()
    seen = set()
    for _ in range(ROUNDS):
        job.kill("run", job.command, 8)
        if job.records() > 1 and draw.random() < 0.5:
            job.kill("compact", compact, 3)
        visible = job.visible()
        assert len(visible) == len(set(visible)), "ids are there twice"
        assert seen <= set(visible), "ids have vanished"
        assert set(visible) <= set(files.ids)
        seen = set(visible)
        files.files[shuffler.new_name()] = shuffler.new_ids(6)
        shuffler.change()
    job.finish()
    assert job.visible() == sorted(files.ids)
    assert ledger.load(job.output).counts.rows == len(files.ids)
    shuffler.compact()
    files.store()
    before = job.records()
    job.finish()
    recorded = job.records()
    assert recorded > before, "the second start joins again"
    job.finish()
    assert job.records() == recorded
    assert job.visible() == sorted(files.ids)

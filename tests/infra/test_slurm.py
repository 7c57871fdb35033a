"""The batch script in a real Slurm: requeued in mid-run it goes on, told to drain it drains."""

import json
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import yaml

from mediamill.model.tiny import CAPTION_PROMPT, CHECKPOINT
from tests.infra import slurm
from tests.pipeline.world import (
    assert_each_once,
    draw_media,
    picture_rows,
    read_output,
    write_manifest,
)

INFRA = Path(__file__).parents[2] / "infra"
SCRIPT = INFRA / "slurm" / "mediamill.sbatch"
LACKS = slurm.missing()
ROWS = 400
WAIT_S = 400

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(900),
    pytest.mark.skipif(bool(LACKS), reason=f"no Slurm here: found no {', '.join(LACKS)}"),
]


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[slurm.Slurm]:
    """Two nodes of this machine, with this environment's programs on PATH."""
    with slurm.Slurm(tmp_path_factory.mktemp("slurm"), nodes=2, cpus=2, memory_mib=6000) as found:
        programs = Path(sys.executable).parent
        found.environment["PATH"] = f"{programs}:{found.environment['PATH']}"
        for name in ("RAY_ADDRESS", "RAY_AUTH_TOKEN", "RAY_AUTH_MODE"):
            found.environment.pop(name, None)
        yield found


class Trial:
    """A manifest, a job file and what a batch job makes of them."""

    def __init__(self, cluster: slurm.Slurm, folder: Path, rows: int) -> None:
        self.cluster, self.folder = cluster, folder
        media = draw_media(folder / "media")
        self.rows = picture_rows(media, rows)
        write_manifest(folder / "manifest" / "part-0.parquet", self.rows)
        self.output = folder / "captions"
        job = {
            "job": "caption",
            "manifest": str(folder / "manifest"),
            "output": str(self.output),
            "model": str(CHECKPOINT),
            "prompt": CAPTION_PROMPT,
            "rows_per_file": 16,
            "generation": {"max_new_tokens": 24},
            "resources": {"batch_rows": 8, "prepare_workers": 1, "replicas": 1, "grace_s": 20.0},
        }
        (folder / "job.yaml").write_text(yaml.safe_dump(job))

    def submit(self, *options: str) -> str:
        size = ("--cpus-per-task=2", "--mem=5500M", "--gpus-per-node=0")
        said = self.cluster.run(
            "sbatch", "--parsable", *size, *options, str(SCRIPT), "job.yaml", cwd=self.folder
        )
        return said.strip()

    def log(self, job: str) -> str:
        path = self.folder / f"mediamill-{job}.log"
        return path.read_text() if path.exists() else ""

    def done(self, job: str) -> int:
        """Rows that the last line of progress tells of, in this start of the job."""
        lines = self.log(job).rpartition(" Ray at ")[2].splitlines()
        events = [json.loads(line) for line in lines if line.startswith('{"event": "progress"')]
        return max((event["rows_done"] for event in events), default=0)

    def wait(self, job: str, is_so: Callable[[], bool], what: str) -> None:
        deadline = time.monotonic() + WAIT_S
        while not is_so():
            assert time.monotonic() < deadline, f"waited for {what}:\n{self.log(job)[-4000:]}"
            time.sleep(0.3)

    def state(self, job: str) -> str:
        return self.cluster.shows(job)["JobState"]

    def wait_for_restart(self, job: str) -> None:
        """Slurm holds a requeued job back for two minutes, until its first start is forgotten."""
        self.wait(job, lambda: self.state(job) == "PENDING", "the job to be pending")
        self.cluster.run("scontrol", "update", f"JobId={job}", "StartTime=now+15")

    def wait_for_end(self, job: str) -> None:
        ended = {"COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL"}
        self.wait(job, lambda: self.state(job) in ended, "the end")

    def check(self) -> None:
        found = read_output(self.output)
        assert_each_once(found, [row["id"] for row in self.rows])
        assert {row["status"] for row in found} == {"ok"}


def leftovers(job: str) -> list[str]:
    """Command lines of Ray's processes of a job that are still alive."""
    listed = subprocess.run(
        ["ps", "-eo", "args"], capture_output=True, text=True, check=True
    ).stdout.splitlines()
    return [line for line in listed if f"/tmp/ray-{job}-" in line]


def test_a_requeued_run_goes_on(cluster: slurm.Slurm, tmp_path: Path) -> None:
    trial = Trial(cluster, tmp_path, ROWS)
    job = trial.submit("--nodes=1")
    trial.wait(job, lambda: trial.done(job) > 0, "the first rows")
    cluster.run("scontrol", "requeue", job)
    trial.wait_for_restart(job)
    trial.wait_for_end(job)
    shown = cluster.shows(job)
    assert (shown["JobState"], shown["ExitCode"], shown["Restarts"]) == ("COMPLETED", "0:0", "1")
    trial.check()
    assert not leftovers(job)
    assert not list(Path("/tmp").glob(f"ray-{job}-*"))


def test_a_run_on_two_nodes_drains_when_its_time_is_up(
    cluster: slurm.Slurm, tmp_path: Path
) -> None:
    """The signal that Slurm sends before the end of the time goes to the script alone."""
    trial = Trial(cluster, tmp_path, ROWS)
    job = trial.submit("--nodes=2", "--mem=4000M")
    trial.wait(job, lambda: trial.done(job) > 0, "the first rows")
    cluster.run("scancel", "--batch", "--signal=TERM", job)
    trial.wait(job, lambda: "mediamill ended with exit code 143" in trial.log(job), "the drain")
    assert '{"event": "stopping"' in trial.log(job)
    assert 0 < len(read_output(trial.output)) < ROWS
    trial.wait_for_restart(job)
    trial.wait_for_end(job)
    shown = cluster.shows(job)
    assert (shown["JobState"], shown["ExitCode"], shown["Restarts"]) == ("COMPLETED", "0:0", "1")
    trial.check()
    assert not leftovers(job)
    assert not list(Path("/tmp").glob(f"ray-{job}-*"))


def test_nightly_jobs_wait_for_one_another(cluster: slurm.Slurm, tmp_path: Path) -> None:
    """The line of the scrontab, run twice in a row, gives two runs one after the other."""
    trial = Trial(cluster, tmp_path, 24)
    shutil.copytree(INFRA / "slurm", tmp_path / "infra" / "slurm")
    [line] = [
        line for line in (INFRA / "slurm" / "scrontab").read_text().splitlines()
        if line[:1].isdigit()
    ]  # fmt: skip
    command = line.split(maxsplit=5)[5]
    environment = {**cluster.environment, "MEDIAMILL_HOME": str(tmp_path)}
    script = tmp_path / "infra" / "slurm" / "mediamill.sbatch"
    text = script.read_text()
    for name, value in (("nodes", "1"), ("cpus-per-task", "2"), ("mem", "5500M")):
        text = re.sub(rf"(?m)^(#SBATCH --{name}=).*$", rf"\g<1>{value}", text)
    script.write_text(re.sub(r"(?m)^#SBATCH --gpus-per-node=.*\n", "", text))
    for _ in range(2):
        subprocess.run(["sh", "-c", command], env=environment, check=True, timeout=60)
    jobs = re.findall(r"Submitted batch job (\d+)", (tmp_path / "nightly.log").read_text())
    assert len(jobs) == 2
    assert cluster.shows(jobs[1])["JobState"] == "PENDING"
    for job in jobs:
        trial.wait_for_end(job)
        assert cluster.shows(job)["ExitCode"] == "0:0", trial.log(job)
    trial.check()
    first, second = (cluster.shows(job) for job in jobs)
    assert first["EndTime"] <= second["StartTime"]

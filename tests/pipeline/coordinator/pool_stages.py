"""Slow stages that record the node on which they run; as a program, a job with them.

`python -m tests.pipeline.coordinator.pool_stages SETTINGS`: a JSON object of the job's keys by
dotted name, and `slow`: seconds that each stage takes for a call, until a file `hurry` lies beside
the traces. Prints its summary as one line of JSON.
"""

import json
import sys
import time
from pathlib import Path
from typing import Any

import pyarrow as pa

from mediamill.pipeline.run import Stages, run
from mediamill.schemas.job import JobConfig, load_job
from mediamill.schemas.progress import Progress
from tests.soak.simulated import Answered, Prepared


def traces(job: JobConfig) -> Path:
    return Path(f"{job.output}-traces")


class _Recorder:
    """Writes a line for each call: its end, the stage, the node, the actor and the rows."""

    def __init__(self, job: JobConfig, stage: str) -> None:
        import ray

        context = ray.get_runtime_context()
        self._stage, self._folder = stage, traces(job)
        self._where = [context.get_node_id(), context.get_actor_id()]
        self._seconds = json.loads((self._folder / "slow").read_text())[stage]

    def work(self, rows: int) -> None:
        until = time.monotonic() + self._seconds
        while rows and time.monotonic() < until and not (self._folder / "hurry").exists():
            time.sleep(0.05)
        with (self._folder / "calls").open("a") as file:
            file.write(json.dumps([time.time(), self._stage, *self._where, rows]) + "\n")


class SlowPrepared(Prepared):
    def __init__(self, job: JobConfig, **options: Any) -> None:
        super().__init__(**options)
        self._recorder = _Recorder(job, "prepare")

    def __call__(self, table: pa.Table) -> pa.Table:
        self._recorder.work(table.num_rows)
        return super().__call__(table)


class SlowAnswered(Answered):
    def __init__(self, job: JobConfig, **options: Any) -> None:
        super().__init__(**options)
        self._recorder = _Recorder(job, "generate")

    def __call__(self, table: pa.Table) -> pa.Table:
        self._recorder.work(table.num_rows)
        return super().__call__(table)


def main(settings: dict[str, Any]) -> None:
    slow = settings.pop("slow")
    job = load_job(None, settings)
    traces(job).mkdir(parents=True, exist_ok=True)
    (traces(job) / "slow").write_text(json.dumps(slow))

    def record(progress: Progress) -> None:
        with (traces(job) / "progress").open("a") as file:
            entry = [time.time(), progress.waits_for, progress.binds, progress.generated]
            file.write(json.dumps(entry) + "\n")

    summary = run(job, on_progress=record, stages=Stages(SlowPrepared, SlowAnswered))
    print(json.dumps({"rows": summary.rows, "ok": summary.ok, "binds": summary.binds}))


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))

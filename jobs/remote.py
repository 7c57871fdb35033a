"""Turns a job into one of a Ray cluster somewhere else, through Ray's Jobs API, and follows it.

The driver runs on the cluster, so that the machine that has submitted it may go away. The driver's
exit code is this command's. How a job runs is not known here.
"""

import asyncio
import json
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

from schemas.errors import JobError
from schemas.job import JobConfig, render_job

_FILE = "job.yaml"
_CODE = ("schemas", "model", "pipeline", "jobs")
_POLL_S = 1.0
_LEFT_OUT = ["**/__pycache__/", "*.pyc"]


@dataclass(frozen=True)
class Submission:
    """What goes to the cluster. code: whether this program goes too, or the cluster has it."""

    job: JobConfig
    name: str | None = None
    code: bool = False


class Cluster:
    """The Jobs API of the Ray cluster whose dashboard is at `address`, such as http://head:8265."""

    def __init__(self, address: str) -> None:
        """Raises JobError when nothing answers there, or Ray's own part for it is not installed."""
        self.address = address
        try:
            from ray.job_submission import JobSubmissionClient

            self._client: Any = JobSubmissionClient(address)
        except ModuleNotFoundError as error:
            raise JobError(
                f"submitting needs the package {error.name}: install mediamill[cluster]"
            ) from error
        except (ConnectionError, RuntimeError, ValueError) as error:
            raise JobError(f"--address {address}: {_first_line(error)}") from error

    def submit(self, submission: Submission) -> str:
        """Starts the job and returns its name on the cluster. Raises JobError."""
        with tempfile.TemporaryDirectory(prefix="mediamill-submit-") as folder:
            (Path(folder) / _FILE).write_text(render_job(submission.job), encoding="utf-8")
            environment: dict[str, Any] = {"working_dir": folder}
            if submission.code:
                root = Path(__file__).parents[1]
                environment["py_modules"] = [str(root / name) for name in _CODE]
                environment["excludes"] = _LEFT_OUT
            try:
                name: str = self._client.submit_job(
                    entrypoint=f"python -m jobs.cli run {_FILE} --address auto",
                    submission_id=submission.name,
                    runtime_env=environment,
                    metadata={"job": submission.job.job, "output": submission.job.output},
                )
            except (RuntimeError, ValueError, ConnectionError) as error:
                raise JobError(
                    f"the cluster does not take the job: {_first_line(error)}"
                ) from error
        return name

    def status(self, name: str) -> dict[str, Any]:
        """What the cluster knows of a job. Raises JobError when it knows none of that name."""
        try:
            info = self._client.get_job_info(name)
        except (RuntimeError, ConnectionError) as error:
            raise JobError(f"{name}: {_first_line(error)}") from error
        known = {
            "name": name,
            "status": str(getattr(info.status, "value", info.status)),
            "exit_code": info.driver_exit_code,
            "message": info.message,
            "started": _seconds(info.start_time),
            "ended": _seconds(info.end_time),
            **{
                key: value
                for key, value in (info.metadata or {}).items()
                if key in ("job", "output")
            },
        }
        return {key: value for key, value in known.items() if value not in (None, "")}

    def stop(self, name: str) -> bool:
        """Tells a job to stop; whether it was still running. Raises JobError."""
        self.status(name)
        try:
            return bool(self._client.stop_job(name))
        except (RuntimeError, ConnectionError) as error:
            raise JobError(f"{name}: {_first_line(error)}") from error

    def follow(self, name: str, out: TextIO) -> int:
        """Writes what the job prints until it ends; its exit code. Raises JobError."""
        self.status(name)

        async def copy() -> None:
            async for text in self._client.tail_job_logs(name):
                out.write(text)
                out.flush()

        try:
            asyncio.run(copy())
        except (RuntimeError, ConnectionError) as error:
            raise JobError(f"{name}: {_first_line(error)}") from error
        return self.wait(name)

    def wait(self, name: str, sleep: Callable[[float], None] = time.sleep) -> int:
        """Waits until the job has ended; its exit code, 143 when it was stopped."""
        while True:
            found = self.status(name)
            status = found["status"]
            if status in ("SUCCEEDED", "FAILED", "STOPPED"):
                break
            sleep(_POLL_S)
        code = found.get("exit_code")
        if status == "STOPPED":
            return 143
        if code is None:
            return 0 if status == "SUCCEEDED" else 1
        return int(code) if code >= 0 else 128 - int(code)  # a negative one is a signal's


def print_status(found: dict[str, Any], as_json: bool, out: TextIO | None = None) -> None:
    """One line for each fact, or one JSON object."""
    if as_json:
        text = json.dumps(found)
    else:
        text = "\n".join(f"{key:<10} {value}" for key, value in found.items())
    print(text, file=out or sys.stdout, flush=True)


def _seconds(milliseconds: int | None) -> str | None:
    if not milliseconds:
        return None
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(milliseconds / 1000))


def _first_line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0] if lines else type(error).__name__

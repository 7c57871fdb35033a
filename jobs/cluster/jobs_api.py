"""Turns a job into one of a Ray cluster somewhere else, through Ray's Jobs API, and follows it.

The driver runs on the cluster, so that the machine that has submitted it may go away. The driver's
exit code is this command's. How a job runs is not known here.
"""

import asyncio
import json
import logging
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TextIO

import mediamill
from mediamill.jobs.cluster.cluster_commands import ClusterGoneError
from mediamill.jobs.cluster.submission import Submission
from mediamill.pipeline.storage import storage
from mediamill.schemas.errors import JobError
from mediamill.schemas.job import render_job

_FILE = "job.yaml"
_POLL_S = 1.0
_PATIENCE_S = 60.0  # with a dashboard that does not answer: it may be starting again
_STOP_WAIT = "RAY_JOB_STOP_WAIT_TIME_S"  # from SIGTERM to SIGKILL; 3 s if nobody says more
_STOP_MARGIN_S = 15  # beyond resources.grace_s
_LEFT_OUT = ["**/__pycache__/", "*.pyc"]
_STARTING = ("Cannot connect to host", "No available agent", "head node agent")
_ENDS = ("SUCCEEDED", "FAILED", "STOPPED")


class Cluster:
    """The Jobs API of the Ray cluster whose dashboard is at `address`, such as http://head:8265."""

    def __init__(self, address: str) -> None:
        """Raises JobError when nothing answers there, or Ray's own part for it is not installed."""
        self._shown = storage.redact(address)
        try:
            from ray.job_submission import JobSubmissionClient
        except ModuleNotFoundError as error:
            raise JobError(
                f"submitting needs the package {error.name}: install mediamill[cluster]"
            ) from error
        logging.getLogger("ray.dashboard.modules").setLevel(logging.WARNING)  # tells of uploads
        with self._refused(f"--address {self._shown}"):
            self._client: Any = JobSubmissionClient(address)

    def submit(self, submission: Submission) -> str:
        """Starts the job and returns its name on the cluster. Raises JobError."""
        job = submission.job
        with tempfile.TemporaryDirectory(prefix="mediamill-submit-") as folder:
            (Path(folder) / _FILE).write_text(render_job(job), encoding="utf-8")
            # The process that will stop the driver has this environment, whatever its node has.
            wait_s = int(job.resources.grace_s) + _STOP_MARGIN_S
            environment: dict[str, Any] = {
                "working_dir": folder,
                "env_vars": {_STOP_WAIT: str(wait_s)},
            }
            if submission.code:
                environment["py_modules"] = [str(Path(mediamill.__file__).parent)]
                environment["excludes"] = _LEFT_OUT
            with self._refused(f"{self._shown}: the cluster does not take the job"):
                return self._once_ready(
                    lambda: self._client.submit_job(
                        entrypoint=f"python -m mediamill run {_FILE}",  # RAY_ADDRESS says where
                        submission_id=submission.name,
                        runtime_env=environment,
                        metadata={"job": job.job, "output": storage.redact(job.output)},
                    )
                )

    def _once_ready(self, action: Callable[[], str]) -> str:
        """A head that has just started answers before the process does that takes jobs."""
        until = time.monotonic() + _PATIENCE_S
        while True:
            try:
                return action()
            except RuntimeError as error:
                starting = any(word in str(error) for word in _STARTING)
                if not starting or time.monotonic() > until:
                    raise
            time.sleep(_POLL_S)

    def status(self, name: str) -> dict[str, Any]:
        """What the cluster knows of a job. Raises JobError when it knows none of that name."""
        info = self._info(name)
        known = {
            "name": name,
            "status": _status(info),
            "exit_code": info.driver_exit_code,
            "message": _said(info.message or ""),
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
        if _status(self._info(name)) in _ENDS:
            return False
        with self._refused(name):
            return bool(self._client.stop_job(name))

    def has_time_to_stop(self, name: str) -> bool:
        """Whether the cluster was told, when the job was submitted, how long it may take to end.

        Else the head's RAY_JOB_STOP_WAIT_TIME_S counts, which nobody here can see.
        """
        return _STOP_WAIT in ((self._info(name).runtime_env or {}).get("env_vars") or {})

    def follow(self, name: str, out: TextIO) -> int:
        """Writes what the job prints until it ends; its exit code.

        Raises JobError when there is no such job, and ClusterGoneError when the cluster no longer
        answers.
        """
        self._info(name)
        written = 0

        async def copy() -> None:
            nonlocal written
            seen = 0
            async for text in self._client.tail_job_logs(name):
                seen += len(text)
                if seen > written:  # after a break it begins at the beginning
                    out.write(text[max(0, len(text) - (seen - written)) :])
                    out.flush()
                    written = seen

        while True:
            try:
                asyncio.run(copy())
            except Exception as error:
                if not _is_connection(error):
                    raise
            if self._awaited(name, lambda info: True) in _ENDS:
                return self.wait(name)
            time.sleep(_POLL_S)

    def wait(self, name: str) -> int:
        """Waits until the job has ended; its exit code, 143 when it was stopped.

        Raises ClusterGoneError when the cluster no longer answers.
        """
        status = self._awaited(name, lambda info: _status(info) in _ENDS)
        code = self._info(name).driver_exit_code
        if status == "STOPPED":
            return 143
        if code is None:
            return 0 if status == "SUCCEEDED" else 1
        return int(code) if code >= 0 else 128 - int(code)  # a negative one is a signal's

    def _awaited(self, name: str, enough: Callable[[Any], bool]) -> str:
        """The status of a job that was there, once it is enough."""
        silent_since: float | None = None
        while True:
            try:
                info = self._client.get_job_info(name)
            except Exception as error:
                if not _is_connection(error):
                    raise
                silent_since = silent_since or time.monotonic()
                if time.monotonic() - silent_since > _PATIENCE_S:
                    raise ClusterGoneError(
                        f"{self._shown}: the cluster no longer answers, and whether {name} goes on "
                        f"is not known: ask `mediamill status {name}` later, or submit the job "
                        "again where the cluster is gone: rows that are finished are kept"
                    ) from error
            else:
                silent_since = None
                if enough(info):
                    return _status(info)
            time.sleep(_POLL_S)

    def _info(self, name: str) -> Any:
        with self._refused(name):
            return self._client.get_job_info(name)

    @contextmanager
    def _refused(self, what: str) -> Iterator[None]:
        """Raises JobError for what Ray and its HTTP libraries raise in here."""
        try:
            yield
        except Exception as error:
            if not _is_connection(error):
                raise
            raise JobError(f"{what}: {self._sentence(error)}") from error

    def _sentence(self, error: Exception) -> str:
        if type(error).__name__ == "AuthenticationError":
            return (
                "the cluster wants another token, expected its own in RAY_AUTH_TOKEN or "
                "~/.ray/auth_token, with RAY_AUTH_MODE=token"
            )
        if type(error).__name__ in ("ConnectionError", "ConnectTimeout", "InvalidURL"):
            return f"nothing answers at {self._shown}, expected the URL of a Ray dashboard"
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        if not lines:
            return type(error).__name__
        if "Traceback" in lines[0]:  # on the cluster; its last line is the error
            lines = [line for line in lines if line.strip(".")][-1:]
        return storage.redact_text(lines[0])


def print_status(found: dict[str, Any], as_json: bool, out: TextIO | None = None) -> None:
    """One line for each fact, or one JSON object."""
    if as_json:
        text = json.dumps(found)
    else:
        text = "\n".join(f"{key:<10} {value}" for key, value in found.items())
    print(text, file=out or sys.stdout, flush=True)


def _is_connection(error: Exception) -> bool:
    """Whether it is Ray's or an HTTP library's way to say that a request came to nothing."""
    library = type(error).__module__.partition(".")[0] in ("aiohttp", "ray", "requests")
    return library or isinstance(error, RuntimeError | OSError | ValueError | KeyError)


def _status(info: Any) -> str:
    return str(getattr(info.status, "value", info.status))


def _said(message: str) -> str:
    """One line of what Ray says of a job. Of one that failed that is the end of its log, where
    the driver's own sentence is the last.
    """
    lines = [line.strip() for line in message.splitlines() if line.strip()]
    if not lines:
        return ""
    return storage.redact_text(lines[-1] if "exit code" in lines[0] else lines[0])


def _seconds(milliseconds: int | None) -> str | None:
    if not milliseconds:
        return None
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(milliseconds / 1000))

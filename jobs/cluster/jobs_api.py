"""A client of Ray's Jobs API: submits a job to a remote cluster, follows and stops it.

The driver runs on the cluster, so the submitting machine may go away.
"""

import asyncio
import json
import logging
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
_UNAVAILABLE_S = 60.0  # how long a dashboard may not answer: it may be restarting
_STOP_WAIT = "RAY_JOB_STOP_WAIT_TIME_S"  # seconds from SIGTERM to SIGKILL; Ray's default is 3
_STOP_MARGIN_S = 15  # beyond resources.grace_s
_EXCLUDES = ["**/__pycache__/", "*.pyc"]
# In the messages of a head that cannot take jobs yet.
_STARTING = ("Cannot connect to host", "No available agent", "head node agent")
_ENDS = ("SUCCEEDED", "FAILED", "STOPPED")


class Cluster:
    """A Ray cluster. address: of its dashboard, such as http://head:8265."""

    def __init__(self, address: str) -> None:
        """Raises JobError when nothing answers at the address, or Ray's client is not installed."""
        self._address = storage.redact(address)
        try:
            from ray.job_submission import JobSubmissionClient
        except ModuleNotFoundError as error:
            raise JobError(
                f"submitting needs the package {error.name}: install mediamill[cluster]"
            ) from error
        logging.getLogger("ray.dashboard.modules").setLevel(logging.WARNING)  # logs each upload
        with self._errors_as_sentences(f"--address {self._address}"):
            self._client: Any = JobSubmissionClient(address)

    def submit(self, submission: Submission) -> str:
        """Starts the job and returns its name on the cluster. Raises JobError."""
        job = submission.job
        with tempfile.TemporaryDirectory(prefix="mediamill-submit-") as folder:
            (Path(folder) / _FILE).write_text(render_job(job), encoding="utf-8")
            # Ray reads this variable in the process that stops the driver.
            wait_s = int(job.resources.grace_s) + _STOP_MARGIN_S
            environment: dict[str, Any] = {
                "working_dir": folder,
                "env_vars": {_STOP_WAIT: str(wait_s)},
            }
            if submission.code:
                environment["py_modules"] = [str(Path(mediamill.__file__).parent)]
                environment["excludes"] = _EXCLUDES
            with self._errors_as_sentences(f"{self._address}: the cluster does not take the job"):
                return self._once_ready(
                    lambda: self._client.submit_job(
                        entrypoint=f"python -m mediamill run {_FILE}",  # RAY_ADDRESS says where
                        submission_id=submission.name,
                        runtime_env=environment,
                        metadata={"job": job.job, "output": storage.redact(job.output)},
                    )
                )

    def _once_ready(self, action: Callable[[], str]) -> str:
        """Retries `action` while a head that has just started cannot take jobs yet."""
        until = time.monotonic() + _UNAVAILABLE_S
        while True:
            try:
                return action()
            except RuntimeError as error:
                starting = any(word in str(error) for word in _STARTING)
                if not starting or time.monotonic() > until:
                    raise
            time.sleep(_POLL_S)

    def status(self, name: str) -> dict[str, Any]:
        """Returns the status of a job as a dict. Raises JobError when there is no such job."""
        info = self._info(name)
        metadata = info.metadata or {}
        facts = {
            "name": name,
            "status": _status(info),
            "exit_code": info.driver_exit_code,
            "message": _last_sentence(info.message or ""),
            "started": _time(info.start_time),
            "ended": _time(info.end_time),
            **{key: metadata[key] for key in ("job", "output") if key in metadata},
        }
        return {key: value for key, value in facts.items() if value not in (None, "")}

    def stop(self, name: str) -> bool:
        """Asks a job to stop. Returns whether it was still running. Raises JobError."""
        if _status(self._info(name)) in _ENDS:
            return False
        with self._errors_as_sentences(name):
            return bool(self._client.stop_job(name))

    def has_stop_time(self, name: str) -> bool:
        """Whether the job sets RAY_JOB_STOP_WAIT_TIME_S; else the head's setting applies."""
        return _STOP_WAIT in ((self._info(name).runtime_env or {}).get("env_vars") or {})

    def follow(self, name: str, out: TextIO) -> int:
        """Writes the job's output to `out` until it ends, and returns its exit code.

        Raises JobError when there is no such job, and ClusterGoneError when the cluster stops
        answering.
        """
        self._info(name)
        written = 0

        async def copy() -> None:
            nonlocal written
            seen = 0
            async for text in self._client.tail_job_logs(name):
                seen += len(text)
                if seen > written:  # after a reconnect, the log starts again
                    out.write(text[max(0, len(text) - (seen - written)) :])
                    out.flush()
                    written = seen

        while True:
            try:
                asyncio.run(copy())
            except Exception as error:
                if not _is_connection(error):
                    raise
            if self._wait_until(name, lambda info: True) in _ENDS:
                return self.wait(name)
            time.sleep(_POLL_S)

    def wait(self, name: str) -> int:
        """Waits until the job has ended, and returns its exit code: 143 when it was stopped.

        Raises ClusterGoneError when the cluster stops answering.
        """
        status = self._wait_until(name, lambda info: _status(info) in _ENDS)
        code = self._info(name).driver_exit_code
        if status == "STOPPED":
            return 143
        if code is None:
            return 0 if status == "SUCCEEDED" else 1
        return int(code) if code >= 0 else 128 - int(code)  # a negative one is a signal's

    def _wait_until(self, name: str, condition: Callable[[Any], bool]) -> str:
        """Returns the status of an existing job as soon as `condition` holds for its info."""
        silent_since: float | None = None
        while True:
            try:
                info = self._client.get_job_info(name)
            except Exception as error:
                if not _is_connection(error):
                    raise
                silent_since = silent_since or time.monotonic()
                if time.monotonic() - silent_since > _UNAVAILABLE_S:
                    raise ClusterGoneError(
                        f"{self._address}: the cluster stopped answering; {name} may still run: "
                        f"try `mediamill status {name}` later, or, if the cluster is gone, submit "
                        "the job again: finished rows are kept"
                    ) from error
            else:
                silent_since = None
                if condition(info):
                    return _status(info)
            time.sleep(_POLL_S)

    def _info(self, name: str) -> Any:
        with self._errors_as_sentences(name):
            return self._client.get_job_info(name)

    @contextmanager
    def _errors_as_sentences(self, subject: str) -> Iterator[None]:
        """Turns errors of Ray's client and its HTTP libraries into JobError."""
        try:
            yield
        except Exception as error:
            if not _is_connection(error):
                raise
            raise JobError(f"{subject}: {self._sentence(error)}") from error

    def _sentence(self, error: Exception) -> str:
        if type(error).__name__ == "AuthenticationError":
            return (
                "the cluster refused the token: expected the cluster's own in RAY_AUTH_TOKEN or "
                "~/.ray/auth_token, with RAY_AUTH_MODE=token"
            )
        if type(error).__name__ in ("ConnectionError", "ConnectTimeout", "InvalidURL"):
            return f"nothing answers at {self._address}, expected the URL of a Ray dashboard"
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        if not lines:
            return type(error).__name__
        if "Traceback" in lines[0]:  # on the cluster; its last line is the error
            lines = [line for line in lines if line.strip(".")][-1:]
        return storage.redact_text(lines[0])


def print_status(facts: dict[str, Any], as_json: bool) -> None:
    """Prints a job's status: one line for each fact, or one JSON object."""
    lines = "\n".join(f"{key:<10} {value}" for key, value in facts.items())
    print(json.dumps(facts) if as_json else lines, flush=True)


def _is_connection(error: Exception) -> bool:
    """Whether a request of Ray's client failed; other errors are faults of this program."""
    library = type(error).__module__.partition(".")[0] in ("aiohttp", "ray", "requests")
    return library or isinstance(error, RuntimeError | OSError | ValueError | KeyError)


def _status(info: Any) -> str:
    return str(getattr(info.status, "value", info.status))


def _last_sentence(message: str) -> str:
    """Reduces Ray's message about a job to one line."""
    lines = [line.strip() for line in message.splitlines() if line.strip()]
    if not lines:
        return ""
    # The message about a failed job is the end of its log: the last line is the driver's error.
    return storage.redact_text(lines[-1] if "exit code" in lines[0] else lines[0])


def _time(milliseconds: int | None) -> str | None:
    if not milliseconds:
        return None
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(milliseconds / 1000))

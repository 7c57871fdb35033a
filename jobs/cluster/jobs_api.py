"""A client of Ray's Jobs API: submits a job to a remote cluster, watches and stops it.

The driver runs on the cluster, so the submitting machine may go away.
"""

import asyncio
import logging
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any
from urllib.parse import quote

import mediamill
from mediamill.jobs.cluster.cluster_commands import ClusterGoneError
from mediamill.jobs.cluster.dashboard_url import why_silent
from mediamill.jobs.cluster.job_log import JobLog, read_log
from mediamill.jobs.cluster.remote_job import ENDS, RemoteJob, is_ours, remote_job, state_of
from mediamill.jobs.cluster.submission import Submission
from mediamill.pipeline.ray_cluster.cluster_address import token_sentence
from mediamill.pipeline.storage import storage
from mediamill.schemas.errors import JobError
from mediamill.schemas.job import render_job
from mediamill.schemas.nearest import nearest

_FILE = "job.yaml"
_ON_CLUSTER = Path(__file__).parent / "on_cluster"
_START, _RUN = "run_job.sh", "run_job.py"
_POLL_S = 1.0
_SILENT_S = 5.0  # before the user is told that the dashboard does not answer
_UNAVAILABLE_S = 60.0  # how long a dashboard may not answer: it may be restarting
_STOP_WAIT = "RAY_JOB_STOP_WAIT_TIME_S"  # seconds from SIGTERM to SIGKILL; Ray's default is 3
_STOP_MARGIN_S = 15  # beyond resources.grace_s
_EXCLUDES = ["**/__pycache__/", "*.pyc"]
_LOG_LINES = 60
# In the messages of a head that cannot take jobs yet.
_STARTING = ("Cannot connect to host", "No available agent", "head node agent")


class Cluster:
    """A Ray cluster. address: URL of its dashboard."""

    def __init__(self, address: str, environment: Mapping[str, str], verbose: bool = False) -> None:
        """Raises JobError when nothing answers at the address, or Ray's client is not installed.

        environment: where Ray finds its token; it is named in a sentence about a wrong one.
        verbose: let the messages of Ray's client through.
        """
        self.address = storage.redact(address)
        self._url, self._environment = address, environment
        self._verbose = verbose
        with self._quiet():
            try:
                from ray.job_submission import JobSubmissionClient
            except ModuleNotFoundError as error:
                raise JobError(
                    f"submitting needs the package {error.name}: run "
                    "`pip install 'mediamill[cluster]'`"
                ) from error
            with self._errors_as_sentences(f"--address {self.address}"):
                self._client: Any = JobSubmissionClient(address)

    def submit(self, submission: Submission) -> str:
        """Starts the job and returns its name on the cluster. Raises JobError."""
        job = submission.job
        if submission.name is not None:
            self._check_is_free(submission.name)
        with tempfile.TemporaryDirectory(prefix="mediamill-submit-") as folder:
            (Path(folder) / _FILE).write_text(render_job(job), encoding="utf-8")
            for name in (_START, _RUN):
                (Path(folder) / name).write_bytes((_ON_CLUSTER / name).read_bytes())
            # Ray reads this variable in the process that stops the driver.
            wait_s = int(job.resources.grace_s) + _STOP_MARGIN_S
            environment: dict[str, Any] = {
                "working_dir": folder,
                "env_vars": {_STOP_WAIT: str(wait_s)},
            }
            if submission.code:
                environment["py_modules"] = [str(Path(mediamill.__file__).parent)]
                environment["excludes"] = _EXCLUDES
            metadata = {
                "job": job.job,
                "output": storage.redact(job.output),
                "grace_s": f"{job.resources.grace_s:g}",
            }
            subject = f"{self.address}: the cluster does not take the job"
            with self._quiet(), self._errors_as_sentences(subject):
                return self._once_ready(
                    lambda: self._client.submit_job(
                        entrypoint=f"sh {_START}",  # RAY_ADDRESS says where
                        submission_id=submission.name,
                        runtime_env=environment,
                        metadata=metadata,
                    )
                )

    def _check_is_free(self, name: str) -> None:
        """Raises JobError if the cluster has a job of this name."""
        infos = self._infos()
        for info in infos:
            if info.submission_id != name:
                continue
            names = {other.submission_id for other in infos}
            number = next(n for n in range(2, len(names) + 3) if f"{name}-{n}" not in names)
            state = state_of(info)
            word = f"has ended ({state})" if state in ENDS else f"is at work ({state})"
            raise JobError(
                f"--name {name}: a job of this name {word} on {self.address}; expected another "
                f"name, such as {name}-{number}"
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

    def job(self, name: str) -> RemoteJob:
        """Returns a job with its progress. Raises JobError when there is no such job."""
        return self._job(self._info(name))

    def jobs(self, limit: int) -> tuple[list[RemoteJob], int]:
        """Returns the latest jobs that mediamill has submitted, newest first.

        Also returns the number of those that are left out. Raises JobError.
        """
        infos = [info for info in self._infos() if is_ours(info)]
        infos.sort(key=lambda info: info.start_time or 0, reverse=True)
        return [self._job(info) for info in infos[:limit]], max(0, len(infos) - limit)

    def _job(self, info: Any) -> RemoteJob:
        return remote_job(info, self._log_end(info) if is_ours(info) else JobLog())

    def _log_end(self, info: Any) -> JobLog:
        """Returns what the last lines of a job's log say; nothing if they cannot be had."""
        if info.driver_node_id is None:
            return JobLog()
        name = quote(f"job-driver-{info.submission_id}.log")
        query = f"node_id={info.driver_node_id}&filename={name}&lines={_LOG_LINES}"
        with suppress(Exception):
            reply = self._client._do_request("GET", f"/api/v0/logs/file?{query}")
            if reply.status_code == 200:
                return read_log(reply.text.split("\n"))
        return JobLog()

    def stop(self, name: str) -> bool:
        """Asks a job to stop. Returns whether it was still running. Raises JobError."""
        if state_of(self._info(name)) in ENDS:
            return False
        with self._errors_as_sentences(name):
            return bool(self._client.stop_job(name))

    def stop_time(self, name: str) -> int | None:
        """Returns the seconds that a job has to finish its rows.

        None for a job of others, for which the setting of the head counts.
        """
        info = self._info(name)
        if _STOP_WAIT not in ((info.runtime_env or {}).get("env_vars") or {}):
            return None
        return round(float((info.metadata or {}).get("grace_s", 60)))

    def output_of(self, name: str) -> tuple[str, str]:
        """Returns the kind of a job and its output; empty for a job of others."""
        metadata = self._info(name).metadata or {}
        return metadata.get("job", ""), metadata.get("output", "")

    def follow(self, name: str, write: Callable[[str], None], tell: Callable[[str], None]) -> int:
        """Passes the job's log to `write` until it ends, and returns its exit code.

        tell: takes a sentence about a cluster that does not answer.
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
                    write(text[max(0, len(text) - (seen - written)) :])
                    written = seen

        while True:
            try:
                with self._quiet():
                    asyncio.run(copy())
            except Exception as error:
                if not _is_connection(error):
                    raise
            if self._wait_until(name, lambda info: True, tell) in ENDS:
                return self.wait(name, tell)
            time.sleep(_POLL_S)

    def wait(self, name: str, tell: Callable[[str], None] | None = None) -> int:
        """Waits until the job has ended, and returns its exit code: 143 when it was stopped.

        tell, errors: see `follow`.
        """
        status = self._wait_until(name, lambda info: state_of(info) in ENDS, tell)
        code = self._info(name).driver_exit_code
        if status == "STOPPED":
            return 143
        if code is None:
            return 0 if status == "SUCCEEDED" else 1
        return int(code) if code >= 0 else 128 - int(code)  # a negative one is a signal's

    def ends_within(self, name: str, seconds: float) -> bool:
        """Waits at most `seconds` for the end of the job, and returns whether it has ended."""
        until = time.monotonic() + seconds
        state = self._wait_until(
            name, lambda info: state_of(info) in ENDS or time.monotonic() > until
        )
        return state in ENDS

    def _wait_until(
        self,
        name: str,
        condition: Callable[[Any], bool],
        tell: Callable[[str], None] | None = None,
    ) -> str:
        """Returns the status of an existing job as soon as `condition` holds for its info."""
        silent_since: float | None = None
        has_told = False
        while True:
            try:
                info = self._client.get_job_info(name)
            except Exception as error:
                if not _is_connection(error):
                    raise
                silent_since = silent_since or time.monotonic()
                silent_s = time.monotonic() - silent_since
                if silent_s > _UNAVAILABLE_S:
                    raise ClusterGoneError(
                        f"{self.address}: the cluster stopped answering; {name} may still run: "
                        f"try `mediamill status {name} --address {self.address}` later, or, if the "
                        "cluster is gone, submit the job again: finished rows are kept"
                    ) from error
                if silent_s > _SILENT_S and tell is not None and not has_told:
                    tell(f"{self.address} does not answer; it is tried for {_UNAVAILABLE_S:.0f} s")
                    has_told = True
            else:
                silent_since = None
                if condition(info):
                    return state_of(info)
            time.sleep(_POLL_S)

    def _info(self, name: str) -> Any:
        with self._errors_as_sentences(name):
            try:
                return self._client.get_job_info(name)
            except RuntimeError as error:
                if "status code 404" not in str(error):
                    raise
        names = [info.submission_id for info in self._infos()]
        guess = nearest(name, names)
        hint = f", did you mean '{guess}'?" if guess else "; mediamill status lists the jobs"
        raise JobError(f"{self.address} has no job {name!r}{hint}")

    def _infos(self) -> list[Any]:
        with self._errors_as_sentences(self.address):
            return [info for info in self._client.list_jobs() if info.submission_id]

    @contextmanager
    def _quiet(self) -> Iterator[None]:
        """Hides what Ray's client logs, and its warnings about the libraries that it uses."""
        if self._verbose:
            yield
            return
        level = logging.root.manager.disable
        logging.disable(logging.WARNING)
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                yield
        finally:
            logging.disable(level)

    @contextmanager
    def _errors_as_sentences(self, subject: str) -> Iterator[None]:
        """Turns errors of Ray's client and its HTTP libraries into JobError."""
        try:
            yield
        except JobError:
            raise
        except Exception as error:
            if not _is_connection(error):
                raise
            raise JobError(f"{subject}: {self._sentence(error)}") from error

    def _sentence(self, error: Exception) -> str:
        kind = type(error).__name__
        if kind == "AuthenticationError":
            return token_sentence(self._environment)
        if kind in ("ConnectionError", "ConnectTimeout", "InvalidURL"):
            return why_silent(self._url)
        if "Version check returned 404" in str(error) or kind == "JSONDecodeError":
            return (
                "a server answers there, but not the dashboard of Ray; expected its URL, such as "
                "http://HEAD:8265"
            )
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        if not lines:
            return kind
        if "Traceback" in lines[0]:  # on the cluster; its last line is the error
            lines = [line for line in lines if line.strip(".")][-1:]
        return storage.redact_text(lines[0])


def _is_connection(error: Exception) -> bool:
    """Whether a request of Ray's client failed; other errors are faults of this program."""
    library = type(error).__module__.partition(".")[0] in ("aiohttp", "ray", "requests")
    return library or isinstance(error, RuntimeError | OSError | ValueError | KeyError)

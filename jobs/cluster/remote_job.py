"""What Ray and its own log tell of a job on a cluster, and how that is printed."""

import json
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from mediamill.jobs.cluster.job_log import JobLog
from mediamill.jobs.progress.layout import duration
from mediamill.pipeline.storage import storage

ENDS = ("SUCCEEDED", "FAILED", "STOPPED")  # Ray's
FINISHED, STOPPED, STOPPING = "FINISHED", "STOPPED", "STOPPING"
_ERROR_ROWS = 3  # the exit code of a job that has finished with error rows
_RESUME = "submit the job again to go on: rows that are finished are kept"
_COLUMNS = ("name", "status", "rows", "errors", "rate", "ETA", "started", "output")
_IN_ROWS = ("rows_total", "rate_rows_s", "eta_s")  # printed in the line of rows_done


@dataclass(frozen=True)
class RemoteJob:
    """A job on the cluster.

    state: Ray's (PENDING, RUNNING, SUCCEEDED, FAILED, STOPPED), or STOPPING while it finishes its
        rows in flight, or FINISHED when some rows are errors, which Ray counts as FAILED.
    facts: what is known of it by name, as `mediamill status --json` prints it.
    """

    name: str
    state: str
    facts: dict[str, Any]

    @property
    def has_ended(self) -> bool:
        """Whether it has ended."""
        return self.state in (*ENDS, FINISHED)


def remote_job(info: Any, log: JobLog) -> RemoteJob:
    """Returns a job of what Ray's client says of it, and the end of its log."""
    metadata = info.metadata or {}
    state = state_of(info)
    if log.stopping and state not in ENDS:
        state = STOPPING
    at_work, progress = state not in ENDS, log.progress
    if state == "FAILED" and info.driver_exit_code == _ERROR_ROWS and is_ours(info):
        state = FINISHED
    facts: dict[str, Any] = {
        "name": info.submission_id,
        "status": state,
        "exit_code": info.driver_exit_code,
    }
    if progress is not None:
        facts["rows_done"], facts["rows_total"] = progress.rows_done, progress.rows_wanted
        facts["errors"] = sum(progress.errors.values())
        if at_work:
            facts["rate_rows_s"], facts["eta_s"] = progress.rate_rows_s, progress.eta_s
    if at_work:
        facts["phase"] = log.phase
    elif state == STOPPED:
        facts["message"] = _RESUME
    elif state == "FAILED":
        facts["message"] = log.text or _last_sentence(info.message or "")
    if state == "PENDING":
        facts["message"] = _last_sentence(info.message or "")
    facts["started"], facts["ended"] = _time(info.start_time), _time(info.end_time)
    facts |= {key: metadata[key] for key in ("job", "output") if key in metadata}
    known = {key: value for key, value in facts.items() if value not in (None, "")}
    return RemoteJob(info.submission_id, state, known)


def state_of(info: Any) -> str:
    """Returns the state of a job that Ray's client tells."""
    return str(getattr(info.status, "value", info.status))


def is_ours(info: Any) -> bool:
    """Whether mediamill has submitted a job."""
    return "output" in (info.metadata or {})


def print_job(job: RemoteJob, as_json: bool) -> None:
    """Prints a job: one line for each fact, or one JSON object."""
    if as_json:
        print(json.dumps(job.facts), flush=True)
        return
    facts = {key: value for key, value in job.facts.items() if key not in _IN_ROWS}
    if "rows_done" in facts:
        facts["rows_done"] = ", ".join(part for part in (_rows(job), _rate(job), _eta(job)) if part)
    lines = (f"{key.removesuffix('_done'):<10} {value}" for key, value in facts.items())
    print("\n".join(lines), flush=True)


def print_jobs(jobs: Sequence[RemoteJob], as_json: bool) -> None:
    """Prints a table of jobs, or one JSON object a line."""
    if as_json:
        for job in jobs:
            print(json.dumps(job.facts), flush=True)
        return
    lines = [_COLUMNS, *(_cells(job) for job in jobs)]
    widths = [max(len(line[i]) for line in lines) for i in range(len(_COLUMNS))]
    for line in lines:
        cells = (cell.ljust(width) for cell, width in zip(line, widths, strict=True))
        print("  ".join(cells).rstrip(), flush=True)


def _cells(job: RemoteJob) -> tuple[str, ...]:
    get = job.facts.get
    errors = "" if get("errors") is None else f"{get('errors'):,}"
    eta = _eta(job).removeprefix("ETA ")
    cells = (job.name, job.state, _rows(job), errors, _rate(job), eta)
    return tuple(cell or "-" for cell in (*cells, get("started", ""), get("output", "")))


def _rows(job: RemoteJob) -> str:
    done, total = job.facts.get("rows_done"), job.facts.get("rows_total")
    return "" if done is None else f"{done:,} of {total:,}"


def _rate(job: RemoteJob) -> str:
    rate = job.facts.get("rate_rows_s")
    return f"{rate:,.1f} rows/s" if rate else ""


def _eta(job: RemoteJob) -> str:
    eta_s = job.facts.get("eta_s")
    return "" if eta_s is None else f"ETA {duration(eta_s)}"


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

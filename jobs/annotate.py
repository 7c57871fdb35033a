"""Runs the job annotate: a timeline for each video, one result row for each window.

The steps and the layout of the output are described in pipeline/annotate/annotate.py.
"""

import json
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING, TextIO

from mediamill.jobs.interactive import run_with_progress
from mediamill.jobs.progress import quiet_logs
from mediamill.schemas.job import JobConfig
from mediamill.schemas.result import Summary, summary_dict, summary_text

if TYPE_CHECKING:
    from mediamill.pipeline.annotate.annotate import AnnotationSummary


@dataclass(frozen=True)
class Finished:
    """The result of a finished job. exit_code: 0 when all rows are ok, 3 when some are errors."""

    annotated: "AnnotationSummary"

    @property
    def exit_code(self) -> int:
        summaries = self.annotated.summaries
        return max(
            self.annotated.windows.exit_code, 0 if summaries is None else summaries.exit_code
        )


def annotate(
    job: JobConfig,
    as_json: bool = False,
    stdout: TextIO | None = None,
    stderr: TextIO | None = None,
    address: str | None = None,
) -> Finished:
    """Runs a job, prints progress on stderr and the summary on stdout, and returns the result.

    The arguments and errors are those of `run_per_row`; without an address, each step starts a
    local cluster of its own.
    """
    from mediamill.pipeline.annotate import annotate

    quiet_logs()
    annotation = annotate.check_annotation(job)
    with run_with_progress(job.resources.grace_s, stderr or sys.stderr) as (reporter, stop):
        annotated = annotate.annotate(annotation, reporter.phase, reporter, address, stop)
    finished = Finished(annotated)
    text = json.dumps(finished_dict(finished)) if as_json else finished_text(finished)
    print(text, file=stdout or sys.stdout, flush=True)
    return finished


def finished_dict(finished: Finished) -> dict[str, object]:
    """The summary of the windows step as a dict, with `videos` and the other steps' summaries."""
    annotated = finished.annotated
    summaries = annotated.summaries
    return {
        **summary_dict(annotated.windows),
        "exit_code": finished.exit_code,
        "videos": annotated.split.rows,
        "video_errors": dict(annotated.split.errors),
        "split": summary_dict(annotated.split),
        "summaries": None if summaries is None else summary_dict(summaries),
    }


def finished_text(finished: Finished) -> str:
    """The summary as text, a line or more for each step."""
    split, summaries = finished.annotated.split, finished.annotated.summaries
    lines = [f"{split.rows} videos: {split.ok} split, {_errors(split)}"]
    lines += [f"windows: {line}" for line in summary_text(finished.annotated.windows).splitlines()]
    if summaries is not None:
        lines += [f"summaries: {line}" for line in summary_text(summaries).splitlines()]
    return "\n".join(lines)


def _errors(summary: Summary) -> str:
    by_count = sorted(summary.errors.items(), key=lambda item: (-item[1], item[0]))
    named = ", ".join(f"{code} {count}" for code, count in by_count)
    return f"{summary.error_rows} errors" + (f" ({named})" if named else "")

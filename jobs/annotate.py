"""The job annotate: turns each manifest row's video into a timeline, one row for each window.

What the steps are and what they leave in the output is said in pipeline/annotate/annotate.py.
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
    """What was made. exit_code: 0 when all rows are ok, 3 when some are errors."""

    made: "AnnotationSummary"

    @property
    def exit_code(self) -> int:
        summaries = self.made.summaries
        return max(self.made.windows.exit_code, 0 if summaries is None else summaries.exit_code)


def annotate(
    job: JobConfig,
    as_json: bool = False,
    stdout: TextIO | None = None,
    stderr: TextIO | None = None,
    address: str | None = None,
) -> Finished:
    """Runs the job; progress on stderr, the summary on stdout as text or as one JSON object.

    address: of a Ray cluster; None starts one here for the time of each step.
    Ctrl-C and SIGTERM end the run after what has begun, within resources.grace_s.
    Raises JobError before any actor starts when the job cannot work, Drained when it was told to
    stop, and whatever makes it fail later.
    """
    # Ray and torch take seconds to import; wrong use of the command line should not wait for them.
    from mediamill.pipeline.annotate import annotate

    quiet_logs()
    annotation = annotate.check_annotation(job)
    with run_with_progress(job.resources.grace_s, stderr or sys.stderr) as (reporter, stop):
        made = annotate.annotate(annotation, reporter.phase, reporter, address, stop)
    finished = Finished(made)
    text = json.dumps(finished_dict(finished)) if as_json else finished_text(finished)
    print(text, file=stdout or sys.stdout, flush=True)
    return finished


def finished_dict(finished: Finished) -> dict[str, object]:
    """One JSON object: as of the windows, with `videos`, and the other steps as objects in it."""
    made = finished.made
    said = {**summary_dict(made.windows), "exit_code": finished.exit_code}
    said |= {"videos": made.split.rows, "video_errors": dict(made.split.errors)}
    said["split"] = summary_dict(made.split)
    said["summaries"] = None if made.summaries is None else summary_dict(made.summaries)
    return said


def finished_text(finished: Finished) -> str:
    """The closing lines that a person reads."""
    made = finished.made
    lines = [f"{made.split.rows} videos: {made.split.ok} split, {_errors(made.split)}"]
    lines += [f"windows: {line}" for line in summary_text(made.windows).splitlines()]
    if made.summaries is not None:
        lines += [f"summaries: {line}" for line in summary_text(made.summaries).splitlines()]
    return "\n".join(lines)


def _errors(summary: Summary) -> str:
    by_count = sorted(summary.errors.items(), key=lambda item: (-item[1], item[0]))
    named = ", ".join(f"{code} {count}" for code, count in by_count)
    return f"{summary.error_rows} errors" + (f" ({named})" if named else "")

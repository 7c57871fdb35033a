"""Runs the job annotate: a timeline for each video, one result row for each window.

The steps and the layout of the output are described in pipeline/annotate/annotate.py.
"""

from typing import TYPE_CHECKING

from mediamill.jobs.head_watch import ending_without_head
from mediamill.jobs.interactive import checking, next_command, print_summary, reporting, stopping
from mediamill.jobs.progress.layout import Title
from mediamill.jobs.progress.reporter import MANIFEST
from mediamill.pipeline.storage import storage
from mediamill.schemas.job import JobConfig
from mediamill.schemas.result import error_counts, retry_advice, summary_dict, summary_text

if TYPE_CHECKING:
    from mediamill.pipeline.annotate.annotate import AnnotationSummary
    from mediamill.pipeline.manifest.selection import RowChoice
    from mediamill.pipeline.retry.options import Retry


def annotate(
    job: JobConfig,
    as_json: bool = False,
    address: str | None = None,
    retry: "Retry | None" = None,
    choice: "RowChoice | None" = None,
    verbose: bool = False,
) -> "AnnotationSummary":
    """Runs a job, prints its progress and summary, and returns the summary.

    choice: the videos to do now; None = all that are not finished.
    The other arguments and the errors are those of `run_per_row`.
    """
    with reporting(Title(job.job, job.output), verbose) as reporter:
        reporter.begin(MANIFEST)
        with checking(reporter):
            from mediamill.pipeline.annotate import annotate
            from mediamill.pipeline.manifest.selection import ALL_ROWS

            annotation = annotate.check_annotation(job, retry)
        plan = annotation.split
        reporter.end({"rows": plan.manifest.rows, "finished": plan.rows_done})
        reporter.notes(plan.notes)
        with ending_without_head(reporter), stopping(reporter, job.resources.grace_s) as stop:
            summary = annotate.annotate(
                annotation,
                reporter.step,
                reporter,
                address,
                stop,
                on_note=lambda note: reporter.notes((note,)),
                choice=choice or ALL_ROWS,
            )
    text = f"{_summary_text(summary)}\n{next_command(storage.redact(job.output))}"
    print_summary(_summary_dict(summary), text, as_json)
    return summary


def _summary_dict(summary: "AnnotationSummary") -> dict[str, object]:
    """Returns the summary of the windows, with `videos` and the summaries of the other steps."""
    split, summaries = summary.split, summary.summaries
    return {
        **summary_dict(summary.windows),
        "exit_code": summary.exit_code,
        "videos": split.rows,
        "video_errors": dict(split.errors),
        "split": summary_dict(split),
        "summaries": None if summaries is None else summary_dict(summaries),
    }


def _summary_text(summary: "AnnotationSummary") -> str:
    """Returns one line or more for each step."""
    split = summary.split
    codes = f" ({error_counts(split.errors)})" if split.errors else ""
    lines = [f"{split.rows} videos: {split.ok} split, {split.error_rows} errors{codes}"]
    lines += [
        f"windows: {line}" for line in summary_text(summary.windows, advises=False).splitlines()
    ]
    if summary.summaries is not None:
        text = summary_text(summary.summaries, advises=False)
        lines += [f"summaries: {line}" for line in text.splitlines()]
    if advice := retry_advice(summary.windows.errors, summary.output):
        lines.append(advice)
    return "\n".join(lines)

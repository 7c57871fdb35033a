"""Runs the jobs caption, score and embed: one result row for each manifest row."""

from typing import TYPE_CHECKING

from mediamill.jobs.head_watch import ending_without_head
from mediamill.jobs.interactive import checking, next_command, print_summary, reporting, stopping
from mediamill.jobs.progress.layout import Title
from mediamill.jobs.progress.reporter import MANIFEST
from mediamill.schemas.job import JobConfig
from mediamill.schemas.result import Summary, summary_dict, summary_text

if TYPE_CHECKING:
    from mediamill.pipeline.manifest.selection import RowChoice
    from mediamill.pipeline.retry.options import Retry


def run_per_row(
    job: JobConfig,
    as_json: bool = False,
    address: str | None = None,
    retry: "Retry | None" = None,
    choice: "RowChoice | None" = None,
    verbose: bool = False,
) -> Summary:
    """Runs a job, prints progress on stderr and the summary on stdout, and returns the summary.

    as_json: print the summary as one JSON object instead of text.
    address: a Ray cluster; None starts a local one for the duration of the job.
    retry: which error rows are done again, if any.
    choice: the rows to do now; None = all that are not finished.
    verbose: let the messages of Ray and of libraries through.
    Ctrl-C and SIGTERM finish the rows in flight, within resources.grace_s.
    Raises JobError before any actor starts when the job cannot work, and Drained when it was asked
    to stop. Other exceptions mean that the run failed.
    """
    with reporting(Title(job.job, job.output), verbose) as reporter:
        reporter.begin(MANIFEST)
        with checking(reporter):
            # Imported late: Ray and torch take seconds, and a usage error should not wait.
            from mediamill.pipeline.manifest.selection import ALL_ROWS
            from mediamill.pipeline.ray_cluster.cluster import import_ray
            from mediamill.pipeline.run import check, run

            plan = check(job, meanwhile=lambda: import_ray(address), retry=retry)
        reporter.end({"rows": plan.manifest.rows, "finished": plan.rows_done})
        reporter.notes(plan.notes)
        with ending_without_head(reporter), stopping(reporter, job.resources.grace_s) as stop:
            summary = run(
                job,
                plan,
                reporter,
                address,
                stop=stop,
                on_note=lambda note: reporter.notes((note,)),
                choice=choice or ALL_ROWS,
            )
    text = f"{summary_text(summary)}\n{next_command(summary.output)}"
    print_summary(summary_dict(summary), text, as_json)
    return summary

"""Runs the jobs caption, score and embed: one result row for each manifest row."""

from typing import TYPE_CHECKING

from mediamill.jobs.interactive import print_summary, run_with_progress
from mediamill.schemas.job import JobConfig
from mediamill.schemas.result import Summary, summary_dict, summary_text

if TYPE_CHECKING:
    from mediamill.pipeline.retry.options import Retry


def run_per_row(
    job: JobConfig,
    as_json: bool = False,
    address: str | None = None,
    retry: "Retry | None" = None,
) -> Summary:
    """Runs a job, prints progress on stderr and the summary on stdout, and returns the summary.

    as_json: print the summary as one JSON object instead of text.
    address: a Ray cluster; None starts a local one for the duration of the job.
    retry: which error rows are done again, if any.
    Ctrl-C and SIGTERM finish the rows in flight, within resources.grace_s.
    Raises JobError before any actor starts when the job cannot work, and Drained when it was asked
    to stop. Other exceptions mean that the run failed.
    """
    # Imported late: Ray and torch take seconds to import, and a usage error should not wait.
    from mediamill.pipeline.ray_cluster.cluster import import_ray
    from mediamill.pipeline.run import check, run

    plan = check(job, meanwhile=lambda: import_ray(address), retry=retry)
    with run_with_progress(job.resources.grace_s) as (reporter, stop):
        reporter.notes(plan.notes)
        summary = run(
            job,
            plan,
            on_progress=reporter,
            address=address,
            stop=stop,
            on_note=lambda note: reporter.notes((note,)),
        )
    print_summary(summary_dict(summary), summary_text(summary), as_json)
    return summary

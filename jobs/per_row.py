"""Runs the jobs caption, score and embed: one result row for each manifest row."""

import json
import sys
from typing import TextIO

from mediamill.jobs.interactive import run_with_progress
from mediamill.jobs.progress import quiet_logs
from mediamill.schemas.job import JobConfig
from mediamill.schemas.result import Summary, summary_dict, summary_text


def run_per_row(
    job: JobConfig,
    as_json: bool = False,
    stdout: TextIO | None = None,
    stderr: TextIO | None = None,
    address: str | None = None,
) -> Summary:
    """Runs a job, prints progress on stderr and the summary on stdout, and returns the summary.

    as_json: print the summary as one JSON object instead of text.
    address: a Ray cluster; None starts a local one for the duration of the job.
    Ctrl-C and SIGTERM finish the rows in flight, within resources.grace_s.
    Raises JobError before any actor starts when the job cannot work, and Drained when it was asked
    to stop. Other exceptions mean that the run failed.
    """
    # Imported late: Ray and torch take seconds to import, and a usage error should not wait.
    from mediamill.pipeline.run import check, run

    quiet_logs()
    plan = check(job)
    with run_with_progress(job.resources.grace_s, stderr or sys.stderr) as (reporter, stop):
        summary = run(job, plan, on_progress=reporter, address=address, stop=stop)
    text = json.dumps(summary_dict(summary)) if as_json else summary_text(summary)
    print(text, file=stdout or sys.stdout, flush=True)
    return summary

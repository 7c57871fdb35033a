"""The jobs caption, score and embed: turn each manifest row into one result row.

What they ask of a row is the task's affair (schemas/task.py), how they ask it the pipeline's.
"""

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
    """Runs the job; progress on stderr, the summary on stdout as text or as one JSON object.

    address: of a Ray cluster; None starts one here for the time of the job.
    Ctrl-C and SIGTERM end the run after what has begun, within resources.grace_s.
    Raises JobError before any actor starts when the job cannot work, Drained when it was told to
    stop, and whatever makes it fail later.
    """
    # Ray and torch take seconds to import; wrong use of the command line should not wait for them.
    from mediamill.pipeline.run import check, run

    quiet_logs()
    plan = check(job)
    with run_with_progress(job.resources.grace_s, stderr or sys.stderr) as (reporter, stop):
        summary = run(job, plan, on_progress=reporter, address=address, stop=stop)
    text = json.dumps(summary_dict(summary)) if as_json else summary_text(summary)
    print(text, file=stdout or sys.stdout, flush=True)
    return summary

"""Turns the end of a head into the end of its jobs: asks each to stop, and waits for it.

Run inside the head's container. Exits with 0 even when a job did not end in time: nobody could
do anything about it any more.
"""

import argparse
import time

from ray.job_submission import JobStatus, JobSubmissionClient

_POLL_S = 1.0


def stop_jobs(address: str, wait_s: float) -> list[str]:
    """Asks every job of the cluster to stop; the ids of those that still run after `wait_s`."""
    client = JobSubmissionClient(address)
    until = time.monotonic() + wait_s
    asked = []
    for job in client.list_jobs():
        if job.submission_id and not JobStatus(job.status).is_terminal():
            client.stop_job(job.submission_id)
            asked.append(job.submission_id)
    left = asked
    while left and time.monotonic() < until:
        time.sleep(_POLL_S)
        left = [one for one in left if not client.get_job_status(one).is_terminal()]
    return left


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description="Stop the jobs of a Ray cluster.")
    parser.add_argument("--address", default="http://127.0.0.1:8265", help="of the dashboard")
    parser.add_argument("--wait-s", type=float, required=True, help="for jobs to end")
    options = parser.parse_args()
    for name in stop_jobs(options.address, options.wait_s):
        print(f"{name} still runs after {options.wait_s:g} s")


if __name__ == "__main__":
    main()

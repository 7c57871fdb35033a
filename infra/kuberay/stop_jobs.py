"""Stops the jobs of a Ray cluster before its head terminates, and waits until they have ended.

Runs in the head's container. Exits with 0 even when a job does not end in time, since nothing could
be done about it.
"""

import argparse
import time

from ray.job_submission import JobStatus, JobSubmissionClient

_POLL_S = 1.0


def stop_jobs(address: str, wait_s: float) -> list[str]:
    """Asks every job of the cluster to stop. Returns the ids of those that run after `wait_s`."""
    client = JobSubmissionClient(address)
    until = time.monotonic() + wait_s
    running = []
    for job in client.list_jobs():
        if job.submission_id and not JobStatus(job.status).is_terminal():
            client.stop_job(job.submission_id)
            running.append(job.submission_id)
    while running and time.monotonic() < until:
        time.sleep(_POLL_S)
        running = [name for name in running if not client.get_job_status(name).is_terminal()]
    return running


def main() -> None:
    """Runs the command line."""
    parser = argparse.ArgumentParser(description="Stop the jobs of a Ray cluster.")
    parser.add_argument("--address", default="http://127.0.0.1:8265", help="of the dashboard")
    parser.add_argument("--wait-s", type=float, required=True, help="for jobs to end")
    options = parser.parse_args()
    for name in stop_jobs(options.address, options.wait_s):
        print(f"{name} still runs after {options.wait_s:g} s")


if __name__ == "__main__":
    main()

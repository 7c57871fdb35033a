"""The commands submit, status, logs and stop."""

import argparse
import shlex
import signal
import sys
from collections.abc import MutableMapping, Sequence

from mediamill.jobs.cluster.cluster_commands import parse_job_command, parse_submit
from mediamill.jobs.cluster.dashboard_url import dashboard_url
from mediamill.jobs.cluster.following import view_of
from mediamill.jobs.cluster.jobs_api import Cluster
from mediamill.jobs.cluster.remote_job import STOPPING, RemoteJob, print_job, print_jobs
from mediamill.jobs.cluster.submission import Submission, for_cluster, path_warnings
from mediamill.jobs.progress.activity import working
from mediamill.jobs.progress.layout import Title
from mediamill.pipeline.ray_cluster.cluster_address import use_token
from mediamill.schemas.job import load_job

_TERMINATED = 128 + signal.SIGTERM
_STOP_S = 10.0  # that `stop` waits to say what became of the job
_LISTED = 30
_SHORT_STOP = (
    "was not submitted by mediamill: unless the head's RAY_JOB_STOP_WAIT_TIME_S is above the job's "
    "resources.grace_s, it is killed after 3 s; rows that are committed are kept"
)
# They would override the address that is given to Ray's client.
_ADDRESS_KEYS = ("RAY_API_SERVER_ADDRESS", "RAY_ADDRESS")


def submit_command(argv: Sequence[str], environment: MutableMapping[str, str]) -> int:
    """Submits a job, follows it, and returns its exit code.

    environment: of this process; Ray's own variables in it are set.
    Raises JobError.
    """
    options, overrides = parse_submit(argv)
    url = dashboard_url(options.address, environment)
    job = for_cluster(load_job(options.config, overrides))
    with working("connecting to the cluster"):
        cluster = _cluster(url, options, environment)
    for warning in path_warnings(job, url):
        print(f"warning: {warning}", file=sys.stderr)
    with working("submitting the job"):
        name = cluster.submit(Submission(job, options.name, options.code))
    print(f"submitted as {name}", file=sys.stderr)
    if options.detach:
        print(f"follow it: {_command('logs', name, options)}", file=sys.stderr)
        print(name, flush=True)
        return 0
    return _follow(cluster, name, Title(job.job, job.output), options)


def job_command(command: str, argv: Sequence[str], environment: MutableMapping[str, str]) -> int:
    """Runs status, logs or stop, and returns the exit code. See `submit_command`."""
    options = parse_job_command(command, argv)
    url = dashboard_url(options.address, environment)
    with working("connecting to the cluster"):
        cluster = _cluster(url, options, environment)
    if command == "logs":
        kind, output = cluster.output_of(options.name)
        return _follow(cluster, options.name, Title(kind or "job", output), options)
    if command == "stop":
        return _stop(cluster, options)
    if options.name is None:
        with working("reading the jobs"):
            jobs, others = cluster.jobs(_LISTED)
        _tell_jobs(jobs, others, cluster, options)
        return 0
    with working("reading the job"):
        job = cluster.job(options.name)
    print_job(job, options.json)
    return 0


def _cluster(
    url: str, options: argparse.Namespace, environment: MutableMapping[str, str]
) -> Cluster:
    use_token(environment)
    for key in _ADDRESS_KEYS:
        environment.pop(key, None)
    return Cluster(url, environment, options.verbose)


def _command(command: str, name: str, options: argparse.Namespace) -> str:
    address = f" --address {shlex.quote(options.address)}" if options.address else ""
    return f"mediamill {command} {name}{address}"


def _follow(cluster: Cluster, name: str, title: Title, options: argparse.Namespace) -> int:
    stop = _command("stop", name, options)
    try:
        if sys.stdout.isatty() and sys.stderr.isatty():
            if not cluster.job(name).has_ended:
                print(f"Ctrl-C ends this view; {stop} stops the job", file=sys.stderr)
            view = view_of(title, sys.stderr, sys.stdout, options.verbose)
            try:
                code = cluster.follow(name, view.write, view.tell)
            finally:
                view.end()
        else:
            code = cluster.follow(name, _write, _tell)
        _tell_end(cluster.job(name), options)
    except (KeyboardInterrupt, SystemExit) as error:
        print(
            f"no longer following; {name} goes on: {_command('logs', name, options)} follows it "
            f"again, {stop} stops it",
            file=sys.stderr,
        )
        return 130 if isinstance(error, KeyboardInterrupt) else _TERMINATED
    return code


def _write(text: str) -> None:
    sys.stdout.write(text)
    sys.stdout.flush()


def _tell(sentence: str) -> None:
    print(f"note: {sentence}", file=sys.stderr, flush=True)


def _tell_end(job: RemoteJob, options: argparse.Namespace) -> None:
    """Tells of an end that the log of the job does not tell."""
    code = job.facts.get("exit_code")
    again = "submit the job again to go on: rows that are finished are kept"
    if job.state == "STOPPED":
        print(f"{job.name} was stopped; {again}", file=sys.stderr)
    elif job.state == "FAILED" and (code is None or code < 0):
        reason = f"signal {-code} ended its driver" if code else job.facts.get("message", "")
        print(f"error: {job.name} failed: {reason}; {again}", file=sys.stderr)


def _tell_jobs(
    jobs: Sequence[RemoteJob], others: int, cluster: Cluster, options: argparse.Namespace
) -> None:
    if jobs or options.json:
        print_jobs(jobs, options.json)
    else:
        print(f"{cluster.address} has no job that mediamill submitted")
    if others:
        print(f"and {others} older jobs", file=sys.stderr)


def _stop(cluster: Cluster, options: argparse.Namespace) -> int:
    name = options.name
    job = cluster.job(name)
    if job.has_ended:
        print(f"{name} had ended already", file=sys.stderr)
    elif job.state == STOPPING:
        print(f"{name} was asked to stop before", file=sys.stderr)
    else:
        grace_s = cluster.stop_time(name)
        if cluster.stop(name):
            within = f", within {grace_s} s" if grace_s else ""
            rows = "" if grace_s is None else f": its rows in flight are finished first{within}"
            print(f"{name} was asked to stop{rows}", file=sys.stderr)
        if grace_s is None:
            print(f"warning: {name} {_SHORT_STOP}", file=sys.stderr)
    with working(f"waiting for the end of {name}"):
        if options.wait:
            cluster.wait(name)
        has_ended = cluster.ends_within(name, _STOP_S)
        job = cluster.job(name)
    print_job(job, options.json)
    if not has_ended:
        wait = _command("stop --wait", name, options)
        print(f"{name} still finishes its rows; {wait} waits for its end", file=sys.stderr)
    return 0

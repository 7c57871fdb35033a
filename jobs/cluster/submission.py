"""Turns a job as it is on this machine into one that means the same on a cluster's machines.

What a path means there cannot be seen from here; what cannot mean anything there is refused.
"""

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from mediamill.model.tiny import CHECKPOINT
from mediamill.pipeline.checkpoint.content_hash import BUILT_IN
from mediamill.pipeline.storage import storage
from mediamill.schemas.errors import JobError
from mediamill.schemas.job import JobConfig

_LOOPBACK = ("localhost", "127.", "[::1]", "::1")


@dataclass(frozen=True)
class Submission:
    """What goes to the cluster. code: whether this program goes too, or the cluster has it."""

    job: JobConfig
    name: str | None = None
    code: bool = False


def for_cluster(job: JobConfig) -> JobConfig:
    """The job for a driver elsewhere: the model that ships is named and not its folder here.

    Raises JobError for relative paths: the folder that a submitted job runs in is gone when it
    ends.
    """
    if storage.scheme(job.model) == "file" and _is_shipped(job.model):
        job = job.model_copy(update={"model": BUILT_IN})
    for key, path in _paths(job):
        if not Path(path).expanduser().is_absolute():
            raise JobError(
                f"{key}: found the relative path {path}, expected an absolute one or a URL: a "
                "submitted job runs in a folder of its own, which is gone when it ends"
            )
    return job


def warnings_of(job: JobConfig, address: str) -> Iterator[str]:
    """Sentences on paths that may not be what the user thinks, for a cluster at `address`."""
    host = urlsplit(address if "://" in address else f"http://{address}").hostname or ""
    if host.startswith(_LOOPBACK) or host == os.uname().nodename:
        return  # a forwarded port is another machine's, and so is the path; nobody can tell here
    for key, path in _paths(job):
        there = "it is there on this machine, which" if Path(path).exists() else "which"
        yield (
            f"{key}: {path} is a path of the cluster's machines, all of which have to see the "
            f"same folder there; {there} says nothing of that"
        )


def _paths(job: JobConfig) -> Iterator[tuple[str, str]]:
    """What the job names by its path, with the key that does."""
    named = [("manifest", job.manifest), ("output", job.output), ("canary.uri", job.canary.uri)]
    named += [("fetch.roots", root) for root in job.fetch.roots or ()]
    if job.model != BUILT_IN:
        named.append(("model", job.model))
    for key, url in named:
        if url is not None and storage.scheme(url) == "file":
            yield key, storage.local_path(url)


def _is_shipped(model: str) -> bool:
    path = Path(storage.local_path(model)).expanduser()
    return path.exists() and path.resolve() == CHECKPOINT.resolve()

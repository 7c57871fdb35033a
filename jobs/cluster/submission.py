"""Prepares a job for submission to a remote cluster: checks its paths and names its model."""

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from mediamill.model.tiny import CHECKPOINT
from mediamill.pipeline.checkpoint.checkpoint_hash import BUILT_IN
from mediamill.pipeline.storage import storage
from mediamill.schemas.errors import JobError
from mediamill.schemas.job import JobConfig

_LOOPBACK = ("localhost", "127.", "[::1]", "::1")


@dataclass(frozen=True)
class Submission:
    """A job to submit.

    name: on the cluster; None lets Ray choose one.
    code: whether to upload this program, for a cluster that does not have it.
    """

    job: JobConfig
    name: str | None = None
    code: bool = False


def for_cluster(job: JobConfig) -> JobConfig:
    """Returns the job as a remote driver can run it: the built-in model by name, not by folder.

    Raises JobError for relative paths: a submitted job runs in a folder that is deleted afterwards.
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


def path_warnings(job: JobConfig, address: str) -> Iterator[str]:
    """Yields a warning for each local path in a job for the cluster at `address`."""
    host = urlsplit(address if "://" in address else f"http://{address}").hostname or ""
    if host.startswith(_LOOPBACK) or host == os.uname().nodename:
        return  # this machine, or a forwarded port, which looks the same
    for key, path in _paths(job):
        exists = Path(path).exists()
        yield (
            f"{key}: {path} is a path on the cluster's machines, which must all see the folder; "
            + ("it exists on this machine, which proves nothing" if exists else "not checked here")
        )


def _paths(job: JobConfig) -> Iterator[tuple[str, str]]:
    """Yields each key of the job that holds a local path, and the path."""
    urls = [("manifest", job.manifest), ("output", job.output), ("canary.uri", job.canary.uri)]
    urls += [("fetch.roots", root) for root in job.fetch.roots or ()]
    if job.model != BUILT_IN:
        urls.append(("model", job.model))
    for key, url in urls:
        if url is not None and storage.scheme(url) == "file":
            yield key, storage.local_path(url)


def _is_shipped(model: str) -> bool:
    path = Path(storage.local_path(model)).expanduser()
    return path.exists() and path.resolve() == CHECKPOINT.resolve()

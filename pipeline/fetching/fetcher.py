"""Turns one URI into its whole content, by the source that its scheme asks for.

Here is what a job allows, and which error a row gets; how each kind of storage is read is in the
sources' files, and rows are not known.
"""

import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from pipeline import storage
from pipeline.fetching.addresses import AddressRules
from pipeline.fetching.budget import Budget, Room
from pipeline.fetching.content import Content, Medium
from pipeline.fetching.file_source import opened
from pipeline.fetching.http_source import HttpClient, HttpSource
from pipeline.fetching.object_source import ObjectStores
from pipeline.fetching.retries import Backoff, Deadline, Kind, told_apart, tried
from pipeline.fetching.spool import Spool
from pipeline.fetching.transfer import transfer
from schemas.errors import ErrorCode, JobError, RowError
from schemas.job import JobConfig

SCHEMES = ("file", "s3", "s3a", "gs", "gcs", "az", "abfs", "abfss", "hf", "http", "https")
_PIECE = 1024 * 1024
_CODES: dict[Kind, ErrorCode] = {
    "missing": ErrorCode.FETCH_NOT_FOUND,
    "denied": ErrorCode.FETCH_DENIED,
    "expired": ErrorCode.FETCH_DENIED,
    "timeout": ErrorCode.FETCH_TIMEOUT,
}


@dataclass(frozen=True)
class FetchRules:
    """max_bytes: of one medium. timeout_s: for one medium, all tries together, without the time
    that it waits for room. base: the folder that relative paths are relative to. roots: folders
    that files may lie in; None for the base alone. schemes, hosts: None for all that are known.
    pause_s: ceiling of the pause before the second try. The others: the job's keys of that name.
    """

    max_bytes: int
    timeout_s: float
    base: str
    roots: tuple[str, ...] | None = None
    schemes: tuple[str, ...] | None = None
    hosts: tuple[str, ...] | None = None
    private_addresses: bool = False
    tries: int = 6
    at_once: int = 16
    ahead_bytes: int = 512 * 1024**2
    pause_s: float = 0.5

    @classmethod
    def of(cls, job: JobConfig, base: str) -> "FetchRules":
        """What `job` says of fetching; base: the folder that it was started in."""
        return cls(
            max_bytes=job.limits.max_bytes,
            timeout_s=job.limits.fetch_timeout_s,
            base=base,
            roots=_roots(job, base),
            schemes=job.fetch.schemes,
            hosts=job.fetch.hosts,
            private_addresses=job.fetch.private_addresses,
            tries=job.fetch.tries,
            at_once=job.fetch.at_once,
            ahead_bytes=job.fetch.ahead_bytes,
        )


def _roots(job: JobConfig, base: str) -> tuple[str, ...]:
    """By default the folder in which the manifest lies, and the one where the job was started."""
    if job.fetch.roots is not None:
        paths = (Path(storage.local_path(one)).expanduser() for one in job.fetch.roots)
        return tuple(str(base / path) for path in paths)
    if storage.scheme(job.manifest) != "file":
        return ()
    path = Path(base) / Path(storage.local_path(job.manifest)).expanduser()
    names = path.parts
    wild = next((i for i, name in enumerate(names) if set(name) & set("*?[")), len(names))
    place = Path(*names[:wild]) if wild < len(names) else path.parent
    if place.parent == place:  # a manifest in / does not open the whole machine
        place = path
    return (str(place), base)


class Fetcher:
    """All that one process needs to fetch. Threads share it.

    http: a client with rules of its own; by default one that keeps those of `rules`.
    """

    def __init__(self, rules: FetchRules, http: HttpClient | None = None) -> None:
        self.budget = Budget(rules.ahead_bytes)
        self._rules = rules
        self._backoff = Backoff(rules.tries, rules.pause_s)
        self._spool = Spool()
        self._http = http or HttpClient(AddressRules(rules.hosts, rules.private_addresses))
        self._stores = ObjectStores()
        self._ranges = ThreadPoolExecutor(rules.at_once, thread_name_prefix="range")

    def fetch(self, uri: str | None, room: Room) -> Medium:
        """The whole content of a URI. Raises RowError: a `fetch_` code, or media_empty."""
        if not uri:
            raise RowError(ErrorCode.FETCH_NOT_FOUND, "the row names no file: its uri is empty")
        deadline = Deadline(self._rules.timeout_s)
        content = Content(room, self._spool, self._rules.max_bytes, deadline)
        try:
            medium = self._fetch(uri, content, deadline)
        except RowError as error:
            content.abandon()
            raise RowError(error.code, f"{storage.shown(uri)}: {error.message}") from None
        except JobError as error:  # a package for that scheme is not installed
            content.abandon()
            raise RowError(ErrorCode.FETCH_DENIED, str(error)) from None
        except Exception as error:  # each library has its own; all are told apart
            content.abandon()
            failure = told_apart(error)
            code = _CODES.get(failure.kind, ErrorCode.FETCH_FAILED)
            raise RowError(code, f"{storage.shown(uri)}: {failure.reason}") from error
        if not medium.size:
            raise RowError(ErrorCode.MEDIA_EMPTY, f"{storage.shown(uri)}: the file is empty")
        return medium

    def _fetch(self, uri: str, content: Content, deadline: Deadline) -> Medium:
        scheme = storage.scheme(uri)
        allowed = SCHEMES if self._rules.schemes is None else self._rules.schemes
        if scheme not in allowed or scheme not in SCHEMES:
            raise RowError(
                ErrorCode.FETCH_DENIED,
                f"found the scheme '{scheme}', expected one of {', '.join(allowed)}",
            )
        if scheme == "file":
            return tried(lambda: self._read_file(uri, content), self._backoff, deadline=deadline)
        http = scheme in ("http", "https")
        source = HttpSource(uri, self._http) if http else self._stores.source(uri)
        return transfer(source, content, deadline, self._backoff, self._ranges)

    def _read_file(self, uri: str, content: Content) -> Medium:
        rules = self._rules
        roots = (rules.base,) if rules.roots is None else rules.roots
        with opened(uri, rules.base, roots) as (descriptor, size):
            content.expect(size)
            place = 0
            # As much as was there at first: a file that grows is read to where it was.
            while place < size:
                piece = os.pread(descriptor, min(_PIECE, size - place), place)
                if not piece:
                    break
                content.write(place, piece)
                place += len(piece)
        return content.finish(place)


def fetch(uri: str | None, rules: FetchRules, http: HttpClient | None = None) -> bytes:
    """The whole content of one URI, for who wants no more of them. Raises as `Fetcher.fetch`."""
    fetcher = Fetcher(rules, http)
    medium = fetcher.fetch(uri, Room(fetcher.budget))
    if medium.data is not None:
        return np.ascontiguousarray(medium.data).tobytes()
    assert medium.path is not None
    try:
        return medium.path.read_bytes()
    finally:
        Spool.release([medium.path])

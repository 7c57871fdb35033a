"""Turns one URI into its whole content, by the source that its scheme asks for.

Here is what a job allows, and which error a row gets; how each kind of storage is read is in the
sources' files, and rows are not known.
"""

import os
import sys
import weakref
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from mediamill.pipeline.fetching.addresses import AddressRules
from mediamill.pipeline.fetching.budget import Budget, Reservation
from mediamill.pipeline.fetching.content import MEMORY_BYTES, FetchedContent, FetchedMedium
from mediamill.pipeline.fetching.disk_cache import DiskCache
from mediamill.pipeline.fetching.file_source import opened
from mediamill.pipeline.fetching.http_source import HttpClient, HttpSource
from mediamill.pipeline.fetching.object_source import ObjectStores
from mediamill.pipeline.fetching.partial_fetch import HEAD_BYTES, Facts, fill, look
from mediamill.pipeline.fetching.spool import Spool
from mediamill.pipeline.fetching.transfer import Source, transfer
from mediamill.pipeline.storage import storage
from mediamill.pipeline.storage.retries import Backoff, Deadline, Kind, classify_error, retry
from mediamill.schemas.errors import ErrorCode, JobError, RowError
from mediamill.schemas.job import JobConfig

SCHEMES = ("file", "s3", "s3a", "gs", "gcs", "az", "abfs", "abfss", "hf", "http", "https")
_PIECE = 1024 * 1024
_SMALL_BYTES = 256 * 1024  # of a video that is rather in memory, although many rows name it
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
    pause_s: ceiling of the pause before the second try. memory_bytes: larger media are
    files; None = as content.py has it. in_place: a local one is not copied then, but read where it
    lies. cache_bytes: of such remote ones that this machine's processes keep for each other. The
    others: the job's keys of that name.
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
    memory_bytes: int | None = None
    in_place: bool = False
    cache_bytes: int = 0

    @classmethod
    def of(cls, job: JobConfig, base: str) -> "FetchRules":
        """What `job` says of fetching; base: the folder that it was started in."""
        windows = job.job == "annotate"  # many rows name one video
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
            memory_bytes=_SMALL_BYTES if windows else None,
            in_place=windows and sys.platform == "linux",
            cache_bytes=job.fetch.cache_bytes if windows else 0,
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
        self._kept = DiskCache(self._spool, rules.cache_bytes) if rules.cache_bytes else None
        self._http = http or HttpClient(AddressRules(rules.hosts, rules.private_addresses))
        self._stores = ObjectStores()
        self._ranges = ThreadPoolExecutor(rules.at_once, thread_name_prefix="range")

    def fetch(self, uri: str | None, room: Reservation) -> FetchedMedium:
        """The whole content of a URI. Raises RowError: a `fetch_` code, or media_empty."""
        return self._guarded(uri, room, self._fetch)

    def fetch_head(self, uri: str | None, room: Reservation) -> tuple[FetchedMedium, bool]:
        """A content of which only header and index need be there, and whether it is whole: a file
        of its size with holes, if it is large and remote. Raises as `fetch`.
        """
        whole = True

        def head(uri: str, content: FetchedContent, deadline: Deadline) -> FetchedMedium:
            nonlocal whole
            medium = self._head(uri, deadline)
            whole = medium is None
            return medium or self._fetch(uri, content, deadline)

        return self._guarded(uri, room, head), whole

    def _guarded(
        self,
        uri: str | None,
        room: Reservation,
        fetch: Callable[[str, FetchedContent, Deadline], FetchedMedium],
    ) -> FetchedMedium:
        rules = self._rules
        if not uri:
            raise RowError(ErrorCode.FETCH_NOT_FOUND, "the row names no file: its uri is empty")
        deadline = Deadline(rules.timeout_s)
        content = FetchedContent(room, self._spool, rules.max_bytes, deadline, rules.memory_bytes)
        try:
            medium = fetch(uri, content, deadline)
        except RowError as error:
            content.abandon()
            raise RowError(error.code, f"{storage.redact(uri)}: {error.message}") from None
        except JobError as error:  # a package for that scheme is not installed
            content.abandon()
            raise RowError(ErrorCode.FETCH_DENIED, str(error)) from None
        except Exception as error:  # each library has its own; all are told apart
            content.abandon()
            failure = classify_error(error)
            code = _CODES.get(failure.kind, ErrorCode.FETCH_FAILED)
            raise RowError(code, f"{storage.redact(uri)}: {failure.reason}") from error
        if not medium.size:
            raise RowError(ErrorCode.MEDIA_EMPTY, f"{storage.redact(uri)}: the file is empty")
        return medium

    def _fetch(self, uri: str, content: FetchedContent, deadline: Deadline) -> FetchedMedium:
        source = self._source(uri)
        if source is None:
            return retry(lambda: self._read_file(uri, content), self._backoff, deadline=deadline)
        if self._kept is None:
            return transfer(source, content, deadline, self._backoff, self._ranges)
        return self._fetch_once(uri, self._kept, source, content, deadline)

    def _fetch_once(
        self, uri: str, kept: DiskCache, source: Source, content: FetchedContent, deadline: Deadline
    ) -> FetchedMedium:
        """From what this machine keeps, or into it."""

        def whole() -> FetchedMedium:
            return transfer(source, content, deadline, self._backoff, self._ranges)

        facts = self._facts(source, deadline)
        if facts is None or facts.version is None or not self._is_kept(facts.size):
            return whole()
        with ExitStack() as stack:
            with deadline.paused():  # another process may be fetching it
                entry = stack.enter_context(kept.entry(uri, facts.version, facts.size))
            if path := entry.find():
                return FetchedMedium(facts.size, None, path)
            medium = whole()
            if medium.path is not None and medium.size == facts.size:
                entry.keep(medium.path)
            return medium

    def _is_kept(self, size: int) -> bool:
        rules = self._rules
        in_memory = MEMORY_BYTES if rules.memory_bytes is None else rules.memory_bytes
        return in_memory < size <= min(rules.max_bytes, rules.cache_bytes)

    def _facts(self, source: Source, deadline: Deadline) -> Facts | None:
        """None where they are not told, or not at once: a whole transfer says what is wrong."""
        try:
            found = look(source, 1, deadline, replace(self._backoff, tries=1))
        except Exception:  # noqa: BLE001 - each library has its own
            return None
        return None if found is None else found[0]

    def _head(self, uri: str, deadline: Deadline) -> FetchedMedium | None:
        """Header and index, in a file with holes; None for a content that should come whole."""
        source = self._source(uri)
        found = None if source is None else look(source, HEAD_BYTES, deadline, self._backoff)
        if source is None or found is None or found[0].size <= 2 * HEAD_BYTES:
            return None
        facts, head = found
        if facts.size > self._rules.max_bytes:
            return None  # which then says so
        path = self._spool.new()
        try:
            with path.open("xb", buffering=0) as file:
                fill(file.fileno(), head, facts, source, deadline, self._backoff)
        except BaseException:
            Spool.release([path])
            raise
        return FetchedMedium(facts.size, None, path)

    def _source(self, uri: str) -> Source | None:
        """Where the content comes from; None for a file of this machine. Raises RowError."""
        scheme = storage.scheme(uri)
        allowed = SCHEMES if self._rules.schemes is None else self._rules.schemes
        if scheme not in allowed or scheme not in SCHEMES:
            raise RowError(
                ErrorCode.FETCH_DENIED,
                f"found the scheme '{scheme}', expected one of {', '.join(allowed)}",
            )
        if scheme == "file":
            return None
        http = scheme in ("http", "https")
        return HttpSource(uri, self._http) if http else self._stores.source(uri)

    def _read_file(self, uri: str, content: FetchedContent) -> FetchedMedium:
        rules = self._rules
        roots = (rules.base,) if rules.roots is None else rules.roots
        with opened(uri, rules.base, roots) as (descriptor, size):
            if rules.in_place and (rules.memory_bytes or 0) < size <= rules.max_bytes:
                return _in_place(descriptor, size)
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


class _Hold:
    """Keeps a file open."""


def _in_place(descriptor: int, size: int) -> FetchedMedium:
    """The file that is open here, by a name that leads to it and to no other.

    A way through folders could lead elsewhere by the time that another process follows it.
    """
    kept, hold = os.dup(descriptor), _Hold()
    weakref.finalize(hold, os.close, kept)
    return FetchedMedium(size, None, Path(f"/proc/{os.getpid()}/fd/{kept}"), hold)


def fetch(uri: str | None, rules: FetchRules, http: HttpClient | None = None) -> bytes:
    """The whole content of one URI, for who wants no more of them. Raises as `Fetcher.fetch`."""
    fetcher = Fetcher(rules, http)
    medium = fetcher.fetch(uri, Reservation(fetcher.budget))
    if medium.data is not None:
        return np.ascontiguousarray(medium.data).tobytes()
    assert medium.path is not None
    try:
        return medium.path.read_bytes()
    finally:
        Spool.release([medium.path])

"""Fetches the content of a URI, from the storage that its scheme names (the *_source.py files).

Applies what the job allows (schemes, hosts, folders, sizes), and converts the errors of all
storages to row errors.
"""

import os
import sys
import weakref
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np

from mediamill.pipeline.fetching import media_uris
from mediamill.pipeline.fetching.addresses import AddressRules
from mediamill.pipeline.fetching.budget import ByteBudget, Reservation
from mediamill.pipeline.fetching.content import MEMORY_BYTES, FetchedContent, FetchedMedium, Owner
from mediamill.pipeline.fetching.data_url import decode_data_url
from mediamill.pipeline.fetching.disk_cache import DiskCache
from mediamill.pipeline.fetching.file_source import open_file
from mediamill.pipeline.fetching.http_source import HttpClient, HttpSource
from mediamill.pipeline.fetching.member_source import MemberSource, check_member_inside, inflate
from mediamill.pipeline.fetching.member_uri import MemberUri, parse_member_uri
from mediamill.pipeline.fetching.object_source import ObjectStores
from mediamill.pipeline.fetching.partial_fetch import (
    HEADER_BYTES,
    fetch_first_bytes,
    write_header_and_index,
)
from mediamill.pipeline.fetching.spool import Spool, root_folder
from mediamill.pipeline.fetching.transfer import Source, transfer
from mediamill.pipeline.storage import storage
from mediamill.pipeline.storage.disk_room import full_disk, is_full
from mediamill.pipeline.storage.retries import (
    Backoff,
    Deadline,
    FailureKind,
    classify_error,
    retry,
)
from mediamill.pipeline.storage.schemes import READERS, SCHEMES
from mediamill.schemas.errors import ErrorCode, JobError, RowError
from mediamill.schemas.job import FetchConfig, JobConfig, Limits

_CHUNK_BYTES = 1024 * 1024
_SMALL_BYTES = 256 * 1024  # a video up to this size stays in memory, even if many rows name it
_CODES: dict[FailureKind, ErrorCode] = {
    "missing": ErrorCode.FETCH_NOT_FOUND,
    "denied": ErrorCode.FETCH_DENIED,
    "expired": ErrorCode.FETCH_DENIED,
    "timeout": ErrorCode.FETCH_TIMEOUT,
}


@dataclass(frozen=True)
class FetchRules:
    """What rows may fetch, and how it is fetched.

    config, limits: the job's sections `fetch` and `limits`.
    base: the folder that relative paths are relative to.
    roots: folders that files may lie in, see `allowed_roots`; None for the base alone.
    pause_s: ceiling of the pause before the second try, in seconds.
    memory_bytes: larger media go to files; None for the default of content.py.
    in_place: larger local files are not copied, but read where they lie.
    use_cache: larger remote media go to the machine's disk cache, up to config.cache_bytes.
    """

    config: FetchConfig
    limits: Limits
    base: str
    roots: tuple[str, ...] | None = None
    pause_s: float = 0.5
    memory_bytes: int | None = None
    in_place: bool = False
    use_cache: bool = False

    @classmethod
    def of(cls, job: JobConfig, base: str) -> "FetchRules":
        """Returns the rules of a job that was started in the folder `base`."""
        annotate = job.job == "annotate"  # many rows name the same video
        return cls(
            job.fetch,
            job.limits,
            base,
            allowed_roots(job, base),
            memory_bytes=_SMALL_BYTES if annotate else None,
            in_place=annotate and sys.platform == "linux",
            use_cache=annotate and job.fetch.cache_bytes > 0,
        )


def allowed_roots(job: JobConfig, base: str) -> tuple[str, ...]:
    """Returns the folders that rows may read files of.

    By default: the folder of a local manifest, and `base`, in which the job was started.
    """
    if job.fetch.roots is not None:
        paths = (Path(storage.local_path(root)).expanduser() for root in job.fetch.roots)
        return tuple(dict.fromkeys(str(base / path) for path in paths))
    if storage.scheme(job.manifest) != "file":
        return ()
    path = Path(base) / Path(storage.local_path(job.manifest)).expanduser()
    names = path.parts
    wildcard = next((i for i, name in enumerate(names) if set(name) & set("*?[")), len(names))
    folder = Path(*names[:wildcard]) if wildcard < len(names) else path.parent
    if folder.parent == folder:  # a manifest in / does not allow the whole machine
        folder = path
    return tuple(dict.fromkeys((str(folder), base)))


class Fetcher:
    """Fetches media for all threads of one process.

    http: a client with its own address rules; by default it follows those of `rules`.
    """

    def __init__(self, rules: FetchRules, http: HttpClient | None = None) -> None:
        config = rules.config
        self.budget = ByteBudget(config.ahead_bytes)
        self._rules = rules
        self._backoff = Backoff(config.tries, rules.pause_s)
        self._spool = Spool()
        self._cache = DiskCache(self._spool, config.cache_bytes) if rules.use_cache else None
        self._http = http or HttpClient(AddressRules(config.hosts, config.private_addresses))
        self._object_stores = ObjectStores()
        self._range_executor = ThreadPoolExecutor(config.at_once, thread_name_prefix="range")

    def fetch(self, uri: str | None, reservation: Reservation) -> FetchedMedium:
        """Fetches the whole content of a URI. Raises RowError: a `fetch_` code, or media_empty."""
        return self._convert_errors(uri, reservation, self._fetch)

    def take(self, data: memoryview, uri: str | None, reservation: Reservation) -> FetchedMedium:
        """Returns a medium whose bytes are in memory already, without a copy of them.

        uri: its name, if it has one. Raises as `fetch`.
        """
        shown = "the medium in the table" if not uri else media_uris.shown(uri)
        if not len(data):
            raise RowError(ErrorCode.MEDIA_EMPTY, f"{shown}: it has no bytes")
        if len(data) > (limit := self._rules.limits.max_bytes):
            message = (
                f"{shown}: found {len(data)} bytes, expected at most limits.max_bytes = {limit}"
            )
            raise RowError(ErrorCode.FETCH_TOO_LARGE, message)
        values = np.frombuffer(data, np.uint8)
        reservation.resize(values.size)
        reservation.bind_to(values)
        return FetchedMedium(values.size, values)

    def fetch_partial(
        self, uri: str | None, reservation: Reservation, header_bytes: int = HEADER_BYTES
    ) -> tuple[FetchedMedium, bool]:
        """Fetches header and index of a large remote content into a sparse file of its size, any
        other content whole. Returns the medium, and whether it is whole. Raises as `fetch`.

        header_bytes: of the header; a content of up to twice as many is fetched whole.
        """
        whole = True

        def fetch(
            uri: str, member: MemberUri | None, content: FetchedContent, deadline: Deadline
        ) -> FetchedMedium:
            nonlocal whole
            medium = self._fetch_partial(uri, member, deadline, header_bytes)
            whole = medium is None
            return medium or self._fetch(uri, member, content, deadline)

        return self._convert_errors(uri, reservation, fetch), whole

    def _convert_errors(
        self,
        uri: str | None,
        reservation: Reservation,
        fetch: Callable[[str, MemberUri | None, FetchedContent, Deadline], FetchedMedium],
    ) -> FetchedMedium:
        if not uri:
            raise RowError(ErrorCode.FETCH_NOT_FOUND, "the row names no file: its uri is empty")
        shown, rules = media_uris.shown(uri), self._rules
        deadline = Deadline(rules.limits.fetch_timeout_s)
        size_limits = (rules.limits.max_bytes, deadline, rules.memory_bytes)
        new_content = partial(FetchedContent, reservation, self._spool, *size_limits)
        content = new_content()
        try:
            uri = media_uris.clean_uri(uri)
            member = parse_member_uri(uri)
            medium = fetch(uri, member, content, deadline)
            if member is not None and member.inflated_size is not None:
                content = new_content()
                medium = inflate(medium, member.inflated_size, content)
        except Exception as error:  # each library has its own
            content.abandon()
            if is_full(error):
                raise full_disk(root_folder(), "media that are being read (TMPDIR)") from None
            if isinstance(error, RowError):
                raise RowError(error.code, f"{shown}: {error.message}") from None
            if isinstance(error, JobError):  # a package for that scheme is not installed
                raise RowError(ErrorCode.FETCH_DENIED, str(error)) from None
            failure = classify_error(error)
            code = _CODES.get(failure.kind, ErrorCode.FETCH_FAILED)
            raise RowError(code, f"{shown}: {failure.reason}") from error
        if not medium.size:
            raise RowError(ErrorCode.MEDIA_EMPTY, f"{shown}: the file is empty")
        return medium

    def _fetch(
        self, uri: str, member: MemberUri | None, content: FetchedContent, deadline: Deadline
    ) -> FetchedMedium:
        source = self._source(uri, member)
        if source is None:
            if media_uris.scheme(uri) == "data":
                read = partial(_read_data, uri, content)
            else:
                read = partial(self._read_file, uri, member, content)
            return retry(read, self._backoff, deadline=deadline)
        with ExitStack() as stack:
            entry = None
            if self._cache is not None and (key := self._cache_key(source, deadline)):
                with deadline.paused():  # another process may be fetching it
                    entry = stack.enter_context(self._cache.entry(uri, *key))
                if path := entry.get():
                    return FetchedMedium(entry.size, None, path)
            medium = transfer(source, content, deadline, self._backoff, self._range_executor)
            if entry is not None and medium.path is not None and medium.size == entry.size:
                entry.put(medium.path)
            return medium

    def _cache_key(self, source: Source, deadline: Deadline) -> tuple[str, int] | None:
        """The version and size of a content that the disk cache may hold; None for others, and if
        the first attempt to read them fails: the transfer reports the error.
        """
        rules = self._rules
        in_memory = MEMORY_BYTES if rules.memory_bytes is None else rules.memory_bytes
        largest = min(rules.limits.max_bytes, rules.config.cache_bytes)
        try:
            probe = fetch_first_bytes(source, 1, deadline, replace(self._backoff, tries=1))
        except Exception:  # noqa: BLE001 - each library has its own
            return None
        if probe is None or probe[0].version is None or not in_memory < probe[0].size <= largest:
            return None
        return probe[0].version, probe[0].size

    def _fetch_partial(
        self, uri: str, member: MemberUri | None, deadline: Deadline, header_bytes: int
    ) -> FetchedMedium | None:
        """Header and index in a sparse file; None for a content that must be fetched whole."""
        source = self._source(uri, member)
        if source is None or (member is not None and member.inflated_size is not None):
            return None
        probe = fetch_first_bytes(source, header_bytes, deadline, self._backoff)
        if probe is None or probe[0].size <= 2 * header_bytes:
            return None
        info, header = probe
        if info.size > self._rules.limits.max_bytes:
            return None  # fetching the whole then raises the error
        path = self._spool.new()
        try:
            with path.open("xb", buffering=0) as file:
                write_header_and_index(file.fileno(), header, info, source, deadline, self._backoff)
        except BaseException:
            Spool.release([path])
            raise
        return FetchedMedium(info.size, None, path)

    def _source(self, uri: str, member: MemberUri | None = None) -> Source | None:
        """Returns the source of a URI; None for a local file and for data. Raises RowError.

        member: the parts of `uri` if it is that of a member.
        """
        if member is not None:
            whole = self._source(member.url)
            return whole and MemberSource(member, whole, self._rules.limits.max_bytes)
        scheme = media_uris.scheme(uri)
        schemes = self._rules.config.schemes
        allowed = SCHEMES if schemes is None else schemes
        reader = READERS.get(scheme) if scheme in allowed else None
        if reader is None:
            raise RowError(
                ErrorCode.FETCH_DENIED,
                f"found the scheme '{scheme:.40}', expected one of {', '.join(allowed)}",
            )
        if reader in ("file", "data"):
            return None
        if reader == "http":
            return HttpSource(uri, self._http)
        return self._object_stores.source(uri)

    def _read_file(
        self, uri: str, member: MemberUri | None, content: FetchedContent
    ) -> FetchedMedium:
        rules = self._rules
        roots = (rules.base,) if rules.roots is None else rules.roots
        with open_file(member.url if member else uri, rules.base, roots) as (descriptor, total):
            first, size = _member_range(member, total)
            in_place = rules.in_place and member is None
            if in_place and (rules.memory_bytes or 0) < size <= rules.limits.max_bytes:
                return _open_descriptor_path(descriptor, size)
            content.expect(size)
            offset = 0
            # A file that grows meanwhile is read up to its size at the start.
            while chunk := os.pread(descriptor, min(_CHUNK_BYTES, size - offset), first + offset):
                content.write(offset, chunk)
                offset += len(chunk)
        return content.finish(offset)


def _read_data(uri: str, content: FetchedContent) -> FetchedMedium:
    data = decode_data_url(uri, content.max_bytes)
    content.expect(data.size)
    offset = 0
    for chunk in data.chunks:
        content.write(offset, chunk)
        offset += len(chunk)
    return content.finish(offset)


def _member_range(member: MemberUri | None, total: int) -> tuple[int, int]:
    """Returns the first byte and the number of bytes to read of a file of `total` bytes."""
    if member is None:
        return 0, total
    check_member_inside(member, total)
    return member.first, member.size


def _open_descriptor_path(descriptor: int, size: int) -> FetchedMedium:
    """Returns an open file by a path that names its descriptor.

    Another process that opens the file by its own path could be led to another file by then.
    """
    duplicate, owner = os.dup(descriptor), Owner()
    weakref.finalize(owner, os.close, duplicate)
    return FetchedMedium(size, None, Path(f"/proc/{os.getpid()}/fd/{duplicate}"), owner)


def fetch(uri: str | None, rules: FetchRules, http: HttpClient | None = None) -> bytes:
    """Fetches one URI without a Fetcher to share. Raises as `Fetcher.fetch`."""
    fetcher = Fetcher(rules, http)
    medium = fetcher.fetch(uri, Reservation(fetcher.budget))
    if medium.data is not None:
        return np.ascontiguousarray(medium.data).tobytes()
    assert medium.path is not None
    try:
        return medium.path.read_bytes()
    finally:
        Spool.release([medium.path])

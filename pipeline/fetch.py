"""Turns the URIs of a table's rows into the bytes of their media, or into row errors.

All media of a table are fetched at once by a few threads. Reads never go beyond the ceiling on
bytes, and what may pass by itself is tried again. What the bytes are is not known here.
"""

import random
import stat
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa

from pipeline import storage
from pipeline.records import (
    MEDIA_BYTES,
    RowFailure,
    failure_columns,
    failures,
    fetched_schema,
    replace_columns,
)
from schemas import columns as c
from schemas.errors import ErrorCode, JobError, RowError
from schemas.job import JobConfig
from schemas.manifest import ManifestSchema

_SCHEMES = ("file", "s3", "gs", "gcs", "az", "abfs", "abfss", "hf", "http", "https")
_FIRST_BYTES = 8 * 1024 * 1024  # most media are smaller, and take one request
_CHUNK = 1024 * 1024
_PASSING = (408, 425, 429, 500, 502, 503, 504)  # HTTP statuses that a later try may not meet


@dataclass(frozen=True)
class FetchRules:
    """max_bytes: of one medium. timeout_s: for one medium, all tries together. base: the folder
    that relative paths are relative to. pause_s: before the second try; doubled for each further
    one, and drawn at random between half of it and all of it.
    """

    max_bytes: int
    timeout_s: float
    base: str
    tries: int = 4
    pause_s: float = 0.5
    threads: int = 16

    @classmethod
    def of(cls, job: JobConfig, base: str) -> "FetchRules":
        """What `job` says of fetching."""
        return cls(job.limits.max_bytes, job.limits.fetch_timeout_s, base)


class Fetch:
    """The stage. Adds the column MEDIA_BYTES; rows whose media cannot be had become error rows."""

    def __init__(self, manifest: ManifestSchema, rules: FetchRules) -> None:
        self._manifest = manifest
        self._rules = rules
        self._threads = ThreadPoolExecutor(rules.threads, thread_name_prefix="fetch")

    def __call__(self, table: pa.Table) -> pa.Table:
        """A table of `read_schema` -> one of `fetched_schema`."""
        wanted = [
            uris if failure is None else []
            for uris, failure in zip(_uris(table, self._manifest), failures(table), strict=True)
        ]
        waiting = [[self._threads.submit(fetch, uri, self._rules) for uri in row] for row in wanted]
        found: list[RowFailure | None] = failures(table)
        media: list[list[bytes] | None] = []
        for number, row in enumerate(waiting):
            try:
                media.append([one.result() for one in row])
            except RowError as error:
                media.append(None)
                found[number] = RowFailure(error.code.value, error.message)
        columns: dict[str, list[Any]] = {MEDIA_BYTES: media, **failure_columns(found)}
        return replace_columns(table, columns, fetched_schema(self._manifest))


def _uris(table: pa.Table, manifest: ManifestSchema) -> list[list[str | None]]:
    if manifest.form == c.URI:
        return [[uri] for uri in table[c.URI].to_pylist()]
    return [
        [None if one is None else one[c.MEDIA_URI] for one in row or []]
        for row in table[c.MEDIA].to_pylist()
    ]


def fetch(uri: str | None, rules: FetchRules) -> bytes:
    """The whole content of a URI. Raises RowError: a `fetch_` code, or media_empty for no bytes."""
    if not uri:
        raise RowError(ErrorCode.FETCH_NOT_FOUND, "the row names no file: its uri is empty")
    shown = storage.shown(uri)
    scheme = storage.scheme(uri)
    if scheme not in _SCHEMES:
        allowed = ", ".join(_SCHEMES)
        raise RowError(
            ErrorCode.FETCH_DENIED,
            f"{shown}: found the scheme '{scheme}', expected one of {allowed}",
        )
    reader: Callable[[str, FetchRules, float], bytes] = {
        "file": _read_file,
        "http": _read_http,
        "https": _read_http,
    }.get(scheme, _read_object)
    deadline = time.monotonic() + rules.timeout_s
    for attempt in range(1, rules.tries + 1):
        try:
            data = reader(uri, rules, deadline)
            break
        except RowError:
            raise
        except Exception as error:  # each library has its own; all are told apart below
            failure = _told_apart(error, shown, attempt)
            pause = rules.pause_s * 2 ** (attempt - 1) * random.uniform(0.5, 1.0)
            passing = failure.code in (ErrorCode.FETCH_FAILED, ErrorCode.FETCH_TIMEOUT)
            late = time.monotonic() + pause > deadline
            if not passing or late or attempt == rules.tries:
                raise failure from error
            time.sleep(pause)
    if not data:
        raise RowError(ErrorCode.MEDIA_EMPTY, f"{shown}: the file is empty")
    return data


def _read_file(uri: str, rules: FetchRules, deadline: float) -> bytes:
    path = Path(rules.base) / storage.local_path(uri)
    facts = path.stat()
    # A pipe or a device could be read for ever.
    if not stat.S_ISREG(facts.st_mode):
        raise RowError(ErrorCode.FETCH_DENIED, f"{path}: found a folder or device, expected a file")
    _check_size(facts.st_size, str(path), rules)
    with path.open("rb") as file:
        data = file.read(rules.max_bytes + 1)
    _check_size(len(data), str(path), rules)
    return data


def _read_object(uri: str, rules: FetchRules, deadline: float) -> bytes:
    place = storage.resolve(uri)
    first = min(_FIRST_BYTES, rules.max_bytes + 1)
    try:
        data = bytes(place.fs.cat_file(place.path, start=0, end=first))
    except OSError as error:
        # An object without bytes has no first byte either.
        if "range" in str(error).lower() and place.fs.info(place.path)["size"] == 0:
            return b""
        raise
    if len(data) < first:
        return data
    size = int(place.fs.info(place.path)["size"])
    _check_size(size, storage.shown(uri), rules)
    parts = [data]
    for start in range(first, size, _FIRST_BYTES):
        _check_deadline(deadline)
        end = min(start + _FIRST_BYTES, size)
        parts.append(bytes(place.fs.cat_file(place.path, start=start, end=end)))
        if len(parts[-1]) != end - start:
            raise OSError(f"got {len(parts[-1])} bytes of the {end - start} that were asked for")
    return b"".join(parts)


def _read_http(uri: str, rules: FetchRules, deadline: float) -> bytes:
    request = urllib.request.Request(uri, headers={"User-Agent": "mediamill"})
    left = max(deadline - time.monotonic(), 0.001)
    with urllib.request.urlopen(request, timeout=left) as answer:
        stated = answer.headers.get("Content-Length")
        if stated is not None and stated.isdigit():
            _check_size(int(stated), storage.shown(uri), rules)
        data = bytearray()
        while chunk := answer.read1(_CHUNK):
            _check_deadline(deadline)
            data += chunk
            _check_size(len(data), storage.shown(uri), rules)
        if stated is not None and stated.isdigit() and len(data) != int(stated):
            raise OSError(f"got {len(data)} bytes of {stated}")
    return bytes(data)


def _check_size(size: int, shown: str, rules: FetchRules) -> None:
    if size > rules.max_bytes:
        raise RowError(
            ErrorCode.FETCH_TOO_LARGE,
            f"{shown}: found at least {size} bytes, expected at most limits.max_bytes = "
            f"{rules.max_bytes}",
        )


def _check_deadline(deadline: float) -> None:
    if time.monotonic() > deadline:
        raise TimeoutError


def _told_apart(error: Exception, shown: str, attempt: int) -> RowError:
    """Which kind of failure a library's exception is."""
    tried = f" (tried {attempt} times)" if attempt > 1 else ""
    reason = storage.without_secrets(str(error) or type(error).__name__)
    status = None
    if isinstance(error, urllib.error.HTTPError):
        status = error.code
        error.close()  # it holds the connection
    inner = error.reason if isinstance(error, urllib.error.URLError) else error
    if isinstance(error, FileNotFoundError | NotADirectoryError) or status in (404, 410):
        return RowError(ErrorCode.FETCH_NOT_FOUND, f"{shown}: no such file")
    if isinstance(error, TimeoutError) or isinstance(inner, TimeoutError):
        return RowError(ErrorCode.FETCH_TIMEOUT, f"{shown}: took too long{tried}")
    refused = status is not None and status not in _PASSING
    no_login = "Credentials" in type(error).__name__  # botocore's, which is no OSError
    if isinstance(error, PermissionError | JobError) or refused or no_login:
        return RowError(ErrorCode.FETCH_DENIED, f"{shown}: {reason}")
    return RowError(ErrorCode.FETCH_FAILED, f"{shown}: {reason}{tried}")

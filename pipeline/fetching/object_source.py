"""Reads byte ranges of objects in object stores, through fsspec's file systems.

S3 and compatible stores are read with get_object, which returns the bytes, the size and the ETag,
other stores with the operations of every fsspec file system. The libraries' own retries are
disabled where possible, because transfer.py retries.
"""

import base64
import binascii
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from fsspec.asyn import sync

from mediamill.pipeline.fetching.transfer import RangeReply, Source
from mediamill.pipeline.storage import storage
from mediamill.pipeline.storage.retries import ContentChangedError, Deadline, IncompleteError
from mediamill.pipeline.storage.schemes import READERS, TIME_FIELDS, VERSION_FIELDS
from mediamill.pipeline.storage.storage import Place
from mediamill.schemas.errors import ErrorCode, RowError

_CHUNK_BYTES = 1024 * 1024
_MD5 = re.compile(r"[0-9a-f]{32}", re.ASCII)
_RANGE = re.compile(r"bytes (\d{1,18})-(\d{1,18})/(\d{1,18})", re.ASCII)
_VERSION = re.compile(r"\?versionId=([\w.-]+)\Z", re.ASCII)  # as fsspec's URLs have it
# Names with slashes that stand in place of a bucket.
_ACCESS_POINT = re.compile(
    r"arn:aws[^/]*:s3[a-z-]*:[^/]*:(accesspoint[:/][^/]+|outpost[/:][^/]+[/:](bucket|accesspoint)"
    r"[/:][^/]+)"
)
_S3_SETTINGS = {
    "config_kwargs": {
        "retries": {"total_max_attempts": 1},
        "max_pool_connections": 64,
        "connect_timeout": 10,
        "read_timeout": 20,
    }
}


class ObjectStores:
    """Creates the sources of objects for all threads of a process."""

    def __init__(self) -> None:
        self.distrusted: set[str] = set()  # buckets whose ETags are no checksums
        self.mutex = threading.Lock()

    def source(self, url: str) -> Source:
        """Returns the source of the object at `url`.

        Raises JobError when no installed file system can read that kind of URL.
        """
        if READERS.get(storage.scheme(url)) == "s3":
            place = storage.resolve(url, **_S3_SETTINGS)
            place.fs.retries = 1
            return _S3Source(url, place, self)
        return _FsspecSource(url)


class _S3Source(Source):
    """An object of S3 or a compatible store.

    The ETag of an object that was uploaded in one part is the MD5 of its bytes; that of a multipart
    upload has a dash. With some kinds of encryption, or other vendors, 32 digits may be no MD5.
    Then two transfers that agree are accepted, and the bucket's ETags are distrusted.
    """

    def __init__(self, url: str, place: Place, stores: ObjectStores) -> None:
        self._fs = place.fs
        self._place = place
        self._bucket, self._key, self._object_version = _split_s3(url)
        if not self._key:
            raise RowError(ErrorCode.FETCH_NOT_FOUND, "found a bucket, expected an object in it")
        self._stores = stores

    @contextmanager
    def open(
        self, start: int, stop: int | None, version: str | None, deadline: Deadline
    ) -> Iterator[RangeReply]:
        arguments: dict[str, Any] = {"Bucket": self._bucket, "Key": self._key}
        if start or stop is not None:
            arguments["Range"] = f"bytes={start}-{'' if stop is None else stop - 1}"
        if version is not None:
            arguments["IfMatch"] = version
        if self._object_version:
            arguments["VersionId"] = self._object_version
        timeout = max(deadline.left_s, 0.001)
        response = self._fs.call_s3("get_object", timeout=timeout, **arguments)
        try:
            yield self._reply(response, start, deadline)
        finally:
            response["Body"].close()

    def _reply(self, response: dict[str, Any], requested: int, deadline: Deadline) -> RangeReply:
        etag = response.get("ETag")
        length = int(response["ContentLength"])
        content_range = _RANGE.fullmatch(response.get("ContentRange") or "")
        start, total = 0, length
        if content_range is not None:
            start, last, total = map(int, content_range.groups())
            if start != requested:
                raise ContentChangedError("got another part of the object than was requested")
            length = last + 1 - start
        return RangeReply(
            start,
            total,
            supports_ranges=content_range is not None,
            chunks=self._chunks(response["Body"], length, deadline),
            version=etag,
            digest=self._digest(etag, response),
            is_digest_certain=False,
        )

    def _chunks(self, body: Any, length: int, deadline: Deadline) -> Iterator[bytes]:
        received = 0
        while received < length:
            timeout = max(deadline.left_s, 0.001)
            count = min(_CHUNK_BYTES, length - received)
            chunk = sync(self._fs.loop, body.read, count, timeout=timeout)
            if not chunk:
                raise IncompleteError(f"got {received} of {length} bytes")
            received += len(chunk)
            yield chunk

    def _digest(self, etag: str | None, response: dict[str, Any]) -> tuple[str, bytes] | None:
        digits = (etag or "").strip('"').lower()
        encrypted = response.get("SSECustomerAlgorithm") or (
            response.get("ServerSideEncryption") not in (None, "AES256")
        )
        if encrypted or not _MD5.fullmatch(digits) or self._bucket in self._stores.distrusted:
            return None
        return "md5", bytes.fromhex(digits)

    def renew(self) -> bool:
        storage.renew(self._place)
        return True

    def distrust_digest(self) -> None:
        with self._stores.mutex:
            self._stores.distrusted.add(self._bucket)


class _FsspecSource(Source):
    """An object of any other store whose file system reports its size and reads ranges."""

    def __init__(self, url: str) -> None:
        self._url = url
        self._place = storage.resolve(url)
        self._info: dict[str, Any] | None = None

    @contextmanager
    def open(
        self, start: int, stop: int | None, version: str | None, deadline: Deadline
    ) -> Iterator[RangeReply]:
        if self._info is None or version is None:
            self._info = self._read_info(deadline)
        size = int(self._info["size"])
        end = size if stop is None else min(stop, size)
        data = b""
        if end > start:
            data = bytes(self._call("cat_file", deadline, start=start, end=end))
        if len(data) > end - start:
            raise IncompleteError(f"got {len(data)} bytes of {end - start}")
        digest = _stated_md5(self._info)
        yield RangeReply(start, size, True, iter((data,)), _version(self._info), digest)

    def check_unchanged(self, version: str | None, deadline: Deadline) -> None:
        if _version(self._read_info(deadline)) != version:
            raise ContentChangedError("the object changed while it was read")

    def renew(self) -> bool:
        self._place = storage.renew(self._place)
        return True

    def _read_info(self, deadline: Deadline) -> dict[str, Any]:
        info: dict[str, Any] = self._call("info", deadline)
        if info.get("type") == "directory":
            raise FileNotFoundError(self._place.path)
        return info

    def _call(self, name: str, deadline: Deadline, **arguments: Any) -> Any:
        fs = self._place.fs
        if getattr(fs, "async_impl", False):  # other file systems take no timeout
            arguments["timeout"] = max(deadline.left_s, 0.001)
        return getattr(fs, name)(self._place.path, **arguments)


def _split_s3(url: str) -> tuple[str, str, str | None]:
    """Returns bucket, key and version. A key may hold anything, also slashes at its ends."""
    path = url.partition("://")[2]
    version = _VERSION.search(path)
    path = path if version is None else path[: version.start()]
    match = _ACCESS_POINT.match(path)
    end = match.end() if match else len(path.partition("/")[0])
    return path[:end], path[end + 1 :], version and version[1]


def _version(info: dict[str, Any]) -> str:
    """All fields of fsspec's `info` that differ between two contents of one name."""
    fields = (*VERSION_FIELDS, *TIME_FIELDS, "size")
    return "\n".join(f"{field}={info[field]}" for field in fields if info.get(field) is not None)


def _stated_md5(info: dict[str, Any]) -> tuple[str, bytes] | None:
    """Google's md5Hash (base64) or Azure's content_md5 (bytes)."""
    stated = info.get("md5Hash") or (info.get("content_settings") or {}).get("content_md5")
    try:
        digest = base64.b64decode(stated) if isinstance(stated, str) else bytes(stated or b"")
    except (binascii.Error, TypeError, ValueError):
        return None
    return ("md5", digest) if len(digest) == 16 else None

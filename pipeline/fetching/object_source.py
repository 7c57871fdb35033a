"""Turns a URL of an object store into requests for its bytes, through fsspec's file systems.

S3 and its likes are asked by get_object, whose one answer has the bytes, the size and the ETag;
other stores by what all fsspec file systems can do. How requests are tried again is not known: the
libraries' own retries are off where they can be, or each would multiply the other.
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
from mediamill.pipeline.storage.storage import Place

_PIECE = 1024 * 1024
_MD5 = re.compile(r"[0-9a-f]{32}", re.ASCII)
_RANGE = re.compile(r"bytes (\d{1,18})-(\d{1,18})/(\d{1,18})", re.ASCII)
_S3 = ("s3", "s3a")
_S3_SETTINGS = {
    "config_kwargs": {
        "retries": {"total_max_attempts": 1},
        "max_pool_connections": 64,
        "connect_timeout": 10,
        "read_timeout": 20,
    }
}


class ObjectStores:
    """What this process has learnt of the stores it reads from. Threads share it."""

    def __init__(self) -> None:
        self.distrusted: set[str] = set()  # buckets whose ETags are no checksums
        self.mutex = threading.Lock()

    def source(self, url: str) -> Source:
        """The object at `url`. Raises JobError when nothing here can read that kind of URL."""
        if storage.scheme(url) in _S3:
            place = storage.resolve(url, **_S3_SETTINGS)
            place.fs.retries = 1
            return _S3Source(place, self)
        return _ObjectSource(url)


class _S3Source:
    """An object of S3 or its likes.

    The ETag of an object that was uploaded in one piece is the MD5 of its bytes; one of several
    pieces has a dash. With some encryption or another maker than AWS it may be 32 digits and no
    MD5: then two readings that agree are right, and the bucket's ETags are not looked at any more.
    """

    def __init__(self, place: Place, stores: ObjectStores) -> None:
        self._fs = place.fs
        self._place = place
        self._bucket, self._key, self._object_version = self._fs.split_path(place.path)
        self._stores = stores

    @contextmanager
    def open(
        self, start: int, stop: int | None, version: str | None, deadline: Deadline
    ) -> Iterator[RangeReply]:
        asked: dict[str, Any] = {"Bucket": self._bucket, "Key": self._key}
        if start or stop is not None:
            asked["Range"] = f"bytes={start}-{'' if stop is None else stop - 1}"
        if version is not None:
            asked["IfMatch"] = version
        if self._object_version:
            asked["VersionId"] = self._object_version
        found = self._fs.call_s3("get_object", timeout=max(deadline.left_s, 0.001), **asked)
        try:
            yield self._answer(found, start, deadline)
        finally:
            found["Body"].close()

    def _answer(self, found: dict[str, Any], asked: int, deadline: Deadline) -> RangeReply:
        etag = found.get("ETag")
        length = int(found["ContentLength"])
        stated = _RANGE.fullmatch(found.get("ContentRange") or "")
        if stated is None:
            start, total = 0, length
        else:
            start, last, total = (int(number) for number in stated.groups())
            if start != asked:
                raise ContentChangedError("got another part of the object than was asked for")
            length = last + 1 - start
        pieces = self._pieces(found["Body"], length, deadline)
        digest = self._digest(etag, found)
        return RangeReply(start, total, stated is not None, pieces, etag, digest, certain=False)

    def _pieces(self, body: Any, length: int, deadline: Deadline) -> Iterator[bytes]:
        got = 0
        while got < length:
            left = max(deadline.left_s, 0.001)
            piece = sync(self._fs.loop, body.read, min(_PIECE, length - got), timeout=left)
            if not piece:
                raise IncompleteError(f"got {got} of {length} bytes")
            got += len(piece)
            yield piece

    def _digest(self, etag: str | None, found: dict[str, Any]) -> tuple[str, bytes] | None:
        plain = (etag or "").strip('"').lower()
        encrypted = found.get("ServerSideEncryption") not in (None, "AES256")
        encrypted = encrypted or bool(found.get("SSECustomerAlgorithm"))
        if encrypted or not _MD5.fullmatch(plain) or self._bucket in self._stores.distrusted:
            return None
        return "md5", bytes.fromhex(plain)

    def confirm(self, version: str | None, deadline: Deadline) -> None:
        """Each request named the version."""

    def renew(self) -> bool:
        storage.renew(self._place)
        return True

    def distrust_digest(self) -> None:
        with self._stores.mutex:
            self._stores.distrusted.add(self._bucket)


class _ObjectSource:
    """An object of any other store, whose file system can tell its size and read a range."""

    def __init__(self, url: str) -> None:
        self._url = url
        self._place = storage.resolve(url)
        self._facts: dict[str, Any] | None = None

    @contextmanager
    def open(
        self, start: int, stop: int | None, version: str | None, deadline: Deadline
    ) -> Iterator[RangeReply]:
        if self._facts is None or version is None:
            self._facts = self._info(deadline)
        size = int(self._facts["size"])
        end = size if stop is None else min(stop, size)
        data = b""
        if end > start:
            data = bytes(self._call("cat_file", deadline, start=start, end=end))
        if len(data) > end - start:
            raise IncompleteError(f"got {len(data)} bytes of {end - start}")
        digest = _stated_md5(self._facts)
        yield RangeReply(start, size, True, iter((data,)), _version(self._facts), digest)

    def confirm(self, version: str | None, deadline: Deadline) -> None:
        if _version(self._info(deadline)) != version:
            raise ContentChangedError("the object changed while it was read")

    def renew(self) -> bool:
        self._place = storage.renew(self._place)
        return True

    def distrust_digest(self) -> None:
        """Stated digests are certain."""

    def _info(self, deadline: Deadline) -> dict[str, Any]:
        facts: dict[str, Any] = self._call("info", deadline)
        if facts.get("type") == "directory":
            raise FileNotFoundError(self._place.path)
        return facts

    def _call(self, name: str, deadline: Deadline, **arguments: Any) -> Any:
        fs = self._place.fs
        if getattr(fs, "async_impl", False):  # others know no timeout but their library's
            arguments["timeout"] = max(deadline.left_s, 0.001)
        return getattr(fs, name)(self._place.path, **arguments)


def _version(facts: dict[str, Any]) -> str:
    """What tells one content of a name from the next, by the names of several stores."""
    names = ("etag", "ETag", "generation", "blob_id", "mtime", "last_modified", "updated", "size")
    return "\n".join(f"{name}={facts[name]}" for name in names if facts.get(name) is not None)


def _stated_md5(facts: dict[str, Any]) -> tuple[str, bytes] | None:
    """Google's md5Hash (base64) or Azure's content_md5 (bytes)."""
    found = facts.get("md5Hash") or (facts.get("content_settings") or {}).get("content_md5")
    try:
        value = base64.b64decode(found) if isinstance(found, str) else bytes(found or b"")
    except (binascii.Error, TypeError, ValueError):
        return None
    return ("md5", value) if len(value) == 16 else None

"""Turns a medium, in memory or in a file, into one whole that can be read in parts.

What its bytes are is not known here. A file is only ever read through the handle that is opened
here, so that nothing behind it learns its name, or could ask for another one.
"""

import hashlib
import io
import stat
import time
from pathlib import Path
from types import TracebackType
from typing import BinaryIO, TypeAlias

from mediamill.model.errors import MediaError

_HEAD = 4096  # bytes that tell what a file is
# Files that were changed less than this before they are looked at may be changed again without
# another time of change: systems count it in steps of up to 10 ms.
_STEP_NS = 20_000_000

Identity: TypeAlias = tuple[int, ...]


class MediaFile:
    """The bytes of one medium. size: how many there are.

    identity: of a file, equal only to that of the same file with the same bytes; None where that
    cannot be told.
    """

    def __init__(self, data: bytes | Path, size: int, identity: Identity | None = None) -> None:
        """Use `of`."""
        self._data = data
        self.size = size
        self.identity = identity

    @classmethod
    def of(cls, source: "Source") -> "MediaFile":
        """Of bytes, or of the file at a path, which is not read yet.

        Raises OSError for a file that is not there, MediaError decode_unsupported for a path that
        is no plain file.
        """
        if isinstance(source, MediaFile):
            return source
        if isinstance(source, Path):
            facts = source.stat()
            # A pipe or a device could be read for ever.
            if not stat.S_ISREG(facts.st_mode):
                raise MediaError("decode_unsupported", "found a folder or device, expected a file")
            changed = facts.st_mtime_ns, facts.st_ctime_ns
            identity: Identity | None = None
            if time.time_ns() - max(changed) > _STEP_NS:
                identity = (facts.st_dev, facts.st_ino, facts.st_size, *changed)
            return cls(source, facts.st_size, identity)
        data = source if isinstance(source, bytes) else bytes(source)
        return cls(data, len(data))

    def open(self) -> "Handle":
        """A new handle on the bytes, at their beginning."""
        if isinstance(self._data, bytes):
            return Handle(io.BytesIO(self._data))
        return Handle(self._data.open("rb"))

    def head(self) -> bytes:
        """The first bytes, enough to tell a format."""
        with self.open() as handle:
            return handle.read(_HEAD)

    def whole(self, max_bytes: int, label: str) -> bytes:
        """All bytes at once. label: names the medium in sentences.

        Raises MediaError decode_too_large, before memory is taken.
        """
        if self.size > max_bytes:
            raise MediaError(
                "decode_too_large",
                f"the {label} is {self.size} bytes long; the limit is {max_bytes}",
            )
        if isinstance(self._data, bytes):
            return self._data
        with self.open() as handle:
            return handle.read(self.size)

    def sha256(self) -> str:
        """Of all bytes, in hex."""
        if isinstance(self._data, bytes):
            return hashlib.sha256(self._data).hexdigest()
        with self._data.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()


Source: TypeAlias = bytes | bytearray | memoryview | Path | MediaFile


class Handle:
    """A place in the bytes of a medium, to read from: what the video library wants of a file."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file

    def __enter__(self) -> "Handle":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._file.close()

    def read(self, count: int) -> bytes:
        """At most `count` bytes; none at the end."""
        return self._file.read(max(0, count))

    def seek(self, place: int, whence: int = 0) -> int:
        """Goes to a place; returns where that is, or -1 for one that cannot be.

        Damaged files ask for such places, and an exception would pass through the library's C code.
        """
        try:
            return self._file.seek(place, whence)
        except (OSError, ValueError, OverflowError):
            return -1

    def tell(self) -> int:
        """Bytes before this place."""
        return self._file.tell()

    def at(self, place: int, count: int) -> bytes:
        """So many bytes from a place on, fewer or none at the end."""
        self._file.seek(place)
        return self._file.read(count)

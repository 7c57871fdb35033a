"""Gives access to the bytes of a medium, in memory or in a file, whole or in parts.

Decoders get handles and never a file's name, so they cannot open another file beside it.
"""

import hashlib
import io
import stat
import time
from pathlib import Path
from typing import BinaryIO, TypeAlias

from mediamill.model.errors import MediaError

_SIGNATURE_BYTES = 4096  # enough to detect a file's format
# File systems count times in steps of up to 10 ms: a file that changed less than this before it is
# looked at may change again without a new modification time.
_MTIME_STEP_NS = 20_000_000

FileIdentity: TypeAlias = tuple[int, ...]


class MediaFile:
    """The bytes of one medium, `size` in number.

    identity: equal for the same file with the same bytes only; None for bytes in memory and for a
        file that changed a moment ago.
    """

    def __init__(self, data: bytes | Path, size: int, identity: FileIdentity | None = None) -> None:
        """Use `of` instead."""
        self._data, self.size, self.identity = data, size, identity

    @classmethod
    def of(cls, source: "Source") -> "MediaFile":
        """Wraps bytes, or the file at a path, which is not read yet.

        Raises OSError for a missing file, MediaError decode_unsupported for a folder or device.
        """
        if isinstance(source, MediaFile):
            return source
        if isinstance(source, Path):
            status = source.stat()
            # A pipe or a device may never end.
            if not stat.S_ISREG(status.st_mode):
                raise MediaError("decode_unsupported", "found a folder or device, expected a file")
            changed = status.st_mtime_ns, status.st_ctime_ns
            identity = (status.st_dev, status.st_ino, status.st_size, *changed)
            is_settled = time.time_ns() - max(changed) > _MTIME_STEP_NS
            return cls(source, status.st_size, identity if is_settled else None)
        data = bytes(source)  # no copy of bytes
        return cls(data, len(data))

    def open(self) -> "FileHandle":
        """Opens a new handle at the first byte."""
        if isinstance(self._data, bytes):
            return FileHandle(io.BytesIO(self._data))
        return FileHandle(self._data.open("rb"))

    def signature(self) -> bytes:
        """Returns the first bytes, enough to detect the format."""
        with self.open() as handle:
            return handle.read(_SIGNATURE_BYTES)

    def tail(self, count: int) -> bytes:
        """Returns the last `count` bytes; fewer of a shorter file."""
        with self.open() as handle:
            return handle.read_at(max(0, self.size - count), count)

    def read_all(self, max_bytes: int, label: str) -> bytes:
        """Returns all bytes. Raises MediaError decode_too_large before memory is allocated."""
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
        """Returns the SHA-256 of all bytes, in hex."""
        if isinstance(self._data, bytes):
            return hashlib.sha256(self._data).hexdigest()
        with self._data.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()


Source: TypeAlias = bytes | bytearray | memoryview | Path | MediaFile


class FileHandle:
    """An open medium with a read position: the file object that PyAV reads from."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file

    def __enter__(self) -> "FileHandle":
        return self

    def __exit__(self, *error: object) -> None:
        self._file.close()

    def read(self, count: int) -> bytes:
        """Returns at most `count` bytes; none at the end."""
        return self._file.read(max(0, count))

    def seek(self, offset: int, whence: int = 0) -> int:
        """Moves the position and returns it; -1 for an impossible offset, as in damaged files.

        An exception would pass through FFmpeg's C code.
        """
        try:
            return self._file.seek(offset, whence)
        except (OSError, ValueError, OverflowError):
            return -1

    def tell(self) -> int:
        """Returns the position, in bytes."""
        return self._file.tell()

    def read_at(self, offset: int, count: int) -> bytes:
        """Returns `count` bytes from an offset on; fewer or none at the end."""
        self._file.seek(offset)
        return self._file.read(count)

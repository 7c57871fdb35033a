"""Reads parts of a large file, local or remote, as a Python file that reads ahead a little."""

import io
import os
from typing import Any

from mediamill.pipeline.storage import storage
from mediamill.pipeline.storage.storage import Place
from mediamill.schemas.errors import JobError

_LOCAL_WINDOW, _REMOTE_WINDOW = 16 * 1024, 64 * 1024
_FAR_WINDOW = 4 * 1024  # after a larger gap than a window: headers of large members
_MAX_READ = 16 * 1024 * 1024  # headers are small: a larger one is a lie


class TooLongError(ValueError):
    """A header claims to be longer than any sensible one."""


class RandomAccessFile(io.RawIOBase):
    """A file whose parts are read by range requests. bytes_read, requests: counted for tests.

    Raises JobError if the file cannot be opened, OSError while it is read.
    """

    def __init__(self, place: Place, max_read: int = _MAX_READ) -> None:
        super().__init__()
        self._place, self._max_read = place, max_read
        self._window = _LOCAL_WINDOW if place.is_local else _REMOTE_WINDOW
        self._descriptor = -1
        try:
            if place.is_local:
                self._descriptor = os.open(place.path, os.O_RDONLY | os.O_CLOEXEC)
                self.size = os.fstat(self._descriptor).st_size
            else:
                info: dict[str, Any] = storage.with_retries(place, lambda fs: fs.info(place.path))
                self.size = int(info["size"])
        except Exception as error:  # each storage raises errors of its own
            reason = storage.redact_text(str(error)).split("\n")[0]
            raise JobError(
                f"{storage.redact(place.url)}: the file cannot be read: {reason}"
            ) from error
        self._offset = self._start = self._end = 0  # of the caller, and of what is in memory
        self._data = b""
        self.bytes_read = self.requests = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._offset

    def seek(self, offset: int, whence: int = 0) -> int:
        base = (0, self._offset, self.size)[whence]
        if base + offset < 0:
            raise ValueError("found a negative offset")
        self._offset = base + offset
        return self._offset

    def read(self, size: int = -1) -> bytes:
        left = max(0, self.size - self._offset)
        size = left if size is None or size < 0 else min(size, left)
        if size > self._max_read:
            raise TooLongError(f"found a header of {size} bytes, expected at most {self._max_read}")
        inside = self._offset - self._start
        if not 0 <= inside <= inside + size <= len(self._data):
            # A little before the offset, too: tarfile looks at the byte before a header.
            self._start = max(0, self._offset - 1)
            inside = self._offset - self._start
            gap = self._start - self._end
            window = self._window if 0 <= gap <= self._window else _FAR_WINDOW
            self._data = self._fetch(self._start, inside + max(size, window))
            self._end = self._start + len(self._data)
        data = self._data[inside : inside + size]
        self._offset += len(data)
        return data

    def _fetch(self, start: int, count: int) -> bytes:
        stop = min(start + count, self.size)
        if start >= stop:
            return b""
        self.requests += 1
        self.bytes_read += stop - start
        if self._place.is_local:
            return os.pread(self._descriptor, stop - start, start)
        path = self._place.path
        return bytes(
            storage.with_retries(self._place, lambda fs: fs.cat_file(path, start=start, end=stop))
        )

    def close(self) -> None:
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1
        super().close()

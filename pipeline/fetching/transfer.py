"""Transfers a whole content from a source that serves byte ranges, in spite of faults.

Resumes an interrupted request at the byte where it broke, fetches several ranges of a large content
at once, and starts again when the content has changed. Checks lengths, and checksums that the
source states.
"""

import threading
from collections.abc import Iterator
from concurrent.futures import FIRST_EXCEPTION, Executor, Future, wait
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from typing import Protocol

from mediamill.pipeline.fetching.content import FetchedContent, FetchedMedium
from mediamill.pipeline.storage.retries import (
    Backoff,
    ContentChangedError,
    Deadline,
    FetchFailure,
    IncompleteError,
    classify_error,
)
from mediamill.schemas.errors import RowError

RANGE_BYTES = 8 * 1024 * 1024
_PARALLEL_RANGES = 4  # of one content
_MAX_STARTS = 3  # of a content that changes, or arrives with a wrong checksum


@dataclass
class RangeReply:
    """The response to one request for a byte range: its bytes in `chunks`.

    start: offset of the first byte in the content.
    total: size of the content in bytes; None if the source does not report it.
    supports_ranges: whether the source honored the range, so that further ones can be requested.
    version: identifies this content (an ETag, for example).
    digest: algorithm and value of the checksum of the whole content.
    is_digest_certain: False if `digest` may be something other than a checksum.
    """

    start: int
    total: int | None
    supports_ranges: bool
    chunks: Iterator[bytes]
    version: str | None = None
    digest: tuple[str, bytes] | None = None
    is_digest_certain: bool = True


class Source(Protocol):
    """One content in a storage."""

    def open(
        self, start: int, stop: int | None, version: str | None, deadline: Deadline
    ) -> AbstractContextManager[RangeReply]:
        """Requests the bytes from `start` to `stop` (None: to the end).

        The reply may end before `stop` only where the content ends. (0, None) requests the content
        without a range. Raises ContentChangedError if the content no longer has `version`; and
        whatever its library raises.
        """

    def check_unchanged(self, version: str | None, deadline: Deadline) -> None:
        """Called after several requests. Raises ContentChangedError if the content has changed.

        Needs to do something only if `open` does not check the version.
        """
        return

    def renew(self) -> bool:
        """Obtains new credentials when the old ones have expired; False if that is impossible."""
        return False

    def distrust_digest(self) -> None:
        """Called when an uncertain digest was wrong: two transfers agreed with each other only."""
        return


def transfer(
    source: Source,
    content: FetchedContent,
    deadline: Deadline,
    backoff: Backoff,
    executor: Executor,
) -> FetchedMedium:
    """Fetches the whole content. executor: runs the requests for ranges after the first.

    Raises what the last attempt raised; RowError if the content is too large.
    """
    rejected: bytes | None = None  # digest of a complete transfer that differs from the stated one
    for start in range(1, _MAX_STARTS + 1):
        run = _Transfer(source, content, deadline, backoff)
        try:
            size = run.run(executor if start == 1 else None)
            _check_digest(run.reported, content, size, rejected, source)
            return content.finish(size)
        except (ContentChangedError, _WrongDigestError) as error:
            if isinstance(error, _WrongDigestError):
                rejected = error.digest
            if start == _MAX_STARTS:
                raise
            content.reset()
            run.wait(start, classify_error(error), error)
    raise AssertionError("the last start returns or raises")


class _WrongDigestError(IncompleteError):
    def __init__(self, algorithm: str, digest: bytes) -> None:
        super().__init__(f"the received bytes do not match the stated {algorithm} checksum")
        self.digest = digest


def _check_digest(
    reply: RangeReply, content: FetchedContent, size: int, rejected: bytes | None, source: Source
) -> None:
    """Raises _WrongDigestError. An uncertain digest is ignored if two transfers agree."""
    if reply.digest is None:
        return
    algorithm, stated = reply.digest
    digest = content.digest(algorithm, size)
    if digest == stated:
        return
    if reply.is_digest_certain or digest != rejected:
        raise _WrongDigestError(algorithm, digest)
    source.distrust_digest()


class _Transfer:
    """One transfer from the start of the content. `reported`: its first reply, without bytes."""

    def __init__(
        self, source: Source, content: FetchedContent, deadline: Deadline, backoff: Backoff
    ) -> None:
        self._source, self._content = source, content
        self._deadline, self._backoff = deadline, backoff
        self._stopped = threading.Event()
        self._lock = threading.Lock()
        self._requests, self._renewed = 0, False
        self.reported = RangeReply(0, total=None, supports_ranges=False, chunks=iter(()))

    def run(self, executor: Executor | None) -> int:
        """Fetches the content and returns its size. executor: None for sequential requests."""
        first_stop = RANGE_BYTES if executor is not None else None
        size = self._read(0, first_stop)
        total = self.reported.total
        if total is None or size >= total:
            return size
        if executor is not None and self.reported.supports_ranges:
            self._read_parallel(size, total, executor)
        else:
            self._read(size, total)
        self._source.check_unchanged(self.reported.version, self._deadline)
        return total

    def wait(self, attempt: int, failure: FetchFailure, error: BaseException) -> None:
        """Pauses before the next attempt. Raises `error` if the deadline comes first."""
        seconds = self._backoff.pause_s(attempt, failure)
        if self._deadline.left_s <= 0:
            raise TimeoutError("took too long") from error
        if seconds >= self._deadline.left_s:
            raise error
        self._sleep(seconds)

    def _sleep(self, seconds: float) -> None:
        self._stopped.wait(seconds)

    def _read_parallel(self, start: int, total: int, executor: Executor) -> None:
        """Fetches [start, total): `_PARALLEL_RANGES` workers take one range after the other."""
        starts = iter(range(start, total, RANGE_BYTES))
        lock = threading.Lock()

        def work() -> None:
            while not self._stopped.is_set():
                with lock:
                    offset = next(starts, None)
                if offset is None:
                    return
                self._read(offset, min(offset + RANGE_BYTES, total), exclusive=False)

        count = min(_PARALLEL_RANGES, -(-(total - start) // RANGE_BYTES))
        workers: list[Future[None]] = [executor.submit(work) for _ in range(count)]
        try:
            wait(workers, return_when=FIRST_EXCEPTION)
            for worker in workers:
                if worker.done():
                    worker.result()
        finally:
            self._stopped.set()
            wait(workers)  # no worker may write to the content after this
            # An error's traceback refers to this frame, and would keep the data and its budget.
            workers.clear()
            del worker

    def _read(self, start: int, stop: int | None, exclusive: bool = True) -> int:
        """Fetches [start, stop), or to the end, with retries; returns the offset of its end.

        exclusive: nothing else is written meanwhile, so a reply may also start at 0.
        """
        offset, attempt, no_range = start, 0, stop is None
        while True:
            before, error = offset, None
            try:
                offset = self._request(
                    offset, None if no_range and offset == 0 else stop, exclusive
                )
            except _InterruptedRequestError as interrupted:
                error, offset = interrupted.cause, interrupted.offset
            if self._is_complete(offset, stop, error):
                return offset
            if offset > before:
                attempt = 0  # only attempts without progress are counted
            if self.reported.total is None:
                offset = start  # nothing shows that a second reply has the same content
            error = error or IncompleteError(f"got no more than {offset} bytes")
            failure = classify_error(error)
            if failure.kind == "range" and offset == 0 and not no_range:
                no_range = True  # some servers refuse ranges of empty or generated files
                continue
            if failure.kind == "expired" and self._renew():
                continue
            too_late = self._deadline.left_s <= 0
            if self._stopped.is_set() or not (failure.may_pass or too_late):
                raise error
            attempt += 1
            if attempt >= self._backoff.tries and not too_late:
                raise error
            self.wait(attempt, failure, error)

    def _is_complete(self, offset: int, stop: int | None, error: Exception | None) -> bool:
        total = self.reported.total
        if total is None:
            return error is None  # the end of the reply is the only sign of the end
        return offset >= (total if stop is None else min(stop, total))

    def _request(self, offset: int, stop: int | None, exclusive: bool) -> int:
        """Sends one request; returns the offset after its last byte.

        Raises _InterruptedRequestError.
        """
        try:
            self._deadline.check()
            with self._source.open(offset, stop, self.reported.version, self._deadline) as reply:
                offset = self._accept(reply, offset, exclusive)
                for chunk in reply.chunks:
                    self._content.write(offset, chunk)
                    offset += len(chunk)
                    self._deadline.check()
                    if self._stopped.is_set():
                        break
        except (ContentChangedError, RowError):
            raise
        except Exception as error:
            if classify_error(error).kind == "changed":  # a library's exception for it
                raise ContentChangedError("the file changed while it was read") from error
            raise _InterruptedRequestError(error, offset) from error
        return offset

    def _accept(self, reply: RangeReply, offset: int, exclusive: bool) -> int:
        """Checks a reply before its bytes are used; returns the offset of its first byte."""
        with self._lock:
            self._requests += 1
            if self._requests > 1:
                first = self.reported
                same = reply.version == first.version and reply.total == first.total
                if not same or reply.start not in (offset, 0):
                    raise ContentChangedError("the file changed while it was read")
                if reply.start != offset and not exclusive:
                    raise ContentChangedError("the server no longer honors range requests")
                return reply.start
            if reply.start != offset:
                raise IncompleteError("got another range than was requested")
            self.reported = replace(reply, chunks=iter(()))
        if reply.total is not None:
            self._content.expect(reply.total)
        return offset

    def _renew(self) -> bool:
        with self._lock:
            if self._renewed:
                return False
            self._renewed = True
        return self._source.renew()


class _InterruptedRequestError(Exception):
    """A request that failed after it had brought all bytes before `offset`."""

    def __init__(self, cause: Exception, offset: int) -> None:
        super().__init__()
        self.cause, self.offset = cause, offset

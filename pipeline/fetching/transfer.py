"""Turns a source that answers requests for ranges into a whole content, through faults.

A request that breaks is tried again from the byte where it broke; large contents come in several
ranges at once; a content that changed meanwhile is begun anew; lengths and, where the source states
them, checksums are compared. What a source is, a web server or an object store, is not known.
"""

import threading
from collections.abc import Iterator
from concurrent.futures import FIRST_EXCEPTION, Executor, Future, wait
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
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
_PARALLEL = 4  # ranges of one content at once
_BEGINNINGS = 3  # of a content that changes, or comes with wrong bytes


@dataclass
class RangeReply:
    """start: the first byte's place in the content. total: bytes of the content, None when the
    source does not say. ranged: the source would have left out bytes. digest: algorithm and value
    of the whole content's; `certain` when it is known to be one.
    """

    start: int
    total: int | None
    ranged: bool
    pieces: Iterator[bytes]
    version: str | None = None
    digest: tuple[str, bytes] | None = None
    certain: bool = True


class Source(Protocol):
    """One content, somewhere."""

    def open(
        self, start: int, stop: int | None, version: str | None, deadline: Deadline
    ) -> AbstractContextManager[RangeReply]:
        """Bytes from `start` on, at least to `stop` (None: to the end) unless fewer are there.

        (0, None) asks for no range at all. Raises ContentChangedError when the content is not the
        one of `version` any more; whatever its library raises.
        """

    def confirm(self, version: str | None, deadline: Deadline) -> None:
        """After several requests for one content: raises ContentChangedError if it is another."""

    def renew(self) -> bool:
        """Makes new credentials, after old ones have expired; False where that cannot be."""

    def distrust_digest(self) -> None:
        """A digest that was not certain was none: two readings agreed with each other only."""


@dataclass
class _Facts:
    """What the answers have told of the content so far."""

    total: int | None = None
    ranged: bool = False
    version: str | None = None
    digest: tuple[str, bytes] | None = None
    certain: bool = True
    requests: int = 0
    renewed: bool = False
    lock: threading.Lock = field(default_factory=threading.Lock)


def transfer(
    source: Source,
    content: FetchedContent,
    deadline: Deadline,
    backoff: Backoff,
    threads: Executor,
) -> FetchedMedium:
    """The whole content. threads: for ranges beyond the first.

    Raises what the last try raised; RowError when the content is too large.
    """
    wrong: bytes | None = None  # digest of a whole reading that was not the stated one
    for beginning in range(_BEGINNINGS):
        one = _Transfer(source, content, deadline, backoff)
        try:
            size = one.run(threads if beginning == 0 else None)
            wrong = _check_digest(one.facts, content, size, wrong, source)
            return content.finish(size)
        except (ContentChangedError, _WrongDigestError) as error:
            if isinstance(error, _WrongDigestError):
                wrong = error.found
            if beginning + 1 == _BEGINNINGS:
                raise
            content.reset()
            one.wait(beginning + 1, classify_error(error), error)
    raise AssertionError("the last beginning returns or raises")


class _WrongDigestError(IncompleteError):
    def __init__(self, algorithm: str, found: bytes) -> None:
        super().__init__(f"the bytes that came differ from the stated {algorithm} checksum")
        self.found = found


def _check_digest(
    facts: _Facts, content: FetchedContent, size: int, before: bytes | None, source: Source
) -> bytes | None:
    if facts.digest is None:
        return None
    algorithm, stated = facts.digest
    found = content.digest(algorithm, size)
    if found == stated:
        return None
    if not facts.certain and found == before:
        source.distrust_digest()
        return None
    raise _WrongDigestError(algorithm, found)


class _Transfer:
    """One beginning."""

    def __init__(
        self, source: Source, content: FetchedContent, deadline: Deadline, backoff: Backoff
    ) -> None:
        self._source, self._content = source, content
        self._deadline, self._backoff = deadline, backoff
        self._stopped = threading.Event()
        self.facts = _Facts()

    def run(self, threads: Executor | None) -> int:
        """Fetches all; the size. threads: None asks for one thing after the other."""
        first = RANGE_BYTES if threads is not None else None
        size = self._read(0, first)
        total = self.facts.total
        if total is None or size >= total:
            return size
        if threads is not None and self.facts.ranged:
            self._read_parts(size, total, threads)
        else:
            self._read(size, total)
        self._source.confirm(self.facts.version, self._deadline)
        return total

    def wait(self, attempt: int, failure: FetchFailure, error: BaseException) -> None:
        """Pauses before the next try. Raises `error` when there is no time for it."""
        seconds = self._backoff.pause_s(attempt, failure)
        if self._deadline.left_s <= 0:
            raise TimeoutError("took too long") from error
        if seconds >= self._deadline.left_s:
            raise error
        self._sleep(seconds)

    def _sleep(self, seconds: float) -> None:
        self._stopped.wait(seconds)

    def _read_parts(self, start: int, total: int, threads: Executor) -> None:
        """The rest, in ranges: `_PARALLEL` workers take one after the other."""
        starts = iter(range(start, total, RANGE_BYTES))
        lock = threading.Lock()

        def work() -> None:
            while not self._stopped.is_set():
                with lock:
                    place = next(starts, None)
                if place is None:
                    return
                self._read(place, min(place + RANGE_BYTES, total), alone=False)

        count = min(_PARALLEL, -(-(total - start) // RANGE_BYTES))
        workers: list[Future[None]] = [threads.submit(work) for _ in range(count)]
        try:
            wait(workers, return_when=FIRST_EXCEPTION)
            for one in workers:
                if one.done():
                    one.result()
        finally:
            self._stopped.set()
            wait(workers)  # the content must not be written to by anyone after this
            # An error's traceback leads here: what it kept alive would stay in the budget.
            workers.clear()
            del one

    def _read(self, start: int, stop: int | None, alone: bool = True) -> int:
        """Fetches [start, stop), or to the end; where it ended. Tries again while there is hope.

        alone: nothing else is being written, so an answer may also begin at 0 instead.
        """
        place, attempt, whole = start, 0, stop is None
        while True:
            begun, error = place, None
            try:
                place = self._request(place, None if whole and place == 0 else stop, alone)
            except _Broken as broken:
                error, place = broken.cause, broken.place
            if self._is_complete(place, stop, error):
                return place
            if place > begun:
                attempt = 0  # each piece is a step on: only standing still is counted
            if self.facts.total is None:
                place = start  # nobody knows whether a second answer would go with the first
            error = error or IncompleteError(f"got no more than {place} bytes")
            failure = classify_error(error)
            if failure.kind == "range" and place == 0 and not whole:
                whole = True  # some servers know no ranges of what is empty, or made on the way
                continue
            if failure.kind == "expired" and self._renew():
                continue
            late = self._deadline.left_s <= 0
            if self._stopped.is_set() or not (failure.may_pass or late):
                raise error
            attempt += 1
            if attempt >= self._backoff.tries and not late:
                raise error
            self.wait(attempt, failure, error)

    def _is_complete(self, place: int, stop: int | None, error: Exception | None) -> bool:
        total = self.facts.total
        if total is None:
            return error is None  # the source has ended it, and nobody knows better
        return place >= (total if stop is None else min(stop, total))

    def _request(self, place: int, stop: int | None, alone: bool) -> int:
        """One request: the place after the last byte that it brought. Raises _Broken."""
        facts = self.facts
        try:
            self._deadline.check()
            with self._source.open(place, stop, facts.version, self._deadline) as answer:
                place = self._accept(answer, place, alone)
                for piece in answer.pieces:
                    self._content.write(place, piece)
                    place += len(piece)
                    self._deadline.check()
                    if self._stopped.is_set():
                        break
        except (ContentChangedError, RowError):
            raise
        except Exception as error:
            if classify_error(error).kind == "changed":  # in the words of some library
                raise ContentChangedError("the file changed while it was read") from error
            raise _Broken(error, place) from error
        return place

    def _accept(self, answer: RangeReply, place: int, alone: bool) -> int:
        """Looks at an answer before its bytes; the place of its first one."""
        facts = self.facts
        with facts.lock:
            facts.requests += 1
            if facts.requests > 1:
                same = answer.version == facts.version and answer.total == facts.total
                if not same or answer.start not in (place, 0):
                    raise ContentChangedError("the file changed while it was read")
                if answer.start != place and not alone:
                    raise ContentChangedError("the server has stopped to answer with ranges")
                return answer.start
            if answer.start != place:
                raise IncompleteError("got another range than was asked for")
            facts.total, facts.ranged, facts.version = answer.total, answer.ranged, answer.version
            facts.digest, facts.certain = answer.digest, answer.certain
        if answer.total is not None:
            self._content.expect(answer.total)
        return place

    def _renew(self) -> bool:
        with self.facts.lock:
            if self.facts.renewed:
                return False
            self.facts.renewed = True
        return self._source.renew()


class _Broken(Exception):
    """A request that failed after it had brought all bytes before `place`."""

    def __init__(self, cause: Exception, place: int) -> None:
        super().__init__()
        self.cause, self.place = cause, place

"""An index of the id hashes of a manifest: a log-structured merge (LSM) index of sorted segments.

With the index, a check need not read the ids of old files again. It sorts the hashes of new ids in
a `HashSorter` and writes them to a new, immutable segment below the output. A segment consists of
shards, by the highest bits of the hashes, and a metadata object that lists the rows that it covers.
Segments are a cache: only those that are consistent with the ledger are used, and the files are
read again where a segment is missing or damaged.
"""

import hashlib
import json
import os
import tempfile
import threading
import uuid
import weakref
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO

import numpy as np
import numpy.typing as npt

from mediamill.pipeline.ledger.state import KnownFile
from mediamill.pipeline.storage import storage
from mediamill.pipeline.storage.disk_room import needs_room
from mediamill.pipeline.storage.storage import Place

Hashes = npt.NDArray[np.uint64]

_VERSION = 1
_SHARD_HASHES = 2_000_000  # 16 MB; sorting and writing takes a few times as much memory
_THREADS = 4
_DIGEST_DIGITS = 32  # hexadecimal


class DamagedSegmentError(RuntimeError):
    """A shard is missing or corrupt. `segment` is the name of its segment."""

    def __init__(self, segment: str) -> None:
        super().__init__(f"segment {segment} of the ids' index is damaged")
        self.segment = segment


@dataclass(frozen=True)
class SegmentEntry:
    """Rows [start, stop) of the file `name`, which a segment covers.

    before, digest: of the file's ids up to start ("" for 0), and up to stop.
    """

    name: str
    start: int
    stop: int
    before: str
    digest: str


@dataclass(frozen=True)
class Segment:
    """Stored hashes in 2 ** bits shards. shards: the digest of each."""

    folder: Place
    name: str
    bits: int
    entries: tuple[SegmentEntry, ...]
    shards: tuple[str, ...]

    @property
    def rows(self) -> int:
        return sum(entry.stop - entry.start for entry in self.entries)

    def read(self, shard: int) -> Hashes:
        """Reads the hashes of one shard, ascending. Raises DamagedSegmentError."""
        try:
            data = storage.read(self.folder / _shard_name(self.name, shard))
        except FileNotFoundError as error:
            raise DamagedSegmentError(self.name) from error
        if _digest(data) != self.shards[shard]:
            raise DamagedSegmentError(self.name)
        return np.frombuffer(data, "<u8").astype(np.uint64, copy=False)


class HashSorter:
    """An external merge sort of the hashes of one check, in 2 ** bits buckets by highest bits.

    Each time that the buffer reaches the size of a shard, it is written as a sorted run to an
    unnamed temporary file, which disappears with the process. Threads may share it; buckets are
    complete when all hashes are added.

    width: 1 for plain hashes, [n]; more for hashes with further numbers, [n, width], which are
        sorted by the first column only.
    """

    def __init__(self, rows: int, max_bits: int = 64, width: int = 1) -> None:
        self._width, self._run_rows = width, max(1, _SHARD_HASHES // width)
        self.bits = min(max(0, (-(-rows // self._run_rows) - 1).bit_length()), max_bits)
        self.closed = False
        self._lock = threading.Lock()
        self._buffer: list[Hashes] = []  # what is in no run yet
        self._buffered = 0
        self._buckets: list[Hashes] = []  # the sorted buffer by bucket, while buckets are read
        self._file: IO[bytes] | None = None
        self._runs: list[npt.NDArray[np.int64]] = []  # byte offset of each bucket in each run

    def add(self, hashes: Hashes) -> None:
        with self._lock:
            self._buffer.append(hashes)
            self._buckets = []
            self._buffered += len(hashes)
            if self._buffered >= self._run_rows:
                self._write_run()

    def bucket(self, number: int) -> Hashes:
        """Merges one bucket of all runs; returns its hashes, ascending."""
        with self._lock:
            if not self._buckets:
                self._buckets = split_by_prefix(self._sorted(self._buffer), self.bits)
            parts = [self._buckets[number]]
        if self._file is not None:
            for run in self._runs:
                start, stop = run[number : number + 2].tolist()
                data = os.pread(self._file.fileno(), stop - start, start)
                parts.append(np.frombuffer(data, np.uint64).reshape(self._shape))
        return self._sorted(parts)

    def close(self) -> None:
        """Frees the memory and the temporary file."""
        self.closed = True
        self._buffer, self._buckets, self._runs = [], [], []
        if self._file is not None:
            self._file.close()

    def _write_run(self) -> None:
        if self._file is None:
            self._file = tempfile.TemporaryFile(buffering=0)  # noqa: SIM115 - see the next line
            weakref.finalize(self, self._file.close)
        start = self._file.tell()
        run = self._sorted(self._buffer)
        with needs_room(Path(tempfile.gettempdir()), "sorting the ids of the manifest (TMPDIR)"):
            left = memoryview(run.tobytes())
            while left:  # a nearly full disk takes a part without an error
                left = left[self._file.write(left) :]
        sizes = [part.nbytes for part in split_by_prefix(run, self.bits)]
        self._runs.append(start + np.cumsum([0, *sizes]))
        self._buffer, self._buffered = [], 0

    @property
    def _shape(self) -> tuple[int, ...]:
        return (-1,) if self._width == 1 else (-1, self._width)

    def _sorted(self, parts: Sequence[Hashes]) -> Hashes:
        hashes = np.concatenate([*parts, np.empty(0, np.uint64).reshape(0, *self._shape[1:])])
        if self._width > 1:
            return hashes[np.argsort(hashes[:, 0])]
        hashes.sort()
        return hashes


def split_by_prefix(hashes: Hashes, bits: int) -> list[Hashes]:
    """Splits hashes, [n] or [n, width], ascending, into 2 ** bits parts by their highest bits."""
    firsts = np.arange(1, 1 << bits, dtype=np.uint64) << np.uint64(64 - bits)
    return np.split(hashes, np.searchsorted(hashes if hashes.ndim == 1 else hashes[:, 0], firsts))


def write_segment(
    folder: Place,
    hashes: HashSorter,
    entries: Sequence[SegmentEntry],
    unmerged: Sequence[Segment],
) -> None:
    """Writes a segment durably, then removes all others except `unmerged`."""
    name = uuid.uuid4().hex

    def write_shard(shard: int) -> str:
        data = hashes.bucket(shard).astype("<u8", copy=False).tobytes()
        storage.put(folder / _shard_name(name, shard), data)
        return _digest(data)

    with ThreadPoolExecutor(_THREADS) as pool:
        shards = list(pool.map(write_shard, range(1 << hashes.bits)))
        covered = [asdict(entry) for entry in entries]
        head = {"version": _VERSION, "bits": hashes.bits}
        metadata = {**head, "entries": covered, "shards": shards}
        text = json.dumps(metadata, ensure_ascii=False).encode()
        storage.put(folder / f"{name}.json", _digest(text).encode() + text)
        live = {name, *(segment.name for segment in unmerged)}
        obsolete = [file for file in storage.list_files(folder) if file[: len(name)] not in live]
        list(pool.map(lambda file: storage.remove(folder / file), obsolete))


def load_segments(folder: Place) -> list[Segment]:
    """Returns the segments in a folder, without those whose metadata is damaged."""
    names = [name for name in storage.list_files(folder) if name.endswith(".json")]
    with ThreadPoolExecutor(_THREADS) as pool:
        segments = list(pool.map(lambda name: _load_segment(folder, name), names))
    return [segment for segment in segments if segment is not None]


def _load_segment(folder: Place, name: str) -> Segment | None:
    try:
        data = storage.read(folder / name)
    except FileNotFoundError:
        return None
    digest, text = data[:_DIGEST_DIGITS], data[_DIGEST_DIGITS:]
    if digest != _digest(text).encode():
        return None
    metadata = json.loads(text)
    if metadata["version"] != _VERSION:
        return None
    entries = tuple(SegmentEntry(**entry) for entry in metadata["entries"])
    shards = tuple(metadata["shards"])
    return Segment(folder, name.removesuffix(".json"), metadata["bits"], entries, shards)


def consistent_segments(
    segments: Sequence[Segment], known: Mapping[str, KnownFile]
) -> tuple[list[Segment], set[str]]:
    """Returns the segments that cover rows of the known files only, and no row twice; and the
    names of the files that they cover.

    A file that was renamed since has entries of its old name: the digest says what they cover.
    """
    candidates = sorted(segments, key=lambda segment: segment.rows, reverse=True)
    while True:
        by_end: dict[str, SegmentEntry] = {}
        for segment in candidates:  # of two segments that cover the same rows, the larger counts
            for entry in segment.entries:
                by_end.setdefault(entry.digest, entry)
        chains = {name: _entry_chain(file, by_end) for name, file in known.items()}
        used = {id(entry) for chain in chains.values() for entry in chain}
        consistent = [
            segment for segment in candidates if all(id(entry) in used for entry in segment.entries)
        ]
        if len(consistent) == len(candidates):
            return consistent, {name for name, chain in chains.items() if chain}
        candidates = consistent


def _entry_chain(file: KnownFile, by_end: Mapping[str, SegmentEntry]) -> list[SegmentEntry]:
    """The entries that together cover all rows of a file; empty if one is missing."""
    chain: list[SegmentEntry] = []
    digest, stop = file.digest, file.rows
    while stop:
        entry = by_end.get(digest)
        if entry is None or entry.stop != stop or entry.start >= stop:
            return []
        chain.append(entry)
        digest, stop = entry.before, entry.start
    return chain


def read_shards(shards: Iterable[tuple[Segment, int]]) -> Iterator[Hashes]:
    """Yields the hashes of each shard in order, and reads a few ahead in threads."""
    with ThreadPoolExecutor(_THREADS) as pool:
        pending: deque[Future[Hashes]] = deque()
        for segment, number in shards:
            pending.append(pool.submit(segment.read, number))
            if len(pending) > _THREADS:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()


def _shard_name(segment: str, shard: int) -> str:
    return f"{segment}-{shard:05}.hashes"


def _digest(data: bytes) -> str:
    return hashlib.blake2b(data, digest_size=_DIGEST_DIGITS // 2).hexdigest()

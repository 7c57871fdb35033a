"""Turns the hashes of ids into sorted shards: in a temporary file while a manifest is checked, and
below the output, so that a later check need not read the ids of old files again.

What is kept is a segment: shards by the highest bits of the hashes, and an object that says which
rows of which files they are of. Segments are a help and no truth: which of them to believe follows
from the ledger, and whoever misses one, or finds it damaged, reads the files instead. How ids are
hashed is not known here.
"""

import hashlib
import json
import os
import tempfile
import threading
import uuid
import weakref
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass
from typing import IO, TypeVar

import numpy as np
import numpy.typing as npt

from mediamill.pipeline.ledger.state import KnownFile
from mediamill.pipeline.storage import storage
from mediamill.pipeline.storage.storage import Place

Hashes = npt.NDArray[np.uint64]
_In = TypeVar("_In")
_Out = TypeVar("_Out")

_VERSION = 1
_SHARD_HASHES = 2_000_000  # 16 MB, and a few times that while they are sorted and written
_THREADS = 4
_DIGEST = 32  # hexadecimal digits


class DamagedError(RuntimeError):
    """A shard is not there, or not what was written. `segment` is its segment's name."""

    def __init__(self, segment: str) -> None:
        super().__init__(f"segment {segment} of the ids' index is damaged")
        self.segment = segment


@dataclass(frozen=True)
class Entry:
    """Rows start to stop of a file. before: digest of its ids up to start, "" for 0; digest: of
    those up to stop.
    """

    name: str
    start: int
    stop: int
    before: str
    digest: str


@dataclass(frozen=True)
class Segment:
    """Hashes that are kept, in 2 ** bits shards; shards: the digest of each."""

    folder: Place
    name: str
    bits: int
    entries: tuple[Entry, ...]
    shards: tuple[str, ...]

    @property
    def rows(self) -> int:
        return sum(entry.stop - entry.start for entry in self.entries)

    def read(self, shard: int) -> Hashes:
        """The hashes of one shard, ascending. Raises DamagedError."""
        try:
            data = storage.read(self.folder / _shard_name(self.name, shard))
        except FileNotFoundError as error:
            raise DamagedError(self.name) from error
        if _digest(data) != self.shards[shard]:
            raise DamagedError(self.name)
        return np.frombuffer(data, "<u8").astype(np.uint64, copy=False)


class Sorter:
    """The hashes of one check, in 2 ** bits buckets by their highest bits.

    What is more than one shard lies in a temporary file without a name, which is gone with the
    process. Threads may add at once; when all is added, buckets come out sorted.
    """

    def __init__(self, rows: int, most_bits: int = 64) -> None:
        self.bits = min(max(0, (-(-rows // _SHARD_HASHES) - 1).bit_length()), most_bits)
        self.closed = False
        self._lock = threading.Lock()
        self._added: list[Hashes] = []
        self._size = 0
        self._rest: list[Hashes] = []  # what is added and in no file, by bucket
        self._file: IO[bytes] | None = None
        self._runs: list[npt.NDArray[np.int64]] = []  # where in the file each bucket's part begins

    def add(self, hashes: Hashes) -> None:
        with self._lock:
            self._added.append(hashes)
            self._rest = []
            self._size += hashes.size
            if self._size >= _SHARD_HASHES:
                self._spill()

    def bucket(self, number: int) -> Hashes:
        """The hashes of one bucket, ascending."""
        with self._lock:
            if not self._rest:
                self._rest = cut(_sorted(self._added), self.bits)
            parts = [self._rest[number]]
        if self._file is not None:
            for run in self._runs:
                start, stop = run[number : number + 2].tolist()
                data = os.pread(self._file.fileno(), stop - start, start)
                parts.append(np.frombuffer(data, np.uint64))
        return _sorted(parts)

    def close(self) -> None:
        """Lets go of all hashes."""
        self.closed = True
        self._added, self._rest, self._runs = [], [], []
        if self._file is not None:
            self._file.close()

    def _spill(self) -> None:
        if self._file is None:
            self._file = tempfile.TemporaryFile(buffering=0)  # noqa: SIM115 - see the next line
            weakref.finalize(self, self._file.close)
        start = self._file.tell()
        ordered = _sorted(self._added)
        self._file.write(ordered.data)
        sizes = [part.nbytes for part in cut(ordered, self.bits)]
        self._runs.append(start + np.cumsum([0, *sizes]))
        self._added, self._size = [], 0


def _sorted(parts: Sequence[Hashes]) -> Hashes:
    found = np.concatenate([*parts, np.empty(0, np.uint64)])
    found.sort()
    return found


def cut(ordered: Hashes, bits: int) -> list[Hashes]:
    """Ascending hashes as 2 ** bits parts, by their highest bits."""
    if not bits:
        return [ordered]
    firsts = np.arange(1, 1 << bits, dtype=np.uint64) << np.uint64(64 - bits)
    return np.split(ordered, np.searchsorted(ordered, firsts))


def keep(
    folder: Place, hashes: Sorter, entries: Sequence[Entry], beside: Sequence[Segment]
) -> None:
    """Writes a segment, durable when this returns; of what was there only `beside` stays."""
    name = uuid.uuid4().hex

    def write(shard: int) -> str:
        data = hashes.bucket(shard).astype("<u8", copy=False).tobytes()
        storage.put(folder / _shard_name(name, shard), data)
        return _digest(data)

    with ThreadPoolExecutor(_THREADS) as pool:
        shards = list(pool.map(write, range(1 << hashes.bits)))
        listed = {
            "version": _VERSION,
            "bits": hashes.bits,
            "entries": [asdict(entry) for entry in entries],
            "shards": shards,
        }
        text = json.dumps(listed, ensure_ascii=False).encode()
        storage.put(folder / f"{name}.json", _digest(text).encode() + text)
        stay = {name, *(segment.name for segment in beside)}
        gone = [file for file in storage.list_files(folder) if file[: len(name)] not in stay]
        list(pool.map(lambda file: storage.remove(folder / file), gone))


def load(folder: Place) -> list[Segment]:
    """The segments that are there; damaged ones are left out."""
    names = [name for name in storage.list_files(folder) if name.endswith(".json")]
    with ThreadPoolExecutor(_THREADS) as pool:
        found = list(pool.map(lambda name: _load(folder, name), names))
    return [segment for segment in found if segment is not None]


def _load(folder: Place, name: str) -> Segment | None:
    try:
        data = storage.read(folder / name)
    except FileNotFoundError:
        return None
    digest, text = data[:_DIGEST], data[_DIGEST:]
    if digest != _digest(text).encode():
        return None
    listed = json.loads(text)
    if listed["version"] != _VERSION:
        return None
    entries = tuple(Entry(**entry) for entry in listed["entries"])
    name = name.removesuffix(".json")
    return Segment(folder, name, listed["bits"], entries, tuple(listed["shards"]))


def usable(segments: Sequence[Segment], known: Mapping[str, KnownFile]) -> list[Segment]:
    """Those that hold rows of the known files and no others, each row in one of them only."""
    left = sorted(segments, key=lambda segment: segment.rows, reverse=True)
    while True:
        by_end: dict[tuple[str, str], Entry] = {}
        for segment in left:  # where two segments hold the same rows, the larger one counts
            for entry in segment.entries:
                by_end.setdefault((entry.name, entry.digest), entry)
        chosen = {id(entry) for file in known.values() for entry in _chain(file, by_end)}
        sound = [one for one in left if all(id(entry) in chosen for entry in one.entries)]
        if len(sound) == len(left):
            return sound
        left = sound


def covered(segments: Sequence[Segment]) -> set[str]:
    """The names of the files whose rows `usable` segments hold."""
    return {entry.name for segment in segments for entry in segment.entries}


def _chain(file: KnownFile, by_end: Mapping[tuple[str, str], Entry]) -> list[Entry]:
    """The entries that make up all rows of the file, as it grew; empty when one is missing."""
    chain: list[Entry] = []
    digest, stop = file.digest, file.rows
    while stop:
        entry = by_end.get((file.name, digest))
        if entry is None or entry.stop != stop or entry.start >= stop:
            return []
        chain.append(entry)
        digest, stop = entry.before, entry.start
    return chain


def ahead(work: Callable[[_In], _Out], items: Iterable[_In]) -> Iterator[_Out]:
    """work(item) of each item in turn, a few of them begun before they are asked for."""
    with ThreadPoolExecutor(_THREADS) as pool:
        begun: deque[Future[_Out]] = deque()
        for item in items:
            begun.append(pool.submit(work, item))
            if len(begun) > _THREADS:
                yield begun.popleft().result()
        while begun:
            yield begun.popleft().result()


def _shard_name(segment: str, shard: int) -> str:
    return f"{segment}-{shard:05}.hashes"


def _digest(data: bytes) -> str:
    return hashlib.blake2b(data, digest_size=_DIGEST // 2).hexdigest()

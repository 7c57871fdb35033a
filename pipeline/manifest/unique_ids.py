"""Checks a manifest's ids in bounded memory: that none is null, and none occurs twice.

Unchanged files are not read, because the index (id_index.py) has their hashes. The ids of equal
64-bit hashes are read again and compared, so that a collision is not reported as a duplicate.
"""

import hashlib
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from mediamill.pipeline.ledger.state import KnownFile
from mediamill.pipeline.manifest import id_index
from mediamill.pipeline.manifest.batches import read_batches
from mediamill.pipeline.manifest.id_index import Hashes, HashSorter, Segment, SegmentEntry
from mediamill.pipeline.manifest.manifest import Manifest, ManifestFile
from mediamill.pipeline.storage import storage
from mediamill.pipeline.storage.storage import Place
from mediamill.schemas import columns as c
from mediamill.schemas.errors import JobError

_BATCH_ROWS = 8192  # read from one file at once: each id is an object of about 100 bytes
_READERS = 8  # files that are read in parallel
_BUFFER_BYTES = 4 << 20  # of a column; without it, a row group is read whole
_MAX_CANDIDATES = 1000  # hashes whose ids are compared
_SHOWN_IDS, _SHOWN_PLACES = 5, 3  # duplicates that the message names, and places of each


@dataclass(frozen=True)
class Digests:
    """Digests of one file's ids in order: of all rows, and of the rows that the ledger knows."""

    whole: str
    prefix: str | None


@dataclass(frozen=True)
class NewIds:
    """A segment that is to be added to the index in `folder`.

    hashes, entries: of the same rows; they include those of the compacted segments.
    unmerged: the segments that remain.
    """

    folder: Place
    hashes: HashSorter
    entries: tuple[SegmentEntry, ...]
    unmerged: tuple[Segment, ...]

    def save(self) -> None:
        """Writes the segment durably, once. Call it before the ledger records the files."""
        if self.entries and not self.hashes.closed:
            id_index.write_segment(self.folder, self.hashes, self.entries, self.unmerged)
        self.hashes.close()


class RewrittenError(RuntimeError):
    """Files do not begin with their known ids any more. `names` are theirs."""

    def __init__(self, names: Sequence[str]) -> None:
        super().__init__(f"{len(names)} files do not begin with the ids that they had")
        self.names = frozenset(names)


def check_ids(
    manifest: Manifest, known: Sequence[KnownFile], folder: Place
) -> tuple[tuple[KnownFile, ...], NewIds]:
    """Checks all ids; returns the manifest's files for the ledger, and the new ids for the index.

    known: what the ledger knows of files that the manifest still has. folder: of the index; it is
    only read.
    Raises JobError if an id is null or occurs twice, with ids and places, and RewrittenError if
    known files have changed in another way than by new rows at their end.
    """
    before = {file.name: file for file in known}
    damaged: set[str] = set()
    while True:
        try:
            return _Check(manifest, before, folder, damaged).run()
        except id_index.DamagedSegmentError as error:
            damaged.add(error.segment)  # the next attempt reads its files


class _Check:
    """One attempt, which does not use the damaged segments."""

    def __init__(
        self, manifest: Manifest, before: dict[str, KnownFile], folder: Place, damaged: set[str]
    ) -> None:
        self._manifest, self._before, self._folder = manifest, before, folder
        rows = {file.name: 0 for file in manifest.files} | {n: f.rows for n, f in before.items()}
        # Without new rows no ids need to be compared.
        self._has_new_rows = any(file.rows > rows[file.name] for file in manifest.files)
        segments: list[Segment] = []
        covered: set[str] = set()
        if self._has_new_rows and before:
            stored = id_index.load_segments(folder)
            sound = [segment for segment in stored if segment.name not in damaged]
            segments, covered = id_index.consistent_segments(sound, before)
        # By file, the index of the first row whose hash is not in the index.
        self._starts = {name: rows[name] if name in covered else 0 for name in rows}
        size = sum(file.rows - self._starts[file.name] for file in manifest.files)
        self._compacted, self._unmerged = _choose_compaction(segments, size)
        size += sum(segment.rows for segment in self._compacted)
        self._hashes = HashSorter(
            size, min((segment.bits for segment in self._unmerged), default=64)
        )

    def run(self) -> tuple[tuple[KnownFile, ...], NewIds]:
        read = [file for file in self._manifest.files if self._must_read(file)]
        with ThreadPoolExecutor(_READERS) as readers:
            digests = dict(zip((f.name for f in read), readers.map(self._read, read), strict=True))
        rewritten = [name for name, digest in digests.items() if self._is_rewritten(name, digest)]
        if rewritten:
            raise RewrittenError(rewritten)
        whole = {name: digest.whole for name, digest in digests.items()}
        files = tuple(
            KnownFile(f.name, f.rows, whole.get(f.name, f.digest or ""), f.version, f.row_groups)
            for f in self._manifest.files
        )
        entries: list[SegmentEntry] = []
        if self._has_new_rows:
            entries = [*self._entries(files)]
            for segment in self._compacted:
                entries += segment.entries
                for shard in range(len(segment.shards)):
                    self._hashes.add(segment.read(shard))
            candidates = self._duplicate_hashes()
            if candidates.size:
                _check_duplicates(self._manifest, candidates)
        new = NewIds(self._folder, self._hashes, tuple(entries), tuple(self._unmerged))
        return files, new

    def _must_read(self, file: ManifestFile) -> bool:
        return file.digest is None or (self._has_new_rows and file.rows > self._starts[file.name])

    def _read(self, file: ManifestFile) -> Digests:
        whole = hashlib.blake2b(digest_size=16)
        known = self._before.get(file.name)
        prefix = None if known is None or known.rows else whole.hexdigest()
        for start, ids in id_batches(file):
            hashes = hash_ids(ids)
            if known and prefix is None and known.rows <= start + hashes.size:
                hasher = whole.copy()
                hasher.update(hashes[: known.rows - start].tobytes())
                prefix = hasher.hexdigest()
            whole.update(hashes.tobytes())
            if self._has_new_rows:
                self._hashes.add(hashes[max(self._starts[file.name] - start, 0) :])
        return Digests(whole.hexdigest(), prefix)

    def _is_rewritten(self, name: str, digests: Digests) -> bool:
        known = self._before.get(name)
        return known is not None and digests.prefix != known.digest

    def _entries(self, files: Sequence[KnownFile]) -> Iterator[SegmentEntry]:
        for file in files:
            start = self._starts[file.name]
            if file.rows > start:
                digest = self._before[file.name].digest if start else ""
                yield SegmentEntry(file.name, start, file.rows, digest, file.digest)

    def _duplicate_hashes(self) -> Hashes:
        """Returns hashes that occur more than once, at most _MAX_CANDIDATES + 1."""
        duplicates = np.empty(0, np.uint64)
        for bucket in range(1 << self._hashes.bits):
            hashes = self._hashes.bucket(bucket)
            in_bucket = [duplicates, hashes[1:][hashes[1:] == hashes[:-1]]]
            shards = [
                (segment, shard)
                for segment in self._unmerged  # their shards are subsets of buckets
                for shard in _shards_of_bucket(bucket, segment.bits - self._hashes.bits)
            ]
            stored = id_index.read_shards(shards)
            in_bucket.extend(_intersection(hashes, old) for old in stored)
            duplicates = np.unique(np.concatenate(in_bucket))[: _MAX_CANDIDATES + 1]
            if duplicates.size > _MAX_CANDIDATES:
                break
        return duplicates


def _shards_of_bucket(bucket: int, finer: int) -> range:
    """The numbers of the shards of a bucket, if each bucket has 2 ** finer shards."""
    return range(bucket << finer, (bucket + 1) << finer)


def _choose_compaction(
    segments: Sequence[Segment], size: int
) -> tuple[list[Segment], list[Segment]]:
    """Chooses the segments to merge with `size` new hashes; returns these, and those that remain.

    After a compaction each segment is larger than all smaller ones together. So there are few, and
    a hash is written again only when its segment at least doubles in size.
    """
    compacted: list[Segment] = []
    unmerged = sorted(segments, key=lambda segment: segment.rows)
    while unmerged and unmerged[0].rows <= size:
        size += unmerged[0].rows
        compacted.append(unmerged.pop(0))
    return compacted, unmerged


def _intersection(left: Hashes, right: Hashes) -> Hashes:
    """The hashes in both arrays; both are ascending."""
    smaller, larger = sorted((left, right), key=len)
    positions = np.searchsorted(larger, smaller)
    inside = positions < larger.size
    common: Hashes = smaller[inside][larger[positions[inside]] == smaller[inside]]
    return common


def ids_digest(file: ManifestFile) -> str:
    """Returns the digest of the file's ids in order. Raises JobError as `id_batches`."""
    whole = hashlib.blake2b(digest_size=16)
    for _, ids in id_batches(file):
        whole.update(hash_ids(ids).tobytes())
    return whole.hexdigest()


def id_batches(file: ManifestFile) -> Iterator[tuple[int, pa.Array]]:
    """Yields batches of ids, each with the index of its first row.

    Raises JobError for a null, and for ids that cannot be read.
    """
    start = 0
    if not file.rows:
        return  # the columns of a table without rows do not count
    with (
        file.place.fs.open(file.place.path, "rb", cache_type="none") as source,
        pq.ParquetFile(source, buffer_size=_BUFFER_BYTES) as parquet,
    ):
        for batch in read_batches(parquet, file.place, _BATCH_ROWS, [c.ID]):
            ids = batch[c.ID]
            _check_texts(ids, start, file)
            if ids.null_count:
                row = start + pc.index(ids.is_null(), True).as_py()
                where = storage.redact(file.place.url)
                raise JobError(f"{where}: row {row}: found no id (null), expected one")
            yield start, ids.dictionary_decode() if pa.types.is_dictionary(ids.type) else ids
            start += len(ids)


def _check_texts(ids: pa.Array, start: int, file: ManifestFile) -> None:
    """Raises JobError for an id that is not UTF-8."""
    try:
        ids.validate(full=True)
    except pa.ArrowInvalid:
        for row, value in enumerate(ids, start):
            try:
                value.as_py()
            except UnicodeDecodeError as error:
                raise JobError(
                    f"{storage.redact(file.place.url)}: row {row}: column '{c.ID}': found a text "
                    f"that is not UTF-8 ({error.object[:40]!r}), expected UTF-8"
                ) from error


def hash_ids(ids: pa.Array) -> Hashes:
    """Returns a 64-bit hash of each id, the same in every file; no two integers share one."""
    hashes: Hashes = pd.util.hash_array(plain_ids(ids), categorize=False)
    return hashes


def plain_ids(ids: pa.Array) -> npt.NDArray[Any]:
    """Returns ids as int64 or as Python strings, so that an id is the same in each file."""
    kind = np.int64 if pa.types.is_integer(ids.type) else object
    values: npt.NDArray[Any] = ids.to_numpy(zero_copy_only=False).astype(kind)
    return values


def _check_duplicates(manifest: Manifest, candidates: Hashes) -> None:
    """Raises JobError if ids with these hashes are equal."""
    compared = candidates[:_MAX_CANDIDATES]
    places: dict[int | str, list[str]] = {}
    for file in manifest.files:
        for start, ids in id_batches(file):
            for index in np.flatnonzero(np.isin(hash_ids(ids), compared)).tolist():
                id_places = places.setdefault(ids[index].as_py(), [])
                if len(id_places) <= _SHOWN_PLACES:
                    id_places.append(f"{file.name} row {start + index}")
    duplicates = {key: rows for key, rows in places.items() if len(rows) > 1}
    if not duplicates:
        return
    shown = "; ".join(
        f"{key!r} in {', '.join(rows[:_SHOWN_PLACES])}"
        + (", ..." if len(rows) > _SHOWN_PLACES else "")
        for key, rows in list(duplicates.items())[:_SHOWN_IDS]
    )
    count = len(duplicates)
    number = f"more than {count}" if candidates.size > _MAX_CANDIDATES else f"{count}"
    raise JobError(
        f"{storage.redact(manifest.url)}: column '{c.ID}': found {number} ids that occur more than "
        f"once, expected each once: {shown}" + ("; ..." if count > _SHOWN_IDS else "")
    )

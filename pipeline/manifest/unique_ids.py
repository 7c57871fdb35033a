"""Turns a manifest's id column into digests, compares them with the ledger's, and finds ids that
occur twice, in bounded memory.

Files that are as an earlier run found them are not read: their hashes are kept (id_index.py). Ids
are compared by 64-bit hashes first. What seems equal is read again and compared itself, so that
two ids with one hash are not called equal.
"""

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from mediamill.pipeline.ledger.state import KnownFile
from mediamill.pipeline.manifest import id_index
from mediamill.pipeline.manifest.id_index import Entry, Hashes, Segment, Sorter
from mediamill.pipeline.manifest.manifest import Manifest, ManifestFile
from mediamill.pipeline.storage import storage
from mediamill.pipeline.storage.storage import Place
from mediamill.schemas import columns as c
from mediamill.schemas.errors import JobError

_BATCH_ROWS = 8192  # of one file at once: each id is an object of its own, of a hundred bytes
_READERS = 8  # files that are read at once
_BUFFER_BYTES = 4 << 20  # of one file's column: a large row group is not held whole
_SUSPECTS = 1000  # hashes that are looked at again
_ADVICE = "write to a new output folder, or undo the change"
_NAMED, _PLACES = 5, 3  # duplicates that the sentence names, and places of each


@dataclass(frozen=True)
class Digests:
    """Of one file: the digest of all its ids in order, and that of its first rows if asked for."""

    whole: str
    prefix: str | None


@dataclass(frozen=True)
class NewIds:
    """What the index below the output is to hold more. entries and hashes are of the same rows;
    beside: segments that stay.
    """

    folder: Place
    hashes: Sorter
    entries: tuple[Entry, ...]
    beside: tuple[Segment, ...]

    def keep(self) -> None:
        """Writes it, durable when this returns: before the ledger is told of the files. Once."""
        if self.entries and not self.hashes.closed:
            id_index.keep(self.folder, self.hashes, self.entries, self.beside)
        self.hashes.close()


def check_ids(
    manifest: Manifest, known: Sequence[KnownFile], folder: Place
) -> tuple[tuple[KnownFile, ...], NewIds]:
    """The manifest's files as the ledger should know them, and their hashes.

    known: the files as the ledger knows them. folder: of the index; only read.
    Raises JobError when an id is null or occurs twice, naming ids and places, and when the manifest
    has changed otherwise than by new files and new rows at the end of files.
    """
    before = {file.name: file for file in known}
    _refuse_lost(manifest, before)
    damaged: set[str] = set()
    while True:
        try:
            return _Check(manifest, before, folder, damaged).result()
        except id_index.DamagedError as error:
            damaged.add(error.segment)  # its files are read instead


class _Check:
    """One try, which does without the damaged segments."""

    def __init__(
        self, manifest: Manifest, before: dict[str, KnownFile], folder: Place, damaged: set[str]
    ) -> None:
        self._manifest, self._before, self._folder = manifest, before, folder
        rows = {file.name: 0 for file in manifest.files} | {n: f.rows for n, f in before.items()}
        # Without a new row there is nothing to compare.
        self._grown = any(file.rows > rows[file.name] for file in manifest.files)
        segments: list[Segment] = []
        if self._grown and before:
            found = [one for one in id_index.load(folder) if one.name not in damaged]
            segments = id_index.usable(found, before)
        held = id_index.covered(segments)
        # The index of the first row whose hash is to be taken, by name.
        self._starts = {name: rows[name] if name in held else 0 for name in rows}
        size = sum(file.rows - self._starts[file.name] for file in manifest.files)
        self._merged, self._beside = _smaller(segments, size)
        size += sum(segment.rows for segment in self._merged)
        self._hashes = Sorter(size, min((one.bits for one in self._beside), default=64))

    def result(self) -> tuple[tuple[KnownFile, ...], NewIds]:
        read = [file for file in self._manifest.files if self._is_to_be_read(file)]
        with ThreadPoolExecutor(_READERS) as readers:
            digests = dict(zip((f.name for f in read), readers.map(self._read, read), strict=True))
        for file in read:
            self._refuse_changed(file, digests[file.name])
        files = tuple(
            KnownFile(
                file.name,
                file.rows,
                digests[file.name].whole if file.name in digests else file.digest or "",
                file.stamp,
                file.row_groups,
            )
            for file in self._manifest.files
        )
        entries: list[Entry] = []
        if self._grown:
            entries = [*self._entries(files)]
            for segment in self._merged:
                entries += segment.entries
                for shard in range(len(segment.shards)):
                    self._hashes.add(segment.read(shard))
            suspects = self._twice()
            if suspects.size:
                _refuse_duplicates(self._manifest, suspects)
        new = NewIds(self._folder, self._hashes, tuple(entries), tuple(self._beside))
        return files, new

    def _is_to_be_read(self, file: ManifestFile) -> bool:
        return file.digest is None or (self._grown and file.rows > self._starts[file.name])

    def _read(self, file: ManifestFile) -> Digests:
        whole, prefix = hashlib.blake2b(digest_size=16), None
        known = self._before.get(file.name)
        left = known.rows if known else None
        for start, ids in _batches(file):
            hashes = _hash(ids)
            if left is not None and prefix is None and left <= hashes.size:
                head = whole.copy()
                head.update(hashes[:left].tobytes())
                prefix = head.hexdigest()
            left = None if left is None else left - hashes.size
            whole.update(hashes.tobytes())
            if self._grown:
                self._hashes.add(hashes[max(self._starts[file.name] - start, 0) :])
        if left == 0 and prefix is None:
            prefix = whole.hexdigest()
        return Digests(whole.hexdigest(), prefix)

    def _refuse_changed(self, file: ManifestFile, found: Digests) -> None:
        known = self._before.get(file.name)
        if known is None or found.prefix == known.digest:
            return
        where = storage.redact(self._manifest.url)
        if file.rows < known.rows:
            raise JobError(
                f"{where}: found {file.rows} rows in {file.name}, and the output was begun with "
                f"{known.rows}: {_ADVICE}"
            )
        raise JobError(
            f"{where}: the first {known.rows} ids of {file.name} are not those that the output was "
            f"begun with, or not in their order: {_ADVICE}"
        )

    def _entries(self, files: Sequence[KnownFile]) -> Iterator[Entry]:
        for file in files:
            start = self._starts[file.name]
            if file.rows > start:
                digest = self._before[file.name].digest if start else ""
                yield Entry(file.name, start, file.rows, digest, file.digest)

    def _twice(self) -> Hashes:
        """Hashes that occur twice; the first ones, when they are many."""
        found = [np.empty(0, np.uint64)]
        for bucket in range(1 << self._hashes.bits):
            hashes = self._hashes.bucket(bucket)
            found.append(hashes[1:][hashes[1:] == hashes[:-1]])
            shards = [
                (segment, shard)
                for segment in self._beside  # whose shards are parts of buckets
                for shard in _split(bucket, segment.bits - self._hashes.bits)
            ]
            kept = id_index.ahead(lambda one: one[0].read(one[1]), shards)
            found.extend(_common(hashes, old) for old in kept)
            found = [np.unique(np.concatenate(found))[: _SUSPECTS + 1]]
            if found[0].size > _SUSPECTS:
                break
        return found[0]


def _split(bucket: int, finer: int) -> range:
    """The parts of a bucket when each is cut into 2 ** finer."""
    return range(bucket << finer, (bucket + 1) << finer)


def _smaller(segments: Sequence[Segment], size: int) -> tuple[list[Segment], list[Segment]]:
    """Segments to become one with `size` new hashes, and those to stay.

    As each segment is larger than all that are smaller together, there are never many, and a hash
    is written again only when its segment at least doubles.
    """
    merged: list[Segment] = []
    stay = sorted(segments, key=lambda segment: segment.rows)
    while stay and stay[0].rows <= size:
        size += stay[0].rows
        merged.append(stay.pop(0))
    return merged, stay


def _common(left: Hashes, right: Hashes) -> Hashes:
    """What is in both; both are ascending."""
    few, many = sorted((left, right), key=len)
    at = np.searchsorted(many, few)
    inside = at < many.size
    found: Hashes = few[inside][many[at[inside]] == few[inside]]
    return found


def _refuse_lost(manifest: Manifest, before: Mapping[str, KnownFile]) -> None:
    names = {file.name for file in manifest.files}
    for name, known in before.items():
        if known.rows and name not in names:
            raise JobError(
                f"{storage.redact(manifest.url)}: the manifest has lost the file {name}, whose "
                f"rows the output was begun with: {_ADVICE}"
            )


def _batches(file: ManifestFile) -> Iterator[tuple[int, pa.Array]]:
    """The file's ids with the index of the first row of each batch. Raises JobError for a null."""
    start = 0
    with (
        file.place.fs.open(file.place.path, "rb", cache_type="none") as source,
        pq.ParquetFile(source, buffer_size=_BUFFER_BYTES) as parquet,
    ):
        for batch in parquet.iter_batches(_BATCH_ROWS, columns=[c.ID]):
            ids = batch.column(0)
            if ids.null_count:
                row = start + pc.index(ids.is_null(), True).as_py()
                where = storage.redact(file.place.url)
                raise JobError(f"{where}: row {row}: found no id (null), expected one")
            yield start, ids.dictionary_decode() if pa.types.is_dictionary(ids.type) else ids
            start += len(ids)


def _hash(ids: pa.Array) -> Hashes:
    values = ids.to_numpy(zero_copy_only=False)
    # Integers of every width hash alike, so that an id is equal to itself in each of the files.
    plain = values.astype(np.int64) if pa.types.is_integer(ids.type) else values.astype(object)
    hashes: Hashes = pd.util.hash_array(plain, categorize=False)
    return hashes


def _refuse_duplicates(manifest: Manifest, suspects: Hashes) -> None:
    """Raises JobError if ids with these hashes are equal, and not only their hashes."""
    looked_at = suspects[:_SUSPECTS]
    places: dict[int | str, list[str]] = {}
    for file in manifest.files:
        for start, ids in _batches(file):
            for index in np.flatnonzero(np.isin(_hash(ids), looked_at)).tolist():
                known = places.setdefault(ids[index].as_py(), [])
                if len(known) <= _PLACES:
                    known.append(f"{file.name} row {start + index}")
    twice = {key: known for key, known in places.items() if len(known) > 1}
    if not twice:
        return
    named = "; ".join(
        f"{key!r} in {', '.join(known[:_PLACES])}" + (", ..." if len(known) > _PLACES else "")
        for key, known in list(twice.items())[:_NAMED]
    )
    number = f"more than {len(twice)}" if suspects.size > _SUSPECTS else f"{len(twice)}"
    raise JobError(
        f"{storage.redact(manifest.url)}: column '{c.ID}': found {number} ids that occur more than "
        f"once, expected each once: {named}" + ("; ..." if len(twice) > _NAMED else "")
    )

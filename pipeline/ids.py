"""Turns a manifest's id column into digests, and finds ids that occur twice, in bounded memory.

Ids are compared by 64-bit hashes first, which lie in a temporary file once they are many. What
seems equal is read again and compared itself, so that two ids with one hash are not called equal.
"""

import hashlib
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import IO

import numpy as np
import numpy.typing as npt
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipeline import storage
from pipeline.manifest import Manifest, ManifestFile
from schemas import columns as c
from schemas.errors import JobError

_BATCH_ROWS = 65_536
_HASHES_IN_MEMORY = 4_000_000  # 32 MB, and as much again while they are sorted
_SUSPECTS = 1000  # hashes that are looked at again
_NAMED, _PLACES = 5, 3  # duplicates that the sentence names, and places of each

Hashes = npt.NDArray[np.uint64]


@dataclass(frozen=True)
class Digests:
    """Of one file: the digest of all its ids in order, and that of its first rows if asked for."""

    whole: str
    prefix: str | None


def check_ids(manifest: Manifest, known_rows: Mapping[str, int]) -> dict[str, Digests]:
    """The digests of each file by name, with the prefix's for as many rows as `known_rows` says.

    Raises JobError when an id is null or occurs twice in the manifest, naming ids and places.
    """
    digests = {}
    buckets = -(-manifest.rows // _HASHES_IN_MEMORY) or 1
    with tempfile.SpooledTemporaryFile(_HASHES_IN_MEMORY * 8) as spill:
        sizes = []
        for file in manifest.files:
            whole, prefix = hashlib.blake2b(digest_size=16), None
            left = known_rows.get(file.name)
            for _, ids in _batches(file):
                hashes = _hash(ids)
                if left is not None and prefix is None and left <= hashes.size:
                    head = whole.copy()
                    head.update(hashes[:left].tobytes())
                    prefix = head.hexdigest()
                left = None if left is None else left - hashes.size
                whole.update(hashes.tobytes())
                spill.write(hashes.tobytes())
                sizes.append(hashes.size)
            if left == 0 and prefix is None:
                prefix = whole.hexdigest()
            digests[file.name] = Digests(whole.hexdigest(), prefix)
        suspects = np.concatenate(
            [_twice(_bucket(spill, sizes, bucket, buckets)) for bucket in range(buckets)]
        )
    if suspects.size:
        _refuse_duplicates(manifest, suspects)
    return digests


def _batches(file: ManifestFile) -> Iterator[tuple[int, pa.Array]]:
    """The file's ids with the index of the first row of each batch. Raises JobError for a null."""
    start = 0
    with file.place.fs.open(file.place.path, "rb") as source, pq.ParquetFile(source) as parquet:
        for batch in parquet.iter_batches(_BATCH_ROWS, columns=[c.ID]):
            ids = batch.column(0)
            if ids.null_count:
                row = start + pc.index(ids.is_null(), True).as_py()
                raise JobError(f"{file.place.url}: row {row}: found no id (null), expected one")
            yield start, ids.dictionary_decode() if pa.types.is_dictionary(ids.type) else ids
            start += len(ids)


def _hash(ids: pa.Array) -> Hashes:
    values = ids.to_numpy(zero_copy_only=False)
    # Integers of every width hash alike, so that an id is equal to itself in each of the files.
    plain = values.astype(np.int64) if pa.types.is_integer(ids.type) else values.astype(object)
    hashes: Hashes = pd.util.hash_array(plain, categorize=False)
    return hashes


def _bucket(spill: IO[bytes], sizes: list[int], bucket: int, of: int) -> Hashes:
    spill.seek(0)
    parts = [np.empty(0, np.uint64)]
    for size in sizes:
        hashes = np.frombuffer(spill.read(size * 8), np.uint64)
        parts.append(hashes[hashes % np.uint64(of) == bucket] if of > 1 else hashes)
    return np.concatenate(parts)


def _twice(hashes: Hashes) -> Hashes:
    ordered = np.sort(hashes)
    found: Hashes = np.unique(ordered[1:][ordered[1:] == ordered[:-1]])
    return found


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
        f"{storage.shown(manifest.url)}: column '{c.ID}': found {number} ids that occur more than "
        f"once, expected each once: {named}" + ("; ..." if len(twice) > _NAMED else "")
    )

"""Turns a row's name and its tensors into one number, so that a row with another one's tensors is
found.

Made where the tensors are, checked where they are used. It is against mistakes, not against malice:
a CRC, which costs a third of a millisecond for each MB.
"""

import zlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from mediamill.pipeline.records import ROW_FILE, ROW_INDEX
from mediamill.schemas import columns as c


def row_name(row: Mapping[str, int], sha256: str | None, row_id: object) -> str:
    """What travels with a row's tensors: its ordinal, the hash of its first medium, its id."""
    return f"{row[ROW_FILE]}/{row[ROW_INDEX]}/{sha256}/{row_id}"


def checksum(
    name: str,
    prompts: Sequence[Sequence[int]],
    texts: Sequence[Sequence[int]],
    grid_thw: Sequence[int],
    patches: Any,
) -> int:
    """Of one row, 0 to 2^32 - 1. prompts, texts: token ids. patches: any buffer."""
    found = zlib.crc32(name.encode(errors="surrogatepass"))
    # Lengths too, or ids could move from one list to the next.
    sizes = [len(prompts), *map(len, prompts), *map(len, texts)]
    for numbers in (sizes, *prompts, *texts, grid_thw):
        found = zlib.crc32(np.asarray(numbers, np.int32).tobytes(), found)
    return zlib.crc32(patches, found)


def checksums(table: pa.Table, columns: Mapping[str, Sequence[Any]]) -> list[int | None]:
    """Of rows that have just been prepared, None for those without tensors.

    table: with their ordinals and ids. columns: the tensors and hashes, by name.
    """
    rows, ids = table[c.ROW].to_pylist(), table[c.ID].to_pylist()
    kinds = (c.INPUT_IDS, c.CONTINUATIONS, c.GRID_THW, c.PATCHES)
    tensors = zip(*(columns[kind] for kind in kinds), strict=True)
    names = map(row_name, rows, columns[c.SHA256], ids)
    return [
        None if patches is None else checksum(name, prompts, texts, grid, patches)
        for name, (prompts, texts, grid, patches) in zip(names, tensors, strict=True)
    ]

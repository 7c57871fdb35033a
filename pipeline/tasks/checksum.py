"""The checksum of a row and its tensors, which detects a row with another row's tensors.

Computed in the prepare stage, checked in the generate stage. It is a CRC, which protects against
mistakes but not against malice, and costs a third of a millisecond per MB.
"""

import zlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from mediamill.pipeline.records import ROW_FILE, ROW_INDEX
from mediamill.schemas import columns as c


def row_name(row: Mapping[str, int], sha256: str | None, row_id: object) -> str:
    """The identity of a row: its ordinal, the hash of its first medium, its id."""
    return f"{row[ROW_FILE]}/{row[ROW_INDEX]}/{sha256}/{row_id}"


def checksum(
    name: str,
    prompts: Sequence[Sequence[int]],
    texts: Sequence[Sequence[int]],
    grid_thw: Sequence[int],
    patches: Any,
) -> int:
    """The checksum of one row, 0 to 2^32 - 1.

    name: see row_name. prompts, texts: token ids. patches: any buffer.
    grid_thw: three numbers for each medium.
    """
    crc = zlib.crc32(name.encode(errors="surrogatepass"))
    # Lengths too, or ids could move from one list to the next.
    lengths = [len(prompts), *map(len, prompts), *map(len, texts)]
    for numbers in (lengths, *prompts, *texts, grid_thw):
        crc = zlib.crc32(np.asarray(numbers, np.int32).tobytes(), crc)
    return zlib.crc32(patches, crc)


def checksums(table: pa.Table, columns: Mapping[str, Sequence[Any]]) -> list[int | None]:
    """The checksums of rows that have just been prepared, None for those without tensors.

    table: with the rows' ordinals and ids. columns: the tensors and hashes, by column name.
    """
    names = map(row_name, table[c.ROW].to_pylist(), columns[c.SHA256], table[c.ID].to_pylist())
    tensor_columns = (c.INPUT_IDS, c.CONTINUATIONS, c.GRID_THW, c.PATCHES)
    tensors = zip(*(columns[column] for column in tensor_columns), strict=True)
    return [
        None if patches is None else checksum(name, prompts, texts, grid, patches)
        for name, (prompts, texts, grid, patches) in zip(names, tensors, strict=True)
    ]

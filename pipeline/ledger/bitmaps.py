"""Sets of row indices of a file: as bitmaps in memory, and as text in records."""

import base64
import zlib

import numpy as np
import numpy.typing as npt

Bitmap = npt.NDArray[np.uint8]  # row i at bit i % 8 of byte i // 8


def bits_of(bitmap: Bitmap, start: int, stop: int) -> npt.NDArray[np.bool_]:
    """Returns which rows from start to stop are marked: [stop - start]. None is after its end."""
    first = start // 8
    bits = np.unpackbits(bitmap[first : -(-stop // 8)], bitorder="little")
    marked = np.zeros(stop - start, np.bool_)
    present = bits[start - first * 8 : stop - first * 8]
    marked[: present.size] = present
    return marked


def is_marked(bitmap: Bitmap, indices: npt.NDArray[np.int64]) -> npt.NDArray[np.bool_]:
    """Returns which of the indices are marked. None is after the bitmap's end."""
    inside = indices >> 3 < bitmap.size
    marked = np.zeros(indices.size, np.bool_)
    known = indices[inside]
    marked[inside] = (bitmap[known >> 3] >> (known & 7)) & 1 == 1
    return marked


def mark(bitmap: Bitmap, indices: npt.NDArray[np.int64]) -> None:
    """Marks rows, in place."""
    np.bitwise_or.at(bitmap, indices >> 3, np.left_shift(1, indices & 7).astype(np.uint8))


def text_of(indices: npt.NDArray[np.int64]) -> str:
    """Formats ascending row indices, like "0-63,70"."""
    if not indices.size:
        return ""
    breaks = np.flatnonzero(np.diff(indices) != 1)
    starts = indices[np.concatenate(([0], breaks + 1))]
    ends = indices[np.concatenate((breaks, [indices.size - 1]))]
    return ",".join(
        f"{start}-{end}" if end > start else f"{start}"
        for start, end in zip(starts.tolist(), ends.tolist(), strict=True)
    )


def text_of_bitmap(bitmap: Bitmap) -> str:
    """Formats a bitmap in printable characters, compressed."""
    return base64.b64encode(zlib.compress(bitmap.tobytes(), level=1)).decode()


def bitmap_of(text: str) -> Bitmap:
    """Parses the bitmap that `text_of_bitmap` formatted. Raises ValueError if it is damaged."""
    try:
        return np.frombuffer(zlib.decompress(base64.b64decode(text)), np.uint8)
    except zlib.error as error:
        raise ValueError(f"a bitmap cannot be read: {error}") from error


def count_bits(bitmap: Bitmap) -> int:
    """Returns the number of rows that a bitmap marks."""
    return int(np.bitwise_count(bitmap).sum(dtype=np.int64))


def rows_of(text: str) -> npt.NDArray[np.int64]:
    """Parses the row indices that `text_of` formatted."""
    parts = [part.partition("-") for part in text.split(",") if part]
    spans = [np.arange(int(first), int(last or first) + 1) for first, _, last in parts]
    return np.concatenate(spans) if spans else np.empty(0, np.int64)

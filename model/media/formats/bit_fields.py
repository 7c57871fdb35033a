"""Reads uncompressed pixels whose colours are fields of bits, as in BMP and DDS files.

Pillow knows some layouts, and of DDS reads them with a loop in Python.
"""

import struct

import numpy as np
import numpy.typing as npt
from PIL import Image

from mediamill.model.errors import MediaError

_BITFIELDS, _ALPHA_BITFIELDS = 3, 6  # compressions of BMP


def has_bit_fields(data: bytes) -> bool:
    """Whether a BMP file has 16 or 32 bits in fields of its own."""
    if len(data) < 70:
        return False
    bits, compression = struct.unpack_from("<HI", data, 28)
    return bits in (16, 32) and compression in (_BITFIELDS, _ALPHA_BITFIELDS)


def decode_bmp(data: bytes) -> Image.Image:
    """Decodes a BMP file with bit fields; its size is checked. Raises MediaError decode_corrupt."""
    start, header, width, height = struct.unpack_from("<IIii", data, 10)
    (bits,) = struct.unpack_from("<H", data, 28)
    masks = list(struct.unpack_from("<4I", data, 54))
    if header < 56 and struct.unpack_from("<I", data, 30)[0] != _ALPHA_BITFIELDS:
        masks[3] = 0
    rows = decode_fields(data, start, width, abs(height), bits, tuple(masks), 4, "BMP picture")
    return rows if height < 0 else rows.transpose(Image.Transpose.FLIP_TOP_BOTTOM)


def decode_fields(
    data: bytes, start: int, width: int, height: int, bits: int, masks: tuple[int, ...],
    row_unit: int, label: str,
) -> Image.Image:  # fmt: skip
    """Returns a picture of the fields: RGB, or RGBA if the fourth mask is not zero.

    start: of the pixels in the file. row_unit: bytes of which rows are multiples.
    Raises MediaError decode_corrupt if pixels are missing.
    """
    pixel = bits // 8
    row_bytes = -(-width * pixel // row_unit) * row_unit
    end = start + row_bytes * (height - 1) + width * pixel
    if end > len(data):
        raise MediaError(
            "decode_corrupt", f"the {label} is damaged: it ends at byte {len(data)}, expected {end}"
        )
    whole = np.frombuffer(data[start:end].ljust(row_bytes * height, b"\0"), np.uint8)
    rows = whole.reshape(height, row_bytes)[:, : width * pixel].reshape(height, width, pixel)
    values = np.zeros((height, width), np.uint32)
    for place in range(pixel):
        values |= rows[..., place].astype(np.uint32) << (8 * place)
    shown = masks if masks[3] else masks[:3]
    colours = np.stack([_field(values, mask) for mask in shown], axis=2)
    return Image.fromarray(colours)


def _field(values: npt.NDArray[np.uint32], mask: int) -> npt.NDArray[np.uint8]:
    if not mask:
        return np.zeros(values.shape, np.uint8)
    shift = (mask & -mask).bit_length() - 1
    field = ((values & mask) >> shift).astype(np.uint64)
    return (field * 255 // (mask >> shift)).astype(np.uint8)

"""Reads PBM, PGM, PPM, PFM and PAM pictures of any depth.

Pillow reads some of them, with a loop in Python for each sample of more than 8 bits.
"""

import re
import warnings
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from mediamill.model.errors import MediaError
from mediamill.model.media.formats.depth import Declared

_TOKEN = re.compile(rb"(?:\s|#[^\r\n]*(?:[\r\n]|$))*([^\s#]+)")
_COMMENT = re.compile(rb"#[^\r\n]*")
_PAM_LINE = re.compile(rb"(WIDTH|HEIGHT|DEPTH|MAXVAL|TUPLTYPE)\s+([^\n]*)\n")
_MAX_HEADER = 64 * 1024
_COLOURS = {1: "L", 2: "LA", 3: "RGB", 4: "RGBA"}


@dataclass(frozen=True)
class PnmHeader:
    """The header of a file. start: where the samples begin. colours: as Pillow's mode.

    maxval: white; of a PFM file its scale, which is negative for little-endian.
    """

    kind: bytes
    width: int
    height: int
    colours: str
    maxval: float
    start: int


def read_header(data: bytes) -> PnmHeader:
    """Raises MediaError decode_corrupt."""
    kind = b"P0CMYK" if data.startswith(b"P0CMYK") else data[:2]
    try:
        return _pam_header(data) if kind == b"P7" else _header(data, kind)
    except (ValueError, IndexError, KeyError) as error:
        raise _damaged("its header is malformed") from error


def read_values(data: bytes, header: PnmHeader) -> tuple[npt.NDArray[Any], Declared]:
    """Returns the values [H, W, C], and what the file declares of them; the size is checked before.

    Raises MediaError decode_corrupt.
    """
    shape = header.height, header.width, len(header.colours)
    kind, maxval = header.kind, header.maxval
    if kind in (b"P1", b"P4"):
        return _bitmap(data, header).reshape(shape), Declared()
    if kind in (b"PF", b"Pf"):
        values = _binary(data, header, "<f4" if maxval < 0 else ">f4")
        return values.reshape(shape)[::-1], Declared()  # the last row comes first
    if kind in (b"P2", b"P3"):
        values = _plain(data, header)
    else:
        values = _binary(data, header, "u1" if maxval < 256 else ">u2")
    values = values.reshape(shape)
    if maxval == 255:
        return values, Declared()
    bits = int(maxval).bit_length()
    if maxval == (1 << bits) - 1:
        return values.astype(np.uint16), Declared(bits=bits)
    return values.astype(np.float32), Declared(low=0, high=maxval)


def _header(data: bytes, kind: bytes) -> PnmHeader:
    position, numbers = len(kind), []
    for _ in range(2 if kind in (b"P1", b"P4") else 3):
        token = _TOKEN.match(data, position, position + _MAX_HEADER)
        if token is None:
            raise ValueError
        numbers.append(token[1])
        position = token.end()
    colours = {b"P0CMYK": "CMYK", b"P3": "RGB", b"P6": "RGB", b"PF": "RGB"}.get(kind, "L")
    maxval = float(numbers[2]) if len(numbers) > 2 else 1.0
    if kind not in (b"PF", b"Pf") and not (maxval.is_integer() and 0 < maxval < 65536):
        raise ValueError
    # A single blank ends the header of a binary file.
    return PnmHeader(kind, int(numbers[0]), int(numbers[1]), colours, maxval, position + 1)


def _pam_header(data: bytes) -> PnmHeader:
    end = data.index(b"ENDHDR\n", 0, _MAX_HEADER)
    lines = {line[1]: line[2].strip() for line in _PAM_LINE.finditer(data, 0, end)}
    maxval, depth = int(lines[b"MAXVAL"]), int(lines[b"DEPTH"])
    if not 0 < maxval < 65536:
        raise ValueError
    colours = "CMYK" if lines.get(b"TUPLTYPE") == b"CMYK" else _COLOURS[depth]
    size = int(lines[b"WIDTH"]), int(lines[b"HEIGHT"])
    return PnmHeader(b"P7", *size, colours, maxval, end + len(b"ENDHDR\n"))


def _binary(data: bytes, header: PnmHeader, dtype: str) -> npt.NDArray[Any]:
    count = header.width * header.height * len(header.colours)
    size = count * np.dtype(dtype).itemsize
    if len(data) - header.start < size:
        raise _damaged(f"it has {len(data) - header.start} bytes of pixels, expected {size}")
    values = np.frombuffer(data, dtype, count, header.start)
    return values.astype(values.dtype.newbyteorder("="), copy=False)


def _bitmap(data: bytes, header: PnmHeader) -> npt.NDArray[Any]:
    """Returns 0 or 255; in the file 1 is black."""
    width, height = header.width, header.height
    if header.kind == b"P1":
        digits = _COMMENT.sub(b"", data[header.start - 1 :]).translate(None, b" \t\r\n\v\f")
        bits = np.frombuffer(digits, np.uint8)[: width * height]
        if bits.size < width * height or ((bits | 1) != ord("1")).any():
            raise _damaged("it has too few pixels, or other digits than 0 and 1")
        return ((bits & 1) ^ 1) * np.uint8(255)
    row_bytes = (width + 7) // 8
    if len(data) - header.start < row_bytes * height:
        raise _damaged("it has too few pixels")
    rows = np.frombuffer(data, np.uint8, row_bytes * height, header.start)
    bits = np.unpackbits(rows.reshape(height, row_bytes), axis=1, count=width)
    return (bits ^ 1) * np.uint8(255)


def _plain(data: bytes, header: PnmHeader) -> npt.NDArray[Any]:
    count = header.width * header.height * len(header.colours)
    # A digit and a blank for each value: shorter files need not be looked at.
    if len(data) - header.start < 2 * count - 2:
        raise _damaged("it has too few pixels")
    text = _COMMENT.sub(b"", data[header.start - 1 :]).decode("latin-1")
    with warnings.catch_warnings(action="ignore", category=DeprecationWarning):
        try:
            values = np.fromstring(text, np.int64, sep=" ")[:count]
        except ValueError as error:
            raise _damaged("it has other words than numbers") from error
    if values.size < count or (values < 0).any() or (values > header.maxval).any():
        raise _damaged("it has too few pixels, or values that are out of range")
    return values.astype(np.uint16)


def _damaged(what: str) -> MediaError:
    return MediaError("decode_corrupt", f"the PNM picture is damaged: {what}")

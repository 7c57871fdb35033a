"""Reads TIFF pictures of any number of bits and samples.

Pillow decodes what it knows, of up to 8 bits. For all else it decompresses the bytes: the file is
shown to it as a grey picture whose rows are as many bytes long, and the values are made of them
here. So every compression works for every kind of value.
"""

import io
import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image, TiffImagePlugin

from mediamill.model.errors import MediaError
from mediamill.model.media.formats import tiff_tags as tags_
from mediamill.model.media.formats.depth import Declared
from mediamill.model.media.formats.tiff_tags import TiffTags

# None, LZW, deflate (two numbers), PackBits, LZMA, ZSTD: those that compress bytes of any meaning.
_OF_BYTES = (1, 5, 8, 32946, 32773, 34925, 50000)
_ALWAYS_BUILT = (1, 2, 3, 4, 5, 7, 8, 32773, 32946)
_GREY, _RGB, _CMYK, _LAB = (0, 1, 4), 2, 5, 8
_UNSIGNED, _SIGNED, _FLOAT, _VOID = 1, 2, 3, 4
_MAX_SAMPLES = 4096
_BAND_BYTES = 64 * 1024**2
_ALL_BITS = np.unpackbits(np.arange(256, dtype=np.uint8)).reshape(256, 8)
_REVERSED = np.packbits(_ALL_BITS[:, ::-1], axis=1)


@dataclass(frozen=True)
class TiffValues:
    """The values [H, W, C] of a TIFF picture, of any real type.

    colours: L, LA, La, RGB, RGBA, RGBa, CMYK or LAB, as Pillow's modes. inverted: 0 is white.
    """

    values: npt.NDArray[Any]
    colours: str
    inverted: bool
    declared: Declared
    notes: tuple[str, ...]


def decode_tiff(data: bytes, tags: TiffTags) -> Image.Image | TiffValues:
    """Returns a loaded picture as Pillow decodes it, or the values. The size is checked before.

    Raises MediaError decode_unsupported and decode_corrupt, and any error of Pillow.
    """
    bits = tags.numbers(tags_.BITS) or (1,)
    formats = tags.numbers(tags_.SAMPLE_FORMAT) or (_UNSIGNED,)
    is_of_bytes = tags.number(tags_.COMPRESSION, 1) in _OF_BYTES
    is_plain = max(bits) <= 8 and set(formats) <= {_UNSIGNED, _VOID}
    if is_plain or not is_of_bytes:
        values = tags_.pixel_tags(tags)
        if set(formats) == {_VOID}:
            del values[tags_.SAMPLE_FORMAT]
        try:
            picture = TiffImagePlugin.TiffImageFile(
                io.BytesIO(tags_.with_tags(data, tags.order, values))
            )
        except SyntaxError as error:
            if not is_of_bytes or min(bits) < 8:
                raise MediaError(
                    "decode_unsupported", f"the TIFF picture is of a kind that is not read: {error}"
                ) from error
        else:
            _load(picture, tags)
            return picture
    return _values(data, tags, bits, formats)


def _values(
    data: bytes, tags: TiffTags, bits: tuple[int, ...], formats: tuple[int, ...]
) -> TiffValues:
    samples = tags.number(tags_.SAMPLES, len(bits))
    dtype = _dtype(tags.order, bits, formats, samples)
    is_planar = tags.number(tags_.PLANAR, 1) == 2 and samples > 1
    photometric = tags.number(tags_.PHOTOMETRIC, 1)
    colours, notes = _colours(photometric, samples, tags.numbers(tags_.EXTRA_SAMPLES))
    planes = [
        _plane(data, tags, dtype, bits[0], 1 if is_planar else samples, plane, len(colours))
        for plane in range(len(colours) if is_planar else 1)
    ]
    values = planes[0] if len(planes) == 1 else np.concatenate(planes, axis=2)
    return TiffValues(values, colours, photometric == 0, _declared(tags, bits[0]), notes)


def _dtype(
    order: str, bits: tuple[int, ...], formats: tuple[int, ...], samples: int
) -> "np.dtype[Any] | None":
    """Returns the type of one value; None for unsigned integers that fill no whole bytes."""
    kinds = {_UNSIGNED: "u", _SIGNED: "i", _FLOAT: "f", _VOID: "u"}
    kind = kinds.get(formats[0])
    is_known = kind is not None and len(set(bits)) == 1 and len(set(formats)) == 1
    if is_known and samples <= _MAX_SAMPLES:
        size = bits[0]
        if size in (16, 32, 64) or (size == 8 and kind != "f"):
            return np.dtype(f"{order}{kind}{size // 8}")
        if kind == "u" and 1 <= size < 16:
            return None
    raise MediaError(
        "decode_unsupported",
        f"the TIFF picture has {samples} samples of {list(bits[:8])} bits in the formats "
        f"{list(formats[:8])}, which is not read",
    )


def _colours(photometric: int, samples: int, extra: tuple[int, ...]) -> tuple[str, tuple[str, ...]]:
    """Returns which samples are shown, as a mode, and notes."""
    own = {_RGB: 3, _CMYK: 4, _LAB: 3}.get(photometric, 1)
    alpha = {1: "a", 2: "A"}.get(extra[0], "") if extra and samples > own else ""
    if photometric == _RGB and samples >= 3:
        return f"RGB{alpha}", ()
    if photometric == _CMYK and samples >= 4:
        return "CMYK", ()
    if photometric == _LAB and samples == 3:
        return "LAB", ()
    if photometric in _GREY:
        if samples >= 3:
            return "RGB", (f"the first three of {samples} bands shown as red, green and blue",)
        return f"L{alpha}", ()
    raise MediaError(
        "decode_unsupported",
        f"the TIFF picture has the colours {photometric} in {samples} samples, which is not read",
    )


def _declared(tags: TiffTags, bits: int) -> Declared:
    if bits < 16 and bits != 8:
        return Declared(bits=bits)
    low, high = tags.values.get(tags_.LOW_VALUE), tags.values.get(tags_.HIGH_VALUE)
    if high is None:
        low, high = tags.values.get(tags_.MIN_VALUE), tags.values.get(tags_.MAX_VALUE)
    empty = None
    if (text := tags.values.get(tags_.EMPTY_VALUE)) is not None:
        try:
            empty = float(text.tobytes().strip(b"\0 "))
        except ValueError:
            empty = None
    lowest = 0.0 if low is None else float(low.min())
    highest = None if high is None else float(high.max())
    is_range = highest is not None and math.isfinite(lowest) and math.isfinite(highest)
    return Declared(low=lowest, high=highest, empty=empty) if is_range else Declared(empty=empty)


def _plane(
    data: bytes, tags: TiffTags, dtype: "np.dtype[Any] | None", bits: int, samples: int, plane: int,
    shown: int,
) -> npt.NDArray[Any]:  # fmt: skip
    """Returns values [H, W, C] of the first `shown` samples of one plane."""
    width, height = tags.number(tags_.WIDTH, 0), tags.number(tags_.HEIGHT, 0)
    tile_width = tags.number(tags_.TILE_WIDTH, 0)
    is_tiled = tile_width > 0 and tags_.TILE_OFFSETS in tags.values
    part_width = tile_width if is_tiled else width
    across = -(-width // part_width)
    row_bytes = (part_width * samples * bits + 7) // 8  # of a strip or tile
    rows = _decompressed(data, tags, is_tiled, row_bytes, across, plane)
    rows = rows.reshape(height, across, row_bytes)
    predictor = tags.number(tags_.PREDICTOR, 1)
    shown = min(shown, samples)
    kept: npt.NDArray[Any] = np.empty(
        (height, width, shown), np.uint16 if dtype is None else dtype.newbyteorder("=")
    )
    band = max(1, (1 << 22) // (row_bytes * across))
    for top in range(0, height, band):
        part = rows[top : top + band]
        if dtype is None:
            values = _unpacked(part, bits, part_width * samples)
        else:
            values = _undifferenced(part, dtype, samples, predictor)
        values = values.reshape(len(part), across * part_width, samples)
        kept[top : top + band] = values[:, :width, :shown]
    return kept


def _decompressed(
    data: bytes, tags: TiffTags, is_tiled: bool, row_bytes: int, across: int, plane: int
) -> npt.NDArray[np.uint8]:
    """Returns uint8 [H, across * row_bytes] of one plane."""
    height = tags.number(tags_.HEIGHT, 0)
    part_height = tags.number(tags_.TILE_HEIGHT if is_tiled else tags_.ROWS_PER_STRIP, height)
    parts = across * -(-height // max(1, min(part_height, height)))
    offsets, sizes = tags_.STRIP_OFFSETS, tags_.STRIP_BYTES
    if is_tiled:
        offsets, sizes = tags_.TILE_OFFSETS, tags_.TILE_BYTES
    if offsets not in tags.values:
        raise MediaError("decode_corrupt", "the TIFF picture is damaged: no pixels are named")
    numbers = {
        name: tags.values[name][plane * parts : (plane + 1) * parts]
        for name in (offsets, sizes)
        if name in tags.values
    }
    if any(len(places) < parts for places in numbers.values()):
        raise MediaError("decode_corrupt", "the TIFF picture is damaged: pixels are missing")
    part_height = min(part_height, height) if not is_tiled else part_height
    if not is_tiled and tags.number(tags_.COMPRESSION, 1) == 1:
        return _stored(data, numbers[offsets], row_bytes, height, part_height, tags)
    # Pillow refuses pictures of too many bytes, so they are decoded in bands.
    band = max(1, _BAND_BYTES // (row_bytes * across * part_height))
    rows = np.empty((height, row_bytes * across), np.uint8)
    for first in range(0, parts // across, band):
        top = first * part_height
        bottom = min(height, top + band * part_height)
        values: dict[int, Any] = {
            tags_.WIDTH: np.array([row_bytes * across], "u4"),
            tags_.HEIGHT: np.array([bottom - top], "u4"),
            tags_.BITS: np.array([8], "u2"),
            tags_.COMPRESSION: np.array([tags.number(tags_.COMPRESSION, 1)], "u2"),
            tags_.PHOTOMETRIC: np.array([1], "u2"),
            tags_.SAMPLES: np.array([1], "u2"),
            tags_.FILL_ORDER: np.array([tags.number(tags_.FILL_ORDER, 1)], "u2"),
        }
        if is_tiled:
            values[tags_.TILE_WIDTH] = np.array([row_bytes], "u4")
            values[tags_.TILE_HEIGHT] = np.array([part_height], "u4")
        else:
            values[tags_.ROWS_PER_STRIP] = np.array([part_height], "u4")
        for name, one in numbers.items():
            values[name] = one[first * across : (first + band) * across]
        picture = TiffImagePlugin.TiffImageFile(
            io.BytesIO(tags_.with_tags(data, tags.order, values))
        )
        _load(picture, tags)
        rows[top:bottom] = np.asarray(picture)
    return rows


def _stored(
    data: bytes, offsets: Any, row_bytes: int, height: int, strip_height: int, tags: TiffTags
) -> npt.NDArray[np.uint8]:
    """Returns the rows of strips that are not compressed."""
    rows = np.empty((height, row_bytes), np.uint8)
    for index, top in enumerate(range(0, height, strip_height)):
        bottom = min(height, top + strip_height)
        strip = np.frombuffer(data, np.uint8)[int(offsets[index]) :][: (bottom - top) * row_bytes]
        if strip.size < (bottom - top) * row_bytes:
            raise MediaError("decode_corrupt", "the TIFF picture is damaged: it is cut off")
        rows[top:bottom] = strip.reshape(-1, row_bytes)
    return _REVERSED[rows, 0] if tags.number(tags_.FILL_ORDER, 1) == 2 else rows


def _load(picture: Image.Image, tags: TiffTags) -> None:
    """Decodes it. libtiff reports a compression that it was built without as damage."""
    try:
        picture.load()
    except OSError as error:
        compression = tags.number(tags_.COMPRESSION, 1)
        if compression in _ALWAYS_BUILT:
            raise
        raise MediaError(
            "decode_unsupported",
            f"the TIFF picture has the compression {compression}, which cannot be decoded: {error}",
        ) from error


def _unpacked(rows: npt.NDArray[np.uint8], bits: int, count: int) -> npt.NDArray[np.uint16]:
    """uint8 [H, parts, row bytes] -> uint16 [H, parts, count], of `bits` bits each."""
    flat = np.unpackbits(rows, axis=2, count=count * bits).reshape(*rows.shape[:2], count, bits)
    values: npt.NDArray[Any] = np.zeros(flat.shape[:3], np.uint16)
    for place in range(bits):
        values = values << 1 | flat[..., place]
    return values


def _undifferenced(
    rows: npt.NDArray[np.uint8], dtype: "np.dtype[Any]", samples: int, predictor: int
) -> npt.NDArray[Any]:
    """uint8 [H, parts, row bytes] -> values [H, parts, pixels, samples] without a predictor."""
    height, parts, _ = rows.shape
    if predictor == 3:  # of floats: the bytes of a row by their places, then differences
        places = np.cumsum(rows.reshape(height, parts, -1, samples), axis=2, dtype=np.uint8)
        places = places.reshape(height, parts, dtype.itemsize, -1)
        whole = np.ascontiguousarray(places.swapaxes(2, 3))
        values: npt.NDArray[Any] = whole.view(dtype.newbyteorder(">"))
        return values.reshape(height, parts, -1, samples)
    whole = np.ascontiguousarray(rows)
    if predictor == 2:
        number = dtype.itemsize
        unsigned = np.dtype(f"u{number}").newbyteorder(dtype.byteorder)
        counts = whole.view(unsigned).astype(f"u{number}").reshape(height, parts, -1, samples)
        sums = np.cumsum(counts, axis=2, dtype=f"u{number}")
        return sums.view(dtype.newbyteorder("="))
    return whole.view(dtype).reshape(height, parts, -1, samples)

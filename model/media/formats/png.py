"""Reads what a PNG file needs for its pixels, so that nothing else in it can fail or cost.

A new file is made of the critical chunks, with one IDAT chunk, and of the few others that change
the picture. Texts, thumbnails, further frames and unknown chunks are left out unread.
"""

import re
import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import av
import numpy as np
import numpy.typing as npt

from mediamill.model.errors import MediaError
from mediamill.model.media.formats.exif import exif_orientation

SIGNATURE = b"\x89PNG\r\n\x1a\n"
_MAX_CHUNKS = 250_000
MAX_PROFILE_BYTES = 16 * 1024**2
_MAX_EXIF_BYTES = 1024**2
_CHECKED = (b"IHDR", b"PLTE", b"tRNS")
_EXIF_TEXTS = (b"Raw profile type exif\0", b"Raw profile type APP1\0")
_XMP = b"XML:com.adobe.xmp\0"
_ORIENTATION = re.compile(rb'tiff:Orientation(?:="|>)([1-8])')


@dataclass(frozen=True)
class PngParts:
    """What counts of a PNG file.

    data: a PNG file of the pixels alone. bits: of one sample. colour_type: of the header.
    significant_bits: that sBIT declares, the most of all colours; None = not declared.
    profile: the ICC profile; empty if it cannot be read. orientation: as EXIF counts.
    notes: for the receipt.
    """

    data: bytes
    size: tuple[int, int]
    bits: int
    colour_type: int
    significant_bits: int | None
    profile: bytes | None
    orientation: int
    notes: tuple[str, ...]


def read_parts(data: bytes) -> PngParts:
    """Returns the parts of a PNG file, whose pixels are not decoded.

    Raises MediaError decode_corrupt without a header, decode_unsupported for Apple's own variant,
    decode_too_large for too many chunks.
    """
    kept: list[tuple[bytes, bytes]] = []
    pixels: list[memoryview] = []
    significant = profile = None
    orientation = frames = 1
    notes: list[str] = []
    for kind, body, is_whole in _chunks(memoryview(data)):
        if kind == b"IDAT":
            pixels.append(body)
        elif kind in _CHECKED:
            if not is_whole and kind != b"tRNS":
                raise MediaError(
                    "decode_corrupt", f"the PNG picture is damaged: its {kind.decode()} chunk"
                )
            if is_whole and (kind != b"tRNS" or len(body) <= 256):
                kept.append((kind, bytes(body)))
        elif kind == b"sBIT" and body and len(body) <= 4:
            significant = max(body[: 3 if len(body) >= 3 else 1])
        elif kind == b"iCCP":
            profile = _profile(bytes(body))
        elif kind == b"acTL" and len(body) >= 4:
            frames = int.from_bytes(body[:4], "big")
        elif (
            kind in (b"eXIf", b"iTXt", b"tEXt", b"zTXt")
            and orientation == 1
            and len(body) <= _MAX_EXIF_BYTES
        ):
            orientation = _orientation(kind, bytes(body))
        elif kind == b"cICP" and len(body) == 4 and body[1] in (16, 18):
            notes.append("HDR shown without tone mapping")
        elif kind == b"CgBI":
            raise MediaError(
                "decode_unsupported", "the PNG picture is of Apple's own variant (CgBI)"
            )
    if not kept or kept[0][0] != b"IHDR" or len(kept[0][1]) != 13:
        raise MediaError("decode_corrupt", "the PNG picture is damaged: its header is missing")
    width, height, bits, colour_type = struct.unpack(">IIBB", kept[0][1][:10])
    if frames > 1:
        notes.append("first frame of several")
    parts: list[bytes | memoryview] = [SIGNATURE]
    for kind, content in kept:
        checksum = struct.pack(">I", zlib.crc32(kind + content))
        parts += [_head(kind, len(content)), content, checksum]
    # Decoders that are used here do not look at the checksums of pixels: zlib has its own.
    parts += [_head(b"IDAT", sum(map(len, pixels))), *pixels, bytes(4)]
    parts += [_head(b"IEND", 0), struct.pack(">I", zlib.crc32(b"IEND"))]
    return PngParts(
        b"".join(parts), (width, height), bits, colour_type, significant, profile, orientation,
        tuple(notes),
    )  # fmt: skip


def decode_16_bits(parts: PngParts) -> npt.NDArray[Any] | None:
    """Returns uint16 [H, W, C] of a 16-bit colour picture; None if it cannot be decoded.

    Pillow takes the high bytes only. The size has to be checked before.
    """
    name, depth = {2: ("rgb48be", 3), 4: ("ya16be", 2), 6: ("rgba64be", 4)}[parts.colour_type]
    decoder = av.CodecContext.create("png", "r")
    decoder.thread_count = 1
    try:
        frames = [*decoder.decode(av.Packet(parts.data)), *decoder.decode(None)]
    except av.FFmpegError:
        return None
    if not frames or frames[0].format.name != name:
        return None
    plane = frames[0].planes[0]
    rows = np.frombuffer(bytes(plane), np.uint8).reshape(plane.height, plane.line_size)
    values: npt.NDArray[Any] = rows[:, : plane.width * depth * 2].copy().view(">u2")
    return values.astype(np.uint16).reshape(plane.height, plane.width, depth)


def _chunks(data: memoryview) -> Iterator[tuple[bytes, memoryview, bool]]:
    """Yields (type, body, whether the checksum is right) up to the end, or to what is left of it.

    The checksum counts for chunks whose damage would show.
    """
    offset, header = len(SIGNATURE), struct.Struct(">I4s")
    for _ in range(_MAX_CHUNKS):
        if offset + 8 > len(data):
            return
        length, kind = header.unpack_from(data, offset)
        body = data[offset + 8 : offset + 8 + length]
        offset += length + 12
        is_whole = kind in _CHECKED and _is_whole(kind, body, data[offset - 4 : offset])
        yield kind, body, is_whole
        if kind == b"IEND":
            return
    raise MediaError("decode_too_large", f"the PNG picture has more than {_MAX_CHUNKS} chunks")


def _is_whole(kind: bytes, body: memoryview, checksum: memoryview) -> bool:
    return zlib.crc32(body, zlib.crc32(kind)) == int.from_bytes(checksum, "big")


def _head(kind: bytes, length: int) -> bytes:
    return struct.pack(">I", length) + kind


def _profile(body: bytes) -> bytes:
    """Returns the ICC profile of an iCCP chunk; none (empty) if it is damaged or too long."""
    name_end = body.find(b"\0", 0, 80)
    if name_end < 0 or body[name_end + 1 : name_end + 2] != b"\0":
        return b""
    inflate = zlib.decompressobj()
    try:
        profile = inflate.decompress(body[name_end + 2 :], MAX_PROFILE_BYTES)
    except zlib.error:
        return b""
    return profile if inflate.eof else b""


def _orientation(kind: bytes, body: bytes) -> int:
    if kind == b"iTXt":
        match = _ORIENTATION.search(body) if body.startswith(_XMP) else None
        return int(match[1]) if match else 1
    if kind == b"eXIf":
        return exif_orientation(body)
    # ImageMagick writes EXIF as hexadecimal text, behind three lines.
    if not body.startswith(_EXIF_TEXTS):
        return 1
    text = body[body.index(b"\0") + 1 :]
    try:
        if kind == b"zTXt":
            text = zlib.decompressobj().decompress(text[1:], 2 * _MAX_EXIF_BYTES)
        digits = text.split(b"\n", 3)[3].translate(None, b" \r\n").decode("ascii")
        return exif_orientation(bytes.fromhex(digits))
    except (zlib.error, ValueError, IndexError):
        return 1

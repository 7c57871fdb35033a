"""Turns the bytes of a file into what kind of picture or video it is, and if its end is missing.

Knows magic numbers and box sizes only; it decodes nothing. A file is only ever opened as what it
was recognised as here, so that formats which fetch other files (playlists, concatenation lists)
cannot be reached.
"""

from dataclasses import dataclass

from mediamill.model.errors import MediaError
from mediamill.model.inputs import VisualKind
from mediamill.model.media.content import Handle, MediaFile, Source


@dataclass(frozen=True)
class Format:
    """What a file is.

    kind: as what it is read by default. name: Pillow's, or the demuxer's. label: for sentences.
    """

    kind: VisualKind
    name: str
    label: str


_AVIF_BRANDS = {b"avif", b"avis"}
_HEIF_BRANDS = {b"heic", b"heix", b"hevc", b"hevx", b"heim", b"heis", b"mif1", b"msf1"}
_QUICKTIME_ATOMS = {b"moov", b"mdat", b"wide", b"free", b"skip", b"pnot"}
_TS_PACKETS = ((0, 188), (4, 192))  # where sync bytes begin, and how far apart they are
# Boxes whose missing end means missing pictures; others may be padding that nobody needs.
_NEEDED_BOXES = {b"mdat", b"moov", b"moof"}
_MAX_PARTS = 1_000_000  # boxes looked at: a file may consist of nothing but the smallest ones


def recognise(source: Source) -> Format:
    """The format of a file by its content, whatever its name was.

    Raises MediaError: media_empty for no bytes, decode_unsupported for bytes that are neither a
    known picture nor a known video.
    """
    content = MediaFile.of(source)
    head = content.head()
    if not head:
        raise MediaError("media_empty", "the file is empty (0 bytes)")
    found = _picture(head) or _video(head)
    if found is None:
        raise MediaError(
            "decode_unsupported",
            f"the file is no known picture or video: its {content.size} bytes begin with "
            f"{head[:12]!r}",
        )
    return found


def _picture(data: bytes) -> Format | None:
    if data.startswith(b"\xff\xd8\xff"):
        return Format("image", "JPEG", "JPEG picture")
    if data.startswith(b"\x89PNG\r\n\x1a\n"):
        return Format("image", "PNG", "PNG picture")
    if data.startswith((b"GIF87a", b"GIF89a")):
        return Format("image", "GIF", "GIF picture")
    if data.startswith(b"RIFF") and data[8:12] == b"WEBP":
        return Format("image", "WEBP", "WebP picture")
    if data.startswith((b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")):
        return Format("image", "TIFF", "TIFF picture")
    # "BM" alone is two letters of any text: the size of the second header must fit as well.
    if data.startswith(b"BM") and int.from_bytes(data[14:18], "little") in (
        12,
        40,
        52,
        56,
        64,
        108,
        124,
    ):
        return Format("image", "BMP", "BMP picture")
    if data[4:8] == b"ftyp" and data[8:12] in _AVIF_BRANDS:
        return Format("image", "AVIF", "AVIF picture")
    return None


def _video(data: bytes) -> Format | None:
    if data[4:8] == b"ftyp":
        if data[8:12] in _HEIF_BRANDS:
            raise MediaError(
                "decode_unsupported", "the file is a HEIF picture, which is not read here"
            )
        return Format("video", "mov", "MP4 or MOV video")
    # "free" and "skip" also occur in text; an atom of less than 16 MiB begins with a zero byte.
    if data[4:8] in (b"moov", b"mdat") or (data[0] == 0 and data[4:8] in _QUICKTIME_ATOMS):
        return Format("video", "mov", "MOV video")
    if data.startswith(b"\x1a\x45\xdf\xa3"):
        return Format("video", "matroska", "WebM or MKV video")
    if data.startswith(b"RIFF") and data[8:12] == b"AVI ":
        return Format("video", "avi", "AVI video")
    if data.startswith(b"FLV\x01"):
        return Format("video", "flv", "FLV video")
    if data.startswith(b"\x30\x26\xb2\x75\x8e\x66\xcf\x11"):
        return Format("video", "asf", "WMV or ASF video")
    if data.startswith(b"OggS"):
        return Format("video", "ogg", "Ogg video")
    if data.startswith(b"\x00\x00\x01\xba"):
        return Format("video", "mpeg", "MPEG program stream")
    for start, step in _TS_PACKETS:
        if data[start : start + 3 * step : step] == b"\x47\x47\x47":
            return Format("video", "mpegts", "MPEG transport stream")
    return None


def missing_end(source: Source, name: str) -> str | None:
    """A sentence on what is cut off at the end of a video file, or None if nothing is known to be.

    Decoders show the part before the cut as if it were the whole; only the declared sizes tell.
    name: the demuxer's, from `recognise`. Streams without declared sizes always give None.
    """
    content = MediaFile.of(source)
    with content.open() as handle:
        if name == "mov":
            return _missing_box(handle, content.size)
        if name == "matroska":
            return _missing_segment(handle, content.size)
        if name == "avi":
            return _missing_chunk(handle, content.size)
        if name == "GIF":
            return _missing_trailer(handle, content.size)
    return None


def _missing_box(handle: Handle, total: int) -> str | None:
    at = 0
    seen = set()
    for _ in range(_MAX_PARTS):
        if at + 8 > total:
            break
        head = handle.at(at, 16)
        size, name = int.from_bytes(head[:4], "big"), head[4:8]
        if size == 1:
            size = int.from_bytes(head[8:], "big")
        elif size == 0:
            size = total - at
        if size < 8:
            return None  # not a box: what to make of it is the demuxer's affair
        seen.add(name)
        if name in _NEEDED_BOXES and at + size > total:
            return _short(name.decode(), at + size, total)
        at += size
    else:
        return None
    if b"moov" not in seen:
        return "its index (the moov box) is missing"
    return None


def _missing_segment(handle: Handle, total: int) -> str | None:
    at = 0
    for _ in range(_MAX_PARTS):
        if at + 12 > total:
            return "its segment is missing"
        head = handle.at(at, 16)
        size_at = _vint_length(head[0])
        length = _vint_length(head[size_at])
        size = int.from_bytes(head[size_at : size_at + length], "big") & ((1 << 7 * length) - 1)
        if size == (1 << 7 * length) - 1:
            return None  # written live: its length is not declared
        end = at + size_at + length + size
        if head[:size_at] == b"\x18\x53\x80\x67":
            return _short("segment", end, total) if end > total else None
        at = end
    return None


def _vint_length(first: int) -> int:
    return max(1, 9 - first.bit_length())


def _missing_chunk(handle: Handle, total: int) -> str | None:
    at = 0
    for _ in range(_MAX_PARTS):
        head = handle.at(at, 8)
        if head[:4] != b"RIFF" or len(head) < 8:
            break
        end = at + 8 + int.from_bytes(head[4:], "little")
        if end > total:
            return _short("RIFF chunk", end, total)
        at = end + end % 2
    return None


def _missing_trailer(handle: Handle, total: int) -> str | None:
    at = 13 + _colour_table(handle.at(10, 1))
    while at < total:
        block = handle.at(at, 10)
        if block[0] == 0x3B:
            return None
        if block[0] == 0x21:
            at += 2
        elif block[0] == 0x2C:
            at += 11 + _colour_table(block[9:])
        else:
            return None  # not a block: what to make of it is the demuxer's affair
        while (length := handle.at(at, 1)) and length[0]:
            at += 1 + length[0]
        at += 1
    return f"its blocks go on at byte {at}, but the file ends at byte {total}"


def _colour_table(flags: bytes) -> int:
    """Bytes of the colour table that a GIF's flag byte announces."""
    return 3 << (flags[0] & 7) + 1 if flags and flags[0] & 0x80 else 0


def _short(part: str, declared: int, found: int) -> str:
    return f"its {part} should end at byte {declared}, but the file ends at byte {found}"

"""Detects the format of a picture or video file from its bytes, and whether its end is missing.

It reads magic numbers and sizes, and decodes nothing. A file is only opened as the format that is
detected here, so formats that fetch other files (playlists, concatenation lists) cannot be reached.
"""

from dataclasses import dataclass

from mediamill.model.errors import MediaError
from mediamill.model.inputs import VisualKind
from mediamill.model.media.declared_ends import (
    asf_truncation,
    avi_index_truncation,
    flv_truncation,
    ivf_truncation,
    ogg_truncation,
    png_truncation,
    webp_truncation,
)
from mediamill.model.media.media_file import FileHandle, MediaFile, Source
from mediamill.model.media.mp4_boxes import declared_end
from mediamill.model.media.picture_formats import detect_picture, detect_tga


@dataclass(frozen=True)
class FileFormat:
    """The format of a file.

    kind: what it is read as by default. label: for messages.
    name: Pillow's name of the picture format, or FFmpeg's of the demuxer.
    """

    kind: VisualKind
    name: str
    label: str


# Video formats by the first bytes of their files, and other marks of formats.
_VIDEOS = {
    b"\x1a\x45\xdf\xa3": FileFormat("video", "matroska", "WebM or MKV video"),
    b"FLV\x01": FileFormat("video", "flv", "FLV video"),
    b"\x30\x26\xb2\x75\x8e\x66\xcf\x11": FileFormat("video", "asf", "WMV or ASF video"),
    b"OggS": FileFormat("video", "ogg", "Ogg video"),
    b"\x00\x00\x01\xba": FileFormat("video", "mpeg", "MPEG program stream"),
    # Streams of one codec without a container.
    b"\x00\x00\x01\xb3": FileFormat("video", "mpegvideo", "MPEG video stream"),
    b"\x00\x00\x01\xb0": FileFormat("video", "m4v", "MPEG-4 video stream"),
    b"DKIF\0\0": FileFormat("video", "ivf", "IVF video"),
    **dict.fromkeys(
        (b"\0\0\0\1\x67", b"\0\0\1\x67", b"\0\0\0\1\x09", b"\0\0\1\x09"),
        FileFormat("video", "h264", "H.264 stream"),
    ),
    **dict.fromkeys(
        (b"\0\0\0\1\x40\1", b"\0\0\1\x40\1", b"\0\0\0\1\x46\1", b"\0\0\1\x46\1"),
        FileFormat("video", "hevc", "H.265 stream"),
    ),
}
_QUICKTIME_ATOMS = {b"moov", b"mdat", b"wide", b"free", b"skip", b"pnot"}
# Where the first packet begins, and bytes of a packet: plain, with times (M2TS), with parity (DVB).
_TS_STARTS = ((0, 188), (4, 192), (0, 204))
_TS_SYNC = b"\x47"  # the first byte of a packet
# Boxes whose missing end means missing frames; others may be padding.
_REQUIRED_BOXES = {b"mdat", b"moov", b"moof"}
_MAX_BOXES = 1_000_000  # that are read: a file may consist of nothing but the smallest ones


def detect_format(source: Source) -> FileFormat:
    """Returns the format of a file by its bytes, not by its name.

    Raises MediaError media_empty for no bytes, and decode_unsupported for an unknown format.
    """
    media_file = MediaFile.of(source)
    signature = media_file.signature()
    if not signature:
        raise MediaError("media_empty", "the file is empty (0 bytes)")
    picture = detect_picture(signature, media_file.size)
    file_format = None if picture else _video_format(signature)
    if picture is None and file_format is None:
        picture = detect_tga(signature, media_file.size, media_file.tail)
    if picture is not None:
        return FileFormat("image", *picture)
    if file_format is None:
        raise MediaError(
            "decode_unsupported",
            f"the file is no known picture or video: its {media_file.size} bytes begin with "
            f"{signature[:12]!r}",
        )
    return file_format


def _video_format(data: bytes) -> FileFormat | None:
    if data[4:8] == b"ftyp":
        return FileFormat("video", "mov", "MP4 or MOV video")
    # "free" and "skip" also occur in text, but an atom of less than 16 MiB begins with a zero byte.
    if data[4:8] in (b"moov", b"mdat") or (data[0] == 0 and data[4:8] in _QUICKTIME_ATOMS):
        return FileFormat("video", "mov", "MOV video")
    if data.startswith(b"RIFF") and data[8:12] == b"AVI ":
        return FileFormat("video", "avi", "AVI video")
    for beginning, file_format in _VIDEOS.items():
        if data.startswith(beginning):
            return file_format
    return FileFormat("video", "mpegts", "MPEG transport stream") if _is_ts(data) else None


def _is_ts(data: bytes) -> bool:
    """Whether it is a transport stream, which may begin within a packet."""
    if any(data[at : at + 3 * size : size] == 3 * _TS_SYNC for at, size in _TS_STARTS):
        return True
    return any(
        data[start : start + 5 * size : size] == 5 * _TS_SYNC
        for _, size in _TS_STARTS
        for start in range(size)
    )


def find_truncation(source: Source, name: str) -> str | None:
    """Returns what is missing at the end of a video file, in words; None if nothing is.

    Decoders show the part before the cut as if it were the whole file, so the declared sizes are
    compared with the file's. A format without declared sizes always gives None.
    name: of the format, from `detect_format`.
    """
    media_file = MediaFile.of(source)
    checks = {
        "mov": _mp4_truncation,
        "matroska": _matroska_truncation,
        "avi": _avi_truncation,
        "GIF": _gif_truncation,
        "flv": flv_truncation,
        "asf": asf_truncation,
        "ogg": ogg_truncation,
        "ivf": ivf_truncation,
        "PNG": png_truncation,
        "WEBP": webp_truncation,
        "AVIF": _mp4_truncation,
    }
    if name not in checks:
        return None
    with media_file.open() as handle:
        return checks[name](handle, media_file.size)


def _mp4_truncation(handle: FileHandle, total: int) -> str | None:
    offset, names = 0, set()
    for _ in range(_MAX_BOXES):
        if offset + 8 > total:
            break
        header = handle.read_at(offset, 16)
        size, name = int.from_bytes(header[:4], "big"), header[4:8]
        if size == 1:
            size = int.from_bytes(header[8:], "big")
        elif size == 0:
            size = total - offset
        if size < 8:
            return None  # not a box: the demuxer decides what it is
        names.add(name)
        if name in _REQUIRED_BOXES and offset + size > total:
            return _ends_early(name.decode(), offset + size, total)
        offset += size
    else:
        return None
    if b"moov" not in names:
        return "its index (the moov box) is missing"
    end = declared_end(handle, total)
    return _ends_early("video", end, total) if end > total else None


def _matroska_truncation(handle: FileHandle, total: int) -> str | None:
    offset = 0
    for _ in range(_MAX_BOXES):
        if offset + 12 > total:
            return "its segment is missing"
        header = handle.read_at(offset, 16)
        size_offset = _vint_length(header[0])
        length = _vint_length(header[size_offset])
        unknown = (1 << 7 * length) - 1
        size = int.from_bytes(header[size_offset : size_offset + length], "big") & unknown
        if size == unknown:
            return None  # a live recording does not declare its length
        end = offset + size_offset + length + size
        if header[:size_offset] == b"\x18\x53\x80\x67":
            return _ends_early("segment", end, total) if end > total else None
        offset = end
    return None


def _vint_length(first: int) -> int:
    """Returns the bytes of an EBML variable-length integer by its first byte (RFC 8794)."""
    return max(1, 9 - first.bit_length())


def _avi_truncation(handle: FileHandle, total: int) -> str | None:
    offset = 0
    for _ in range(_MAX_BOXES):
        header = handle.read_at(offset, 8)
        if header[:4] != b"RIFF" or len(header) < 8:
            break
        end = offset + 8 + int.from_bytes(header[4:], "little")
        if end > total:
            return _ends_early("RIFF chunk", end, total)
        offset = end + end % 2
    return avi_index_truncation(handle, total)


def _gif_truncation(handle: FileHandle, total: int) -> str | None:
    offset = 13 + _colour_table(handle.read_at(10, 1))
    while offset < total:
        block = handle.read_at(offset, 10)
        if block[0] == 0x3B:
            return None
        if block[0] == 0x21:
            offset += 2
        elif block[0] == 0x2C:
            offset += 11 + _colour_table(block[9:])
        else:
            return None  # not a block: the demuxer decides what it is
        while (length := handle.read_at(offset, 1)) and length[0]:
            offset += 1 + length[0]
        offset += 1
    return f"its blocks go on at byte {offset}, but the file ends at byte {total}"


def _colour_table(flags: bytes) -> int:
    """Returns the bytes of the colour table that a GIF's flag byte announces."""
    return 3 << (flags[0] & 7) + 1 if flags and flags[0] & 0x80 else 0


def _ends_early(part: str, end: int, total: int) -> str:
    return f"its {part} should end at byte {end}, but the file ends at byte {total}"

"""Reads what the boxes of an MP4 or MOV file declare, without opening the video.

A few bytes can declare billions of samples, for each of which FFmpeg allocates memory on opening.
"""

import struct
from collections.abc import Iterator

from mediamill.model.media.media_file import FileHandle, MediaFile

_CONTAINER_BOXES = {b"moov", b"trak", b"mdia", b"minf", b"stbl", b"moof", b"traf", b"dinf"}
_MAX_CHUNK_SAMPLES = 100_000
_MAX_BOXES = 10_000_000  # a box has at least 8 bytes; a long video has few boxes per fragment


def declared_samples(media_file: MediaFile) -> int:
    """Returns the declared samples of the track that has most of them (ISO/IEC 14496-12).

    Outside of fragments sound tracks are not counted: a long one may really have that many.
    """
    track_samples = [0]
    fragment_samples: dict[int, int] = {}  # by track number
    is_sound, track = False, 0
    with media_file.open() as handle:
        for name, body in boxes(handle, media_file.size):
            if name == b"trak":
                is_sound = False
            elif name == b"hdlr":
                is_sound = handle.read_at(body + 8, 4) == b"soun"
            elif name in (b"stsz", b"stz2") and not is_sound:
                track_samples.append(_uint32(handle, body + 8))
            elif name == b"tfhd":
                track = _uint32(handle, body + 4)
            elif name == b"trun":
                samples = _uint32(handle, body + 4)
                fragment_samples[track] = fragment_samples.get(track, 0) + samples
    return max([*track_samples, *fragment_samples.values()])


def declared_end(handle: FileHandle, total: int) -> int:
    """Returns the byte at which the video ends by the index of samples, or of fragments (sidx).

    0 for a file that does not tell. Only the last chunk of each track of pictures is looked at.
    """
    ends = [0]
    is_video = is_own = True
    last_samples = last_chunk_samples = 0
    for name, body in boxes(handle, total):
        if name == b"trak":
            is_video, is_own, last_samples, last_chunk_samples = False, True, 0, 0
        elif name == b"hdlr":
            is_video = handle.read_at(body + 8, 4) == b"vide"
        elif name == b"dref":  # the samples may lie in another file
            is_own = bool(_uint32(handle, body + 16) & 1)
        elif name == b"stsc" and (count := _uint32(handle, body + 4)):
            last_chunk_samples = _uint32(handle, body + 8 + 12 * (count - 1) + 4)
        elif name == b"stsz":
            same, count = _uint32(handle, body + 4), _uint32(handle, body + 8)
            taken = min(last_chunk_samples, count, _MAX_CHUNK_SAMPLES)
            table = handle.read_at(body + 12 + 4 * (count - taken), 4 * taken)
            sizes = struct.unpack(f">{len(table) // 4}I", table[: len(table) // 4 * 4])
            last_samples = same * taken if same else sum(sizes)
        elif name in (b"stco", b"co64") and is_video and is_own:
            width, count = (4, 8)[name == b"co64"], _uint32(handle, body + 4)
            if count:
                last = handle.read_at(body + 8 + width * (count - 1), width)
                ends.append(int.from_bytes(last, "big") + last_samples)
        elif name == b"sidx" and len(ends) == 1:
            ends.append(_fragments_end(handle, body))
    return max(ends)


def _fragments_end(handle: FileHandle, body: int) -> int:
    """Returns the end of the last fragment by a sidx box, the first one of the file."""
    size = _uint32(handle, body - 8)
    wide = handle.read_at(body, 1) == b"\1"
    place = body + (28 if wide else 20)
    first = int.from_bytes(handle.read_at(place - (8 if wide else 4), 8 if wide else 4), "big")
    count = int.from_bytes(handle.read_at(place + 2, 2), "big")
    table = handle.read_at(place + 4, 12 * count)
    sizes = struct.iter_unpack(">III", table[: len(table) // 12 * 12])
    return int(body - 8 + size + first + sum(entry[0] & 0x7FFFFFFF for entry in sizes))


def boxes(handle: FileHandle, total: int) -> Iterator[tuple[bytes, int]]:
    """Yields (name, offset of the body) of each box, outer boxes before inner ones."""
    offset, ends = 0, [total]
    for _ in range(_MAX_BOXES):
        while len(ends) > 1 and offset + 8 > ends[-1]:
            offset = ends.pop()
        if offset + 8 > ends[-1]:
            return
        header = handle.read_at(offset, 16)
        size, name, body = int.from_bytes(header[:4], "big"), header[4:8], offset + 8
        if size == 1:
            size, body = int.from_bytes(header[8:], "big"), offset + 16
        end = ends[-1] if size == 0 else offset + size
        yield name, body
        if end < body:
            # Not a box: go on behind the box that holds it.
            offset = ends.pop() if len(ends) > 1 else total
        elif name in _CONTAINER_BOXES:
            ends.append(min(end, ends[-1]))
            offset = body
        else:
            offset = end


def _uint32(handle: FileHandle, offset: int) -> int:
    return int.from_bytes(handle.read_at(offset, 4), "big")

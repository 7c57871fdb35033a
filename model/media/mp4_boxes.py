"""Counts the samples that the boxes of an MP4 or MOV file declare, without opening the video.

A few bytes can declare billions of samples, for each of which FFmpeg allocates memory on opening.
"""

from collections.abc import Iterator

from mediamill.model.media.media_file import FileHandle, MediaFile

_CONTAINER_BOXES = {b"moov", b"trak", b"mdia", b"minf", b"stbl", b"moof", b"traf"}
_MAX_BOXES = 10_000_000  # a box has at least 8 bytes; a long video has few boxes per fragment


def declared_samples(media_file: MediaFile) -> int:
    """Returns the declared samples of the track that has most of them (ISO/IEC 14496-12).

    Outside of fragments sound tracks are not counted: a long one may really have that many.
    """
    track_samples = [0]
    fragment_samples: dict[int, int] = {}  # by track number
    is_sound, track = False, 0
    with media_file.open() as handle:
        for name, body in _boxes(handle, media_file.size):
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


def _boxes(handle: FileHandle, total: int) -> Iterator[tuple[bytes, int]]:
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

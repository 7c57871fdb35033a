"""Turns the boxes of an MP4 or MOV file into the number of samples that they tell of.

A few bytes may tell of billions of samples, for each of which the video library takes memory when
it opens the file. What a sample is, and whether it is there, is not known here.
"""

from collections.abc import Iterator

from mediamill.model.media.content import Handle, MediaFile

_HOLD_OTHERS = {b"moov", b"trak", b"mdia", b"minf", b"stbl", b"moof", b"traf"}
_MAX_BOXES = 10_000_000  # a box is at least 8 bytes, a sample of a day's video has none of its own


def told_samples(content: MediaFile) -> int:
    """Samples of the stream that has most of them; sound is only counted within fragments.

    Sound outside of fragments may truly have a sample for each of its values.
    """
    told = [0]
    fragments: dict[int, int] = {}
    sound, track = False, 0
    with content.open() as handle:
        for name, body in _boxes(handle, content.size):
            if name == b"trak":
                sound = False
            elif name == b"hdlr":
                sound = handle.at(body + 8, 4) == b"soun"
            elif name in (b"stsz", b"stz2") and not sound:
                told.append(_number(handle, body + 8))
            elif name == b"tfhd":
                track = _number(handle, body + 4)
            elif name == b"trun":
                fragments[track] = fragments.get(track, 0) + _number(handle, body + 4)
    return max([*told, *fragments.values()])


def _boxes(handle: Handle, total: int) -> Iterator[tuple[bytes, int]]:
    """(name, first byte behind the head) of each box, outer ones before inner ones."""
    at, ends = 0, [total]
    for _ in range(_MAX_BOXES):
        while len(ends) > 1 and at + 8 > ends[-1]:
            at = ends.pop()
        if at + 8 > ends[-1]:
            return
        head = handle.at(at, 16)
        size, name, body = int.from_bytes(head[:4], "big"), head[4:8], at + 8
        if size == 1:
            size, body = int.from_bytes(head[8:], "big"), at + 16
        end = ends[-1] if size == 0 else at + size
        yield name, body
        if end < body:
            at = ends.pop() if len(ends) > 1 else total  # no box: nothing more can be told here
        elif name in _HOLD_OTHERS:
            ends.append(min(end, ends[-1]))
            at = body
        else:
            at = end


def _number(handle: Handle, place: int) -> int:
    return int.from_bytes(handle.at(place, 4), "big")

"""Turns the places where decoding may begin anew into decoding no more than chosen frames need.

Which frames those are, and what becomes of them, is not known here.
"""

from bisect import bisect_left
from collections.abc import Iterator
from typing import TypeAlias

import av
from av.container import InputContainer
from av.packet import Packet
from av.video.stream import VideoStream

from mediamill.model.media.containers import Format
from mediamill.model.media.content import MediaFile
from mediamill.model.media.frame_collector import FrameCollector
from mediamill.model.media.keyframes import Restart, Restarts
from mediamill.model.media.limits import MediaLimits
from mediamill.model.media.timeline import Timeline
from mediamill.model.media.video_file import opened

_PROOF = 8  # frames at the beginning that have to be as the packets promise, before any is left out
_FAR = 30  # packets that are sooner read than another place is found

_Numbered: TypeAlias = "tuple[int, Packet[VideoStream]]"


def leap(
    content: MediaFile,
    found: Format,
    timeline: Timeline,
    restarts: Restarts,
    kept: FrameCollector,
    limits: MediaLimits,
) -> bool:
    """Decodes from one place to begin anew to the next, and only what the chosen frames need.

    False: something is not as the packets promised, or is damaged; whether that matters, a decoding
    of everything has to tell.
    """
    if restarts.by_index:
        try:
            return _from_place_to_place(content, found, timeline, restarts, kept, limits, True)
        except _LostError:
            kept.forget()
    return _from_place_to_place(content, found, timeline, restarts, kept, limits, False)


class _LostError(Exception):
    """The container's index leads elsewhere."""


def _found_by_index(
    container: InputContainer, stream: VideoStream, place: Restart
) -> Iterator[_Numbered]:
    """The packets from a place on, with their ordinals. Raises _LostError if it is not found."""
    try:
        container.seek(place.stamp, stream=stream)
        packets = container.demux(stream)
        for packet in packets:
            # What comes earlier is read and dropped.
            if packet.pts is None or packet.pts > place.stamp:
                break
            if packet.pts == place.stamp:
                if packet.size != place.size or not packet.is_keyframe:
                    break
                yield place.packet, packet
                yield from enumerate(packets, place.packet + 1)
                return
    except av.FFmpegError as error:
        raise _LostError from error
    raise _LostError


def _from_place_to_place(
    content: MediaFile,
    found: Format,
    timeline: Timeline,
    restarts: Restarts,
    kept: FrameCollector,
    limits: MediaLimits,
    by_index: bool,
) -> bool:
    """As `leap`.

    by_index: the container's index leads over what is left out, at places that are far. Otherwise
    it is read and dropped, which gives the same packets in every container.
    """
    stamps, proof = timeline.stamps, min(_PROOF, len(timeline.stamps))
    expected, resume, floor = 0, 0, None  # floor: stamp of the place that is decoded from
    with opened(content, found, limits) as (container, stream):
        packets: Iterator[_Numbered] = enumerate(container.demux(stream))
        while (following := next(packets, None)) is not None:
            number, packet = following
            if number < resume:
                continue
            if floor is not None and number == resume:
                stream.codec_context.flush_buffers()
            try:
                frames = packet.decode()
            except av.FFmpegError:
                return False
            for frame in frames:
                if frame.pts is None:
                    return False
                if floor is not None:
                    if frame.pts < floor:  # shown before, and decoded without what it refers to
                        continue
                    if not frame.key_frame:
                        return False
                    floor = None
                if expected == len(stamps) or frame.pts != stamps[expected] or frame.is_corrupt:
                    return False
                kept.see(expected, frame)
                expected += 1
            if expected < proof or floor is not None:
                continue
            if kept.complete:
                return True
            place = restarts.before(stamps[kept.next_index])
            if place is not None and place.packet > number + 1:
                if by_index and place.packet > number + _FAR:
                    packets = _found_by_index(container, stream, place)
                resume, floor = place.packet, place.stamp
                expected = bisect_left(stamps, floor)
    return kept.complete

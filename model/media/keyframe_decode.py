"""Decodes only what the selected frames need: skips from one keyframe to the next one needed."""

from bisect import bisect_left
from collections.abc import Iterator
from typing import TypeAlias

import av
from av.container import InputContainer
from av.video.stream import VideoStream

from mediamill.model.media.frame_collector import FrameCollector
from mediamill.model.media.keyframes import Keyframe
from mediamill.model.media.media_file import MediaFile
from mediamill.model.media.packets import TimedPackets, VideoPacket
from mediamill.model.media.video_file import STOP_AT_DAMAGE, PacketScan, open_video

# The first frames must come as the packets promised before anything is skipped.
_VERIFIED_FRAMES = 8
_MIN_SEEK_PACKETS = 30  # reading and dropping fewer packets is faster than a seek

_NumberedPacket: TypeAlias = tuple[int, VideoPacket]


def decode_by_keyframes(media_file: MediaFile, scan: PacketScan, collector: FrameCollector) -> bool:
    """Decodes the frames that `collector` needs, and skips packets up to keyframes before them.

    Returns False if a frame is not as the packets promised, or is damaged. The caller then has to
    decode everything to find out whether that matters.
    """
    if scan.keyframes.seekable:
        try:
            return _decode(media_file, scan, collector, use_seeks=True)
        except _SeekError:
            collector.reset()
    return _decode(media_file, scan, collector, use_seeks=False)


class _SeekError(Exception):
    """A seek did not reach its keyframe."""


def _seek(
    container: InputContainer, stream: VideoStream, keyframe: Keyframe
) -> Iterator[_NumberedPacket]:
    """Yields the packets from a keyframe on, with their numbers. Raises _SeekError."""
    try:
        container.seek(keyframe.timestamp, stream=stream)
        packets = container.demux(stream)
        for packet in packets:
            # The seek may end before the keyframe, never behind it.
            if packet.pts is None or packet.pts > keyframe.timestamp:
                break
            if packet.pts == keyframe.timestamp:
                if packet.size != keyframe.size or not packet.is_keyframe:
                    break
                yield keyframe.packet, packet
                yield from enumerate(packets, keyframe.packet + 1)
                return
    except av.FFmpegError as error:
        raise _SeekError from error
    raise _SeekError


def _decode(
    media_file: MediaFile, scan: PacketScan, collector: FrameCollector, use_seeks: bool
) -> bool:
    """As `decode_by_keyframes`.

    use_seeks: seeks to keyframes that are far ahead, and does not read and drop the packets before.
    """
    timestamps = scan.timeline.timestamps
    verified = min(_VERIFIED_FRAMES, len(timestamps))
    # expected: index of the next frame. resume: packet of the keyframe to skip to; start: its
    # timestamp until the keyframe has been decoded.
    expected, resume, start = 0, 0, None
    opened = open_video(media_file, collector.file_format, collector.budget.limits)
    with opened as (container, stream):
        # Where a decoder conceals damage, it takes what lies in its memory: other frames than in a
        # decode of the whole file.
        stream.codec_context.options = {**stream.codec_context.options, **STOP_AT_DAMAGE}
        timed = TimedPackets(container, stream, collector.file_format.name)
        packets: Iterator[_NumberedPacket] = enumerate(timed)
        while (numbered := next(packets, None)) is not None:  # `packets` changes on the way
            number, packet = numbered
            if number < resume:
                continue
            if start is not None and number == resume:
                stream.codec_context.flush_buffers()
            try:
                frames = packet.decode()
            except av.FFmpegError:
                return False
            for frame in frames:
                if frame.pts is None:
                    return False
                if start is not None:
                    if frame.pts < start:  # shown earlier, decoded without its references
                        continue
                    if not frame.key_frame:
                        return False
                    start = None
                is_expected = expected < len(timestamps) and frame.pts == timestamps[expected]
                if not is_expected or frame.is_corrupt:
                    return False
                collector.add(expected, frame)
                expected += 1
            if expected < verified or start is not None:
                continue
            if collector.complete:
                return True
            keyframe = scan.keyframes.last_before(timestamps[collector.next_index])
            if keyframe is not None and keyframe.packet > number + 1:
                if use_seeks and keyframe.packet > number + _MIN_SEEK_PACKETS:
                    packets = _seek(container, stream, keyframe)
                resume, start = keyframe.packet, keyframe.timestamp
                expected = bisect_left(timestamps, start)
    return collector.complete

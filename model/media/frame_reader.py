"""Decodes all frames of a video file, in display order."""

from collections import deque
from collections.abc import Callable, Generator, Sequence
from fractions import Fraction

import av
from av.packet import Packet
from av.video.frame import VideoFrame
from av.video.stream import VideoStream

from mediamill.model.errors import MediaError
from mediamill.model.media.animations import WEBP_ANIMATION, webp_frames, webp_timeline
from mediamill.model.media.containers import FileFormat
from mediamill.model.media.limits import MediaLimits
from mediamill.model.media.media_file import MediaFile
from mediamill.model.media.packets import TimedPackets, is_repeat
from mediamill.model.media.video_file import STOP_AT_DAMAGE, open_video

# Deblocking takes a third of the decoding time and changes little of what a frame shows.
_SKIP_LOOP_FILTER = {"skip_loop_filter": "all"}


class ConcealedDamageError(Exception):
    """Packets are damaged, or seem to be. The message says where."""


class FrameReader:
    """One pass through the frames of a video.

    count: frames that were decoded so far. timestamp: of the last one.
    skipped_packets: undecodable packets before the first frame.
    rate, time_base: set when `read` begins: frames per second by the header, seconds of one unit.
    """

    def __init__(
        self, file_format: FileFormat, limits: MediaLimits, stop_at_damage: bool = False
    ) -> None:
        """stop_at_damage: `read` raises ConcealedDamageError for damage that a decoder conceals."""
        self.file_format, self.limits, self._stop_at_damage = file_format, limits, stop_at_damage
        self.count = self.timestamp = self.skipped_packets = 0
        self.rate, self.time_base = 1.0, Fraction(1)

    def read(
        self,
        media_file: MediaFile,
        seconds: Callable[[int], float] | None = None,
        skip_loop_filter: bool = False,
    ) -> Generator[tuple[int, VideoFrame]]:
        """Yields (timestamp, frame) of each frame.

        seconds: converts a timestamp, for error messages.
        skip_loop_filter: decodes faster, to pixels that are slightly off.
        Raises MediaError as `open_video`, and decode_too_large for too many frames.
        """
        if self.file_format == WEBP_ANIMATION:
            timeline, _ = webp_timeline(media_file, self.limits)
            self.rate, self.time_base = 1 / max(timeline.duration_s, 1e-3), timeline.time_base
            self.rate *= len(timeline.timestamps)
            for timestamp, frame in webp_frames(media_file, timeline, self.limits):
                yield self._counted(timestamp), frame
            return
        with open_video(media_file, self.file_format, self.limits) as (container, stream):
            context = stream.codec_context
            if skip_loop_filter:
                context.options = {**context.options, **_SKIP_LOOP_FILTER}
            if self._stop_at_damage:
                context.options = {**context.options, **STOP_AT_DAMAGE}
            self.rate = float(stream.average_rate or stream.base_rate or 25)
            self.time_base = stream.time_base or Fraction(1)
            step = max(1, round(1 / (self.rate * float(self.time_base))))
            shown: VideoFrame | None = None
            repeats: deque[int] = deque()  # times at which `shown` is shown again
            for packet in TimedPackets(container, stream, self.file_format.name):
                if is_repeat(packet):
                    assert packet.pts is not None
                    repeats.append(packet.pts)
                    continue
                for frame in self._decode(packet, seconds):
                    default = self.timestamp + step if self.count else 0
                    timestamp = default if frame.pts is None else frame.pts
                    while repeats and repeats[0] < timestamp:
                        repeat = repeats.popleft()
                        if shown is not None:
                            yield self._counted(repeat), shown
                    shown = frame
                    yield self._counted(timestamp), frame
            if shown is not None:
                for repeat in repeats:
                    yield self._counted(repeat), shown
        if not self.count:
            raise MediaError(
                "decode_corrupt", f"no frame of the {self.file_format.label} can be decoded"
            )

    def _counted(self, timestamp: int) -> int:
        """Counts one more frame, and returns its timestamp."""
        if self.count >= self.limits.max_frames_decoded:
            raise too_many_frames_error(self.file_format, self.count + 1, self.limits)
        self.count += 1
        self.timestamp = timestamp
        return timestamp

    def _decode(
        self, packet: "Packet[VideoStream]", seconds: Callable[[int], float] | None
    ) -> Sequence[VideoFrame]:
        try:
            return packet.decode()
        except av.FFmpegError as error:
            if self._stop_at_damage:
                raise ConcealedDamageError(f"after frame {self.count - 1}") from error
            if not isinstance(error, av.error.InvalidDataError):
                raise
            # A recording may begin between keyframes: nothing before the first one decodes.
            if not self.count:
                self.skipped_packets += 1
                return ()
            time_s = seconds(self.timestamp) if seconds else 0.0
            raise MediaError(
                "decode_corrupt",
                f"the {self.file_format.label} is damaged after frame {self.count - 1} "
                f"({time_s:.3f} s): {error.strerror}",
            ) from error


def too_many_frames_error(file_format: FileFormat, count: int, limits: MediaLimits) -> MediaError:
    """Returns the error of a video with more than max_frames_decoded frames to decode."""
    return MediaError(
        "decode_too_large",
        f"{count} frames of the {file_format.label} would have to be decoded; "
        f"the limit is {limits.max_frames_decoded}",
    )

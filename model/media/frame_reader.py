"""Turns the bytes of a video file into all its frames, in the order of display.

Which of them somebody wants is not known here.
"""

from collections.abc import Callable, Generator, Iterator
from fractions import Fraction

import av
from av.container import InputContainer
from av.video.frame import VideoFrame
from av.video.stream import VideoStream

from mediamill.model.errors import MediaError
from mediamill.model.media.containers import Format
from mediamill.model.media.content import MediaFile
from mediamill.model.media.limits import MediaLimits
from mediamill.model.media.video_file import opened

# What smooths the edges of blocks costs a third of a decoding, and nothing of what a picture shows.
_ROUGH = {"skip_loop_filter": "all"}


class FrameReader:
    """One pass through the frames of a video.

    count: frames that came so far; stamp: of the last one. damaged: packets that were left out
    before the first one.
    rate: frames a second by the header; unit: of the stamps, in seconds; both while it reads.
    """

    def __init__(self, found: Format, limits: MediaLimits) -> None:
        self.found, self.limits = found, limits
        self.count = self.stamp = 0
        self.damaged = 0
        self.rate = 1.0
        self.unit = Fraction(1)

    def read(
        self,
        content: MediaFile,
        seconds: Callable[[int], float] | None = None,
        rough: bool = False,
    ) -> Generator[tuple[int, VideoFrame]]:
        """(time stamp, frame) of each. seconds: of a stamp, for errors.

        rough: pixels may be a little off. Raises MediaError as `opened`, and decode_too_large for
        too many frames.
        """
        with opened(content, self.found, self.limits) as (container, stream):
            if rough:
                context = stream.codec_context
                context.options = {**context.options, **_ROUGH}
            self.rate = float(stream.average_rate or stream.base_rate or 25)
            self.unit = stream.time_base or Fraction(1)
            step = max(1, round(1 / (self.rate * float(self.unit))))
            for frame in self._decoded(container, stream, seconds):
                following = self.stamp + step if self.count else 0
                if self.count >= self.limits.max_frames_decoded:
                    raise too_many_frames(self.found, self.count + 1, self.limits)
                self.count += 1
                self.stamp = following if frame.pts is None else frame.pts
                yield self.stamp, frame
        if not self.count:
            raise MediaError("decode_corrupt", f"no frame of the {self.found.label} can be decoded")

    def _decoded(
        self,
        container: InputContainer,
        stream: VideoStream,
        seconds: Callable[[int], float] | None,
    ) -> Iterator[VideoFrame]:
        for packet in container.demux(stream):
            try:
                yield from packet.decode()
            except av.error.InvalidDataError as error:
                # A recording may begin between key frames: nothing can be shown before the first.
                if self.count:
                    at = seconds(self.stamp) if seconds else 0.0
                    raise MediaError(
                        "decode_corrupt",
                        f"the {self.found.label} is damaged after frame {self.count - 1} "
                        f"({at:.3f} s): {error.strerror}",
                    ) from error
                self.damaged += 1


def too_many_frames(found: Format, count: int, limits: MediaLimits) -> MediaError:
    """The error of a video whose decoding would take too long."""
    return MediaError(
        "decode_too_large",
        f"{count} frames of the {found.label} would have to be decoded; "
        f"the limit is {limits.max_frames_decoded}",
    )

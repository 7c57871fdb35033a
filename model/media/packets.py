"""Reads the packets of a stream, with one time line that goes on from the first to the last.

The times of a recording begin anew where files were joined (TS, VOB or MPG by `cat`, HLS
segments), where a 33-bit counter wraps, and after an interruption. Players go on there, by the rule
of the ffmpeg command, which holds here, too:

    a packet more than 0.1 s before the one before it begins a new time line, as does one more than
    10 s after it in formats whose times are known to jump (others: 30 hours);
    its decoding time becomes the end of the packet before.
"""

from collections.abc import Iterator
from fractions import Fraction
from typing import NamedTuple, TypeAlias

from av.container import InputContainer
from av.packet import Packet
from av.video.stream import VideoStream

VideoPacket: TypeAlias = "Packet[VideoStream]"

_BACK_S = 0.1
_BACK_WITHOUT_DTS_S = 5.0
_AHEAD_S = {"mpegts": 10.0, "mpeg": 10.0, "ogg": 10.0}
_AHEAD_ELSEWHERE_S = 30 * 3600.0
_NEAR_S = 1.0


class TimedPackets:
    """Corrects the times of packets as they are read.

    jumps: how often the time line began anew so far. first_jump_s: when, from the first packet.
    """

    def __init__(self, container: InputContainer, stream: VideoStream, container_name: str) -> None:
        self._container, self._stream = container, stream
        time_base = stream.time_base or Fraction(1, 1000)
        rate = stream.average_rate or stream.base_rate or 25
        self._second = 1 / time_base
        step = max(1, round(self._second / rate))
        ahead = _AHEAD_S.get(container_name, _AHEAD_ELSEWHERE_S)
        # Some demuxers do not know the decoding time of each packet. Of the others the time of the
        # frame counts, which goes back and forth within a group of pictures.
        self._decoding = _Times(step, _limits(self._second, _BACK_S, ahead))
        self._frames = _Times(step, _limits(self._second, _BACK_WITHOUT_DTS_S, ahead))
        self._offset = self._offset_before = 0
        self._first: int | None = None
        self.jumps, self.first_jump_s = 0, 0.0

    def __iter__(self) -> Iterator[VideoPacket]:
        """Yields the packets in the order of the file; the last one is empty, without times."""
        is_end = False
        try:
            for packet in self._container.demux(self._stream):
                self._correct(packet)
                is_end = packet.pts is None and packet.dts is None and not packet.size
                yield packet
        except IndexError:
            # PyAV looks for more streams than it knows at the end of a file in which streams appear
            # late, after the last packet of this stream.
            if not is_end:
                raise

    @property
    def notes(self) -> tuple[str, ...]:
        """What was corrected so far, in words."""
        if not self.jumps:
            return ()
        times = "once" if self.jumps == 1 else f"{self.jumps} times"
        return (f"time line begins anew {times}, first at {self.first_jump_s:.3f} s: carried on",)

    def _correct(self, packet: VideoPacket) -> None:
        time = packet.pts if packet.dts is None else packet.dts
        if time is None:
            return
        self._first = time if self._first is None else self._first
        known, other = self._decoding, self._frames
        if packet.dts is None:
            known, other = other, known
        offset = known.offset(time, self._offset, self._offset_before)
        if offset != self._offset:
            self._offset, self._offset_before = offset, self._offset
            other.reset()
            self.jumps += 1
            if self.jumps == 1:
                self.first_jump_s = float((time + offset - self._first) / self._second)
        if offset:
            packet.pts = None if packet.pts is None else packet.pts + offset
            packet.dts = None if packet.dts is None else packet.dts + offset
        known.add(time + offset, packet.duration or 0)


class _Limits(NamedTuple):
    """Units of time. back, ahead: from where on a time line is a new one.

    near: how far two packets of one time line may be apart after a detour of the times.
    """

    back: int
    ahead: int
    near: int


def _limits(second: Fraction, back_s: float, ahead_s: float) -> _Limits:
    return _Limits(*(round(seconds * second) for seconds in (back_s, ahead_s, _NEAR_S)))


class _Times:
    """Follows the corrected times of packets."""

    def __init__(self, step: int, limits: _Limits) -> None:
        """step: units from one packet to the next, until they tell it themselves."""
        self._step, self._limits = step, limits
        self._last: int | None = None  # the last time, and the one before
        self._trail: int | None = None

    def reset(self) -> None:
        """Forgets the times."""
        self._last = self._trail = None

    def offset(self, time: int, offset: int, before: int) -> int:
        """Returns the offset for the next packet. offset, before: the current one, the last one."""
        last, trail, limits = self._last, self._trail, self._limits
        if last is None:
            return offset
        expected = last + self._step
        late = time + offset - expected
        is_back = time + offset < last - limits.back
        is_far = trail is not None and last - trail > limits.near
        if abs(late) > limits.near and abs(time + before - expected) <= limits.near:
            return before
        if is_back and is_far and trail is not None and abs(time + offset - trail) <= limits.near:
            return offset  # the time of the last packet alone was wrong
        return offset - late if is_back or late > limits.ahead else offset

    def add(self, time: int, duration: int) -> None:
        """Takes the corrected time of the next packet. duration: 0 = unknown."""
        if duration > 0:
            self._step = duration
        elif self._last is not None and 0 < time - self._last <= self._limits.near:
            self._step = time - self._last
        self._trail, self._last = self._last, time


def is_repeat(packet: VideoPacket) -> bool:
    """Whether a packet has a time and no bytes: it shows the picture before it once more."""
    return not packet.size and packet.pts is not None

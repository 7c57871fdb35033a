"""Turns the packets of a video into the places where decoding may begin anew.

Knows the bytes of packets only: it neither opens files nor decodes. A place counts only if all that
is shown from it on can be decoded from it on, bit for bit as after everything before it.
"""

from array import array
from bisect import bisect_right
from collections.abc import Sequence, Set
from dataclasses import dataclass, field
from typing import NamedTuple

# One packet of these is one frame that is shown, and what follows a key frame, in the order of
# decoding and of display, refers to nothing before it. Elsewhere headers of earlier packets may
# still hold (MPEG-2, MPEG-4), or packets may show nothing (VP8).
_CODECS = {"h264", "hevc", "vp9", "av1"}
# Whose packets tell the times of display. AVI, for one, tells the order of decoding only.
_CONTAINERS = {"mov", "matroska", "mpegts", "flv"}
# Whose demuxers go to a key frame by an index of the file; how they find others they guess.
_INDEXED = {"mov", "matroska"}
_START = b"\0\0\1"
_NUMBERS = 3  # of a place


class Restart(NamedTuple):
    """packet: ordinal in the file, counted over all packets of the stream. stamp: of its frame.
    size: bytes of the packet.
    """

    packet: int
    stamp: int
    size: int = 0


@dataclass(frozen=True)
class Restarts:
    """Where decoding may begin anew: ascending by packet and by stamp.

    numbers: int64, those of one place after the other: a long video has very many.
    by_index: whether the container's index leads to them.
    """

    numbers: "array[int]" = field(default_factory=lambda: array("q"))
    by_index: bool = False

    @classmethod
    def of(cls, places: Sequence[Restart], by_index: bool = False) -> "Restarts":
        """Of a few places."""
        return cls(array("q", [number for place in places for number in place]), by_index)

    def __len__(self) -> int:
        return len(self.numbers) // _NUMBERS

    def place(self, at: int) -> Restart:
        """One of them, by its ordinal."""
        return Restart(*self.numbers[at * _NUMBERS : (at + 1) * _NUMBERS])

    def before(self, stamp: int) -> Restart | None:
        """The last place from which the frame of this time stamp can be decoded; None: there is
        none, begin at the beginning.
        """
        at = bisect_right(range(len(self)), stamp, key=lambda one: self.place(one).stamp)
        return self.place(at - 1) if at else None


class RestartFinder:
    """Looks at all packets of a stream, in the order of the file."""

    def __init__(self, container: str, codec: str, extradata: bytes) -> None:
        """container, codec: the library's names. extradata: the stream's headers, may be empty."""
        self.codec, self.length_size = codec, _length_size(codec, extradata)
        self.possible = container in _CONTAINERS and codec in _CODECS
        self.numbers = array("q")
        self.by_index = container in _INDEXED
        self.latest: int | None = None
        self.with_headers: set[bool] = set()

    def see(self, number: int, stamp: int | None, key_frame: bytes | None, shown: bool) -> None:
        """One packet. key_frame: its bytes if the container calls it one, else None.

        stamp: of display. shown: False for a packet whose frame is decoded and left out.
        """
        if stamp is None:
            self.give_up()
        if not self.possible or stamp is None:
            return
        begins = key_frame is not None and self._restarts(key_frame)
        # Of earlier packets, no frame may be shown later.
        if begins and shown and (self.latest is None or stamp > self.latest):
            assert key_frame is not None
            self.numbers.extend(Restart(number, stamp, len(key_frame)))
        self.latest = stamp if self.latest is None else max(self.latest, stamp)

    def give_up(self) -> None:
        """The stream changes its headers on the way, or tells no times."""
        self.possible = False

    def found(self) -> Restarts:
        """What there is. Nothing if only some key frames bring their headers: which ones hold at
        the others depends on packets that would be left out.
        """
        if not self.possible or len(self.with_headers) > 1:
            return Restarts()
        return Restarts(self.numbers, self.by_index)

    def _restarts(self, packet: bytes) -> bool:
        if self.codec == "h264":
            # Only after an IDR picture (5) is nothing before it referred to.
            kinds = nal_units(packet, self.codec, self.length_size)
            self.with_headers.add(kinds >= {7, 8})
            return 5 in kinds
        if self.codec == "hevc":
            kinds = nal_units(packet, self.codec, self.length_size)
            self.with_headers.add(kinds >= {32, 33, 34})
            return bool(kinds & set(range(16, 22)))
        return True


def nal_units(packet: bytes, codec: str, length_size: int) -> Set[int]:
    """Types of an H.264 or H.265 packet's NAL units, up to the first one of picture data.

    length_size: bytes of the length before each unit; 0: start codes stand between them. Malformed
    packets give what could be read. Source: ITU-T H.264 table 7-1, H.265 table 7-1.
    """
    kinds: set[int] = set()
    at = 0
    while True:
        if length_size:
            body = at + length_size
            size = int.from_bytes(packet[at:body], "big")
            at = body + size
        else:
            found = packet.find(_START, at)
            body = found + len(_START) if found >= 0 else len(packet)
            at = body
        if body >= len(packet):
            return kinds
        kind = packet[body] & 31 if codec == "h264" else packet[body] >> 1 & 63
        kinds.add(kind)
        if 1 <= kind <= 5 if codec == "h264" else kind < 32:
            return kinds


def _length_size(codec: str, extradata: bytes) -> int:
    """Of avcC and hvcC headers (ISO/IEC 14496-15); others have start codes: 0."""
    at = {"h264": 4, "hevc": 21}.get(codec)
    if at is None or len(extradata) <= at or extradata[0] != 1:
        return 0
    return (extradata[at] & 3) + 1

"""Builds the index of a video's keyframes at which decoding can start, from its packets.

It reads the bytes of packets only; it neither opens files nor decodes. A keyframe is in the index
only if every frame that is shown from it on can be decoded from it on, bit for bit as in a decode
of the whole file: a random access point.
"""

from array import array
from bisect import bisect_right
from collections.abc import Set
from dataclasses import dataclass, field
from typing import NamedTuple

# Codecs in which one packet is one frame that is shown, and in which the frames after a keyframe,
# in decoding and in display order, refer to nothing before it. In others, headers of earlier
# packets may still apply (MPEG-2, MPEG-4), or packets may show nothing (VP8).
_CODECS = {"h264", "hevc", "vp9", "av1"}
# Containers whose packets have presentation times. AVI, for one, has the decoding order only.
_CONTAINERS = {"mov", "matroska", "mpegts", "flv"}
# Containers with an index of keyframes in the file; the other demuxers seek by guessing.
_INDEXED_CONTAINERS = {"mov", "matroska"}
# Types of NAL units: headers (SPS, PPS; VPS, SPS, PPS), and pictures after which no frame refers to
# an earlier one (IDR; IRAP).
_NAL_TYPES = {"h264": ({7, 8}, {5}), "hevc": ({32, 33, 34}, set(range(16, 22)))}
_START_CODE = b"\0\0\1"
_FIELDS = 3  # of one keyframe in KeyframeIndex.values


class Keyframe(NamedTuple):
    """A place where decoding can start.

    packet: number of its packet, counted over all packets of the stream.
    timestamp: of its frame. size: of its packet, in bytes.
    """

    packet: int
    timestamp: int
    size: int


@dataclass(frozen=True)
class KeyframeIndex:
    """The keyframes at which decoding can start, ascending by packet and by timestamp.

    values: int64, the fields of one keyframe after the other, for less memory than objects take.
    seekable: whether the container's own index leads to them.
    """

    values: "array[int]" = field(default_factory=lambda: array("q"))
    seekable: bool = False

    def __len__(self) -> int:
        return len(self.values) // _FIELDS

    def __getitem__(self, number: int) -> Keyframe:
        if not 0 <= number < len(self):
            raise IndexError(number)
        return Keyframe(*self.values[number * _FIELDS : (number + 1) * _FIELDS])

    def last_before(self, timestamp: int) -> Keyframe | None:
        """Returns the last keyframe at or before a timestamp; None if there is none."""
        after = bisect_right(range(len(self)), timestamp, key=lambda number: self[number].timestamp)
        return self[after - 1] if after else None


class KeyframeIndexBuilder:
    """Builds the index from all packets of a stream, in file order.

    usable: whether the index can have any keyframes; if not, later packets need not be read.
    """

    def __init__(self, container: str, codec: str, extradata: bytes) -> None:
        """container, codec: FFmpeg's names. extradata: the stream's headers, may be empty."""
        self.codec, self.length_size = codec, _length_size(codec, extradata)
        self.usable = container in _CONTAINERS and codec in _CODECS
        self.values, self.seekable = array("q"), container in _INDEXED_CONTAINERS
        self.max_timestamp: int | None = None
        self.has_headers: set[bool] = set()

    def add(
        self, number: int, timestamp: int | None, keyframe: bytes | None, is_shown: bool
    ) -> None:
        """Takes the next packet, with its number and presentation timestamp.

        keyframe: the packet's bytes if the container marks it as a keyframe, else None.
        is_shown: False for a packet whose frame is decoded and discarded.
        """
        if timestamp is None:
            self.disable()
        if not self.usable or timestamp is None:
            return
        starts = keyframe is not None and self._is_random_access_point(keyframe)
        # No frame of an earlier packet may be shown after the keyframe.
        if starts and is_shown and (self.max_timestamp is None or timestamp > self.max_timestamp):
            assert keyframe is not None
            self.values.extend(Keyframe(number, timestamp, len(keyframe)))
        if self.max_timestamp is None or timestamp > self.max_timestamp:
            self.max_timestamp = timestamp

    def disable(self) -> None:
        """Gives up: the stream changes its headers on the way, or has packets without times."""
        self.usable = False

    def build(self) -> KeyframeIndex:
        """Returns the index."""
        # If only some keyframes bring their headers, those of the others may be in packets that
        # would be skipped.
        if not self.usable or len(self.has_headers) > 1:
            return KeyframeIndex()
        return KeyframeIndex(self.values, self.seekable)

    def _is_random_access_point(self, packet: bytes) -> bool:
        if self.codec not in _NAL_TYPES:
            return True
        headers, random_access = _NAL_TYPES[self.codec]
        types = nal_unit_types(packet, self.codec, self.length_size)
        self.has_headers.add(types >= headers)
        return bool(types & random_access)


def nal_unit_types(packet: bytes, codec: str, length_size: int) -> Set[int]:
    """Returns the types of a packet's NAL units, up to the first one of picture data.

    codec: h264 or hevc. length_size: bytes of the length before each unit; 0 for start codes.
    A malformed packet gives what could be read. Source: ITU-T H.264 table 7-1, H.265 table 7-1.
    """
    types: set[int] = set()
    offset = 0
    while True:
        if length_size:
            body = offset + length_size
            size = int.from_bytes(packet[offset:body], "big")
            offset = body + size
        else:
            start = packet.find(_START_CODE, offset)
            body = start + len(_START_CODE) if start >= 0 else len(packet)
            offset = body
        if body >= len(packet):
            return types
        unit_type = packet[body] & 31 if codec == "h264" else packet[body] >> 1 & 63
        types.add(unit_type)
        if 1 <= unit_type <= 5 if codec == "h264" else unit_type < 32:
            return types


def _length_size(codec: str, extradata: bytes) -> int:
    """Returns the bytes of a NAL unit's length by an avcC or hvcC header (ISO/IEC 14496-15).

    0 for other headers, whose streams have start codes.
    """
    offset = {"h264": 4, "hevc": 21}.get(codec)
    if offset is None or len(extradata) <= offset or extradata[0] != 1:
        return 0
    return (extradata[offset] & 3) + 1

"""Finds the codecs of a transport stream by its tables (ISO/IEC 13818-1, 2.4.4).

FFmpeg decodes a whole file with one codec. Of files that were joined, one in H.264 and one in
H.265, it would show one part, and leave the other out or call it damaged.
"""

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

from mediamill.model.media.media_file import MediaFile

_PACKET_BYTES = 188
# Bytes before a packet, and from one packet to the next: plain, with times (M2TS), with parity.
_LAYOUTS = ((0, 188), (4, 192), (0, 204))
_PACKETS_AT_ONCE = 8192
_MAX_TABLES = 10_000  # different ones of a file
_VIDEO_CODECS = {
    0x01: "MPEG-2",
    0x02: "MPEG-2",
    0x10: "MPEG-4",
    0x1B: "H.264",
    0x24: "H.265",
    0x33: "H.266",
    0xEA: "VC-1",
}

_Packets = npt.NDArray[np.uint8]


def transport_codecs(media_file: MediaFile) -> list[str]:
    """Returns the codecs of the first program's video, in the order of the file, as far as its
    tables name them. More than one: the codec changes on the way.
    """
    codecs: list[str] = []
    program, table_pids, seen = None, np.zeros(1 << 13, bool), set[bytes]()
    for packets in _packets(media_file):
        pids = (packets[:, 1] & 0x1F).astype(np.int64) << 8 | packets[:, 2]
        starts = packets[:, 1] & 0x40 > 0
        for section in _new_sections(packets[starts & (pids == 0)], seen):
            table_pids[_table_pids(section)] = True
        for section in _new_sections(packets[starts & table_pids[pids]], seen):
            if section[:1] != b"\x02":
                continue
            program = section[3:5] if program is None else program
            codec = _video_codec(section) if section[3:5] == program else None
            if codec is not None and codecs[-1:] != [codec]:
                codecs.append(codec)
    return codecs


def _packets(media_file: MediaFile) -> Iterator[_Packets]:
    """Yields uint8 [n, 188], as long as the packets follow one another."""
    with media_file.open() as handle:
        head = handle.read_at(0, 3 * 204)
        layouts = [(before, size) for before, size in _LAYOUTS if head[before::size][:3] == b"GGG"]
        if not layouts:
            return
        before, size = layouts[0]
        for start in range(0, media_file.size, size * _PACKETS_AT_ONCE):
            data = handle.read_at(start, size * _PACKETS_AT_ONCE)
            rows = np.frombuffer(data, np.uint8, len(data) // size * size).reshape(-1, size)
            packets = rows[:, before : before + _PACKET_BYTES]
            yield packets[packets[:, 0] == ord("G")]


def _new_sections(packets: _Packets, seen: set[bytes]) -> Iterator[bytes]:
    """Yields the tables that begin in packets and are not `seen` yet."""
    for packet in packets:
        section = _section(packet.tobytes())
        if section not in seen and len(seen) < _MAX_TABLES:
            seen.add(section)
            yield section


def _table_pids(section: bytes) -> list[int]:
    """Returns the packet numbers of the programs' tables."""
    entries = [section[offset : offset + 4] for offset in range(8, len(section) - 4, 4)]
    return [int.from_bytes(entry[2:], "big") & 0x1FFF for entry in entries if entry[:2] != bytes(2)]


def _section(packet: bytes) -> bytes:
    """Returns the table that begins in a packet, as far as it lies there."""
    offset = 4 + (1 + packet[4] if packet[3] & 0x20 else 0)
    offset += 1 + packet[min(offset, len(packet) - 1)]
    length = 3 + (int.from_bytes(packet[offset + 1 : offset + 3], "big") & 0xFFF)
    return packet[offset : offset + length]


def _video_codec(section: bytes) -> str | None:
    """Returns the codec of the first video stream of a program's table."""
    offset = 12 + (int.from_bytes(section[10:12], "big") & 0xFFF)
    while offset + 5 <= len(section) - 4:
        if codec := _VIDEO_CODECS.get(section[offset]):
            return codec
        offset += 5 + (int.from_bytes(section[offset + 3 : offset + 5], "big") & 0xFFF)
    return None

"""Makes files that are not what they seem, or that refer to other files, hosts or programs."""

import gzip
import io
import struct
import tarfile
import zipfile

from PIL import Image

from tests import media
from tests.hostile.bomb import Bomb
from tests.hostile.picture_bombs import tiff
from tests.hostile.samples import PICTURES
from tests.hostile.video_bombs import (
    CORRUPT,
    EMPTY,
    LARGE,
    UNSUPPORTED,
    box,
    element,
    valid_sample,
    with_elements,
)


def disguises(path: str, url: str) -> dict[str, Bomb]:
    """path, url: what must never be opened; files that refer to anything refer to these."""
    return {
        **_polyglots(path, url),
        **_reference_files(path, url),
        **_unsupported_formats(),
        **_lesser_formats(),
    }


def playlist(url: str) -> bytes:
    """Makes an HLS playlist that refers to `url`."""
    header = "#EXTM3U\n#EXT-X-VERSION:3\n#EXT-X-TARGETDURATION:9\n#EXTINF:9,\n"
    return f"{header}{url}\n#EXT-X-ENDLIST\n".encode()


def with_reference(target: str, kind: bytes = b"url ") -> bytes:
    """Makes an MP4 whose frames are in another file."""
    data = valid_sample("MP4 H.264")
    start = data.index(b"dref") - 4
    size = int.from_bytes(data[start : start + 4], "big")
    if kind == b"url ":
        entry = box(b"url ", bytes(4), target.encode() + b"\0")
    else:
        entry = box(b"alis", bytes(4), _alias(target))
    data_reference = box(b"dref", bytes(4), struct.pack(">I", 1), entry)
    changed = data[:start] + data_reference + data[start + size :]
    growth = len(data_reference) - size
    for name in (b"moov", b"trak", b"mdia", b"minf", b"dinf"):
        offset = changed.index(name) - 4
        new_size = int.from_bytes(changed[offset : offset + 4], "big") + growth
        changed = changed[:offset] + struct.pack(">I", new_size) + changed[offset + 4 :]
    return changed


def _alias(target: str) -> bytes:
    """Makes a record of the Macintosh's Alias Manager, as QuickTime stores it."""
    name = target.rpartition("/")[2].encode()[:63]
    path = target.encode()
    record = bytes(10) + bytes(28) + bytes(12)  # of a volume without a name
    record += bytes((len(name),)) + name.ljust(63, b"\0") + bytes(16)
    record += struct.pack(">hh", -1, -1) + bytes(16)
    record += struct.pack(">HH", 2, len(path)) + path + bytes(len(path) % 2)
    record += struct.pack(">HH", 18, len(path)) + path + bytes(len(path) % 2)
    return record + b"\xff\xff\0\0"


def _zip() -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("zeros", bytes(10_000_000))
    return file.getvalue()


def _tar() -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as archive:
        archive.addfile(tarfile.TarInfo("a.jpg"), io.BytesIO())
    return file.getvalue()


def _polyglots(path: str, url: str) -> dict[str, Bomb]:
    jpeg, script = media.jpeg(47, 61), f"<script src='{url}'></script>".encode()
    return {
        "JPEG and ZIP": Bomb(lambda: jpeg + _zip(), "ok"),
        "PNG and ZIP": Bomb(lambda: PICTURES["PNG RGB"]() + _zip(), "ok"),
        "PNG and JPEG": Bomb(lambda: PICTURES["PNG RGB"]() + jpeg, "ok"),
        "GIF and script": Bomb(lambda: PICTURES["GIF"]() + b"/*" + script, "ok"),
        "GIF named by a comment": Bomb(lambda: b"GIF89a/*" + script + bytes(50), {CORRUPT, LARGE}),
        "MP4 and HTML": Bomb(lambda: valid_sample("MP4 H.264") + box(b"free", script), "ok"),
        "HTML and MP4": Bomb(lambda: script + valid_sample("MP4 H.264"), UNSUPPORTED),
        "PDF and JPEG": Bomb(lambda: b"%PDF-1.7\n" + jpeg, UNSUPPORTED),
        "JPEG and playlist": Bomb(lambda: jpeg + playlist(url), "ok"),
        "MP4 and playlist": Bomb(
            lambda: valid_sample("MP4 H.264") + playlist(url), {"ok", CORRUPT}
        ),
        "TS and playlist": Bomb(lambda: valid_sample("TS H.264") + playlist(url), {"ok", CORRUPT}),
        "JPEG with PostScript": Bomb(
            lambda: jpeg[:2] + b"\xff\xed\0\x30Photoshop 3.0\0" + b"%!PS".ljust(32) + jpeg[2:],
            {"ok", CORRUPT},
        ),
        "TIFF with PostScript": Bomb(
            lambda: tiff((256, 4, 1, 8), (257, 4, 1, 8), (259, 3, 1, 7), rest=_postscript(path)),
            {CORRUPT, UNSUPPORTED},
        ),
        "ZIP and MP4": Bomb(lambda: _zip() + valid_sample("MP4 H.264"), UNSUPPORTED),
    }


def _postscript(path: str) -> bytes:
    return (
        b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n"
        + f"({path}) (r) file closefile (%pipe%touch {path}.made) (w) file\n".encode()
    )


def _reference_files(path: str, url: str) -> dict[str, Bomb]:
    dash = (
        '<?xml version="1.0"?><MPD xmlns="urn:mpeg:dash:schema:mpd:2011" type="static"><Period>'
        '<AdaptationSet><Representation id="1" mimeType="video/mp4" bandwidth="9">'
        f"<BaseURL>{url}</BaseURL></Representation></AdaptationSet></Period></MPD>"
    )
    svg = f'<svg xmlns:x="http://www.w3.org/1999/xlink"><image x:href="file://{path}"/></svg>'
    host, port = url.split("/")[2].split(":")
    sdp = f"v=0\no=- 0 0 IN IP4 {host}\nc=IN IP4 {host}\nm=video {port} RTP/AVP 96\n"
    scripted = _patched_segment(path)
    texts = {
        "HLS": playlist(url),
        "HLS of a file": playlist(f"file://{path}"),
        "HLS of a part of a file": playlist(f"subfile,,start,0,end,9,,:{path}"),
        "HLS of a chain": playlist(f"concat:{path}|{path}"),
        "HLS of data": playlist("data:video/mp2t;base64,R0BAEA=="),
        "HLS of encrypted parts": b"#EXTM3U\n#EXT-X-KEY:METHOD=AES-128,URI="
        + f'"{url}"\n#EXTINF:9,\n{url}\n'.encode(),
        "HLS after sync bytes": b"\x47" + bytes(187) + b"\x47" + playlist(url),
        "ffconcat": f"ffconcat version 1.0\nfile '{path}'\n".encode(),
        "ffconcat of a URL": f"ffconcat version 1.0\nfile '{url}'\n".encode(),
        "DASH": dash.encode(),
        "SDP": sdp.encode(),
        "RTSP text": f"RTSPtext\r\nrtsp://{host}:{port}/a\r\n".encode(),
        "ASX": f'<asx version="3.0"><entry><ref href="{url}"/></entry></asx>'.encode(),
        "WMV reference": f"[Reference]\r\nRef1={url}\r\n".encode(),
        "PLS": f"[playlist]\nFile1={url}\n".encode(),
        "IMF list": f"<AssetMap><Path>{path}</Path></AssetMap>".encode(),
        "SVG": svg.encode(),
        "MVG": f"push graphic-context\nimage over 0,0 0,0 '{url}'\n".encode(),
        "PostScript": _postscript(path),
        "EPS with a preview": struct.pack("<IIIIIIIH", 0xC6D3D0C5, 30, 99, 0, 0, 0, 0, 0)
        + _postscript(path),
        "AviSynth": f'FFmpegSource2("{path}")\n'.encode(),
        "VapourSynth": f"import os\nopen('{path}')\n".encode(),
        "filter graph": f"movie='{path}'\n".encode(),
        "path alone": path.encode(),
        "URL alone": url.encode(),
        "image pattern": b"frame%03d.png",
    }
    bombs = {name: Bomb(lambda data=data: data, UNSUPPORTED) for name, data in texts.items()}
    for name, data in texts.items():
        if name.startswith(("HLS", "ffconcat", "DASH", "SDP")):
            bombs[f"{name} as video"] = Bomb(lambda data=data: data, UNSUPPORTED, kind="video")
    return bombs | {
        "MP4 of a file": Bomb(lambda: with_reference(f"file://{path}"), {"ok", CORRUPT, EMPTY}),
        "MP4 of a URL": Bomb(lambda: with_reference(url), {"ok", CORRUPT, EMPTY}),
        "MOV of a file": Bomb(lambda: with_reference(path, b"alis"), {"ok", CORRUPT, EMPTY}),
        "MOV of a reference": Bomb(lambda: _reference_movie(url), {CORRUPT, UNSUPPORTED, EMPTY}),
        "MP4 of a playlist": Bomb(
            lambda: valid_sample("MP4 H.264")[:32] + box(b"mdat", playlist(url)), CORRUPT
        ),
        "MKV of linked segments": Bomb(lambda: scripted, {"ok", CORRUPT}),
        "AVI of a file": Bomb(lambda: _opendml(path), {CORRUPT, UNSUPPORTED, EMPTY}),
        "WMV with a script": Bomb(
            lambda: valid_sample("ASF WMV2")[:-1] + f"URL {url}".encode("utf-16-le"),
            {"ok", CORRUPT},
        ),
    }


def _patched_segment(path: str) -> bytes:
    """Makes an MKV that names the files before and after it."""
    name = path.encode()
    facts = element("2ad7b1", b"\x0f\x42\x40") + element("3c83ab", name) + element("3e83bb", name)
    uids = element("73a4", bytes(16)) + element("3cb923", bytes(16)) + element("3eb923", bytes(16))
    return with_elements(element("1549a966", facts + uids))


def _reference_movie(url: str) -> bytes:
    reference = box(b"rdrf", bytes(4), b"url ", struct.pack(">I", len(url)), url.encode())
    index = box(b"moov", box(b"rmra", box(b"rmda", reference)))
    return box(b"ftyp", b"qt  ", bytes(4)) + index


def _opendml(path: str) -> bytes:
    body = b"AVI " + b"LIST" + struct.pack("<I", 4) + b"hdrl"
    body += b"LIST" + struct.pack("<I", 4 + len(path)) + b"movi" + path.encode()
    return b"RIFF" + struct.pack("<I", len(body)) + body


def _unsupported_formats() -> dict[str, Bomb]:
    files = {
        "farbfeld": b"farbfeld" + b"\xff" * 8,
        "EXR": b"\x76\x2f\x31\x01" + bytes(100),
        "Y4M": b"YUV4MPEG2 W99999 H99999 F1:1 C420\nFRAME\n" + bytes(100),
        "WAV": b"RIFF" + struct.pack("<I", 2**31) + b"WAVEfmt " + bytes(100),
        "MP3": b"ID3\x04\0\0\0\0\0\0" + bytes(100),
        "SWF": b"FWS\x09" + bytes(100),
        "GXF": b"\0\0\0\0\1\xbc" + bytes(100),
        "ZIP": _zip(),
        "GZIP": gzip.compress(media.jpeg()),
        "TAR": _tar(),
        "7z": b"7z\xbc\xaf\x27\x1c" + bytes(100),
        "ELF": b"\x7fELF\2\1\1" + bytes(100),
        "program": b"MZ" + bytes(200),
        "pickle": b"\x80\x04\x8c\x05posix\x8c\x06system\x93\x8c\x04true\x85R.",
        "shell": b"#!/bin/sh\ntrue\n",
        "one byte": b"\xff",
        "two letters": b"BM",
        "zeros": bytes(10_000_000),
        "ones": b"\xff" * 10_000_000,
        "endless text": b"all work and no play " * 500_000,
        "letters of a BMP": b"BMW is a make of cars, and no picture of one" * 9,
        "letters of a GIF": b"GIF88a" + bytes(100),
        "half a signature": b"\x89PNG\r\n",
    }
    bombs = {name: Bomb(lambda data=data: data, UNSUPPORTED) for name, data in files.items()}
    signatures = {
        "JPEG of three bytes": b"\xff\xd8\xff",
        "PNG of eight bytes": b"\x89PNG\r\n\x1a\n",
        "GIF of six bytes": b"GIF89a",
        "WebP of twelve bytes": b"RIFF\xff\xff\xff\xffWEBP",
        "AVI of twelve bytes": b"RIFF\4\0\0\0AVI ",
        "TIFF of four bytes": b"II*\0",
        "MP4 of twelve bytes": b"\0\0\0\x0cftypisom",
        "MKV of four bytes": b"\x1a\x45\xdf\xa3",
        "FLV of four bytes": b"FLV\1",
        "Ogg of four bytes": b"OggS",
        "PS of four bytes": b"\0\0\1\xba",
        "TS of zeros": (b"\x47" + bytes(187)) * 3,
        "ASF of eight bytes": b"\x30\x26\xb2\x75\x8e\x66\xcf\x11",
    }
    wrong = {CORRUPT, UNSUPPORTED, EMPTY}
    bombs |= {name: Bomb(lambda data=data: data, wrong) for name, data in signatures.items()}
    return bombs | {"nothing": Bomb(lambda: b"", EMPTY)}


def _lesser_formats() -> dict[str, Bomb]:
    """Small files, empty ones and bombs of formats that few pictures have."""
    icon = Image.fromarray(media.draw(32, 32))
    sound = ("ICO", "JPEG2000", "DDS", "TGA", "PCX")
    bombs = {name: Bomb(lambda name=name: media.encode(icon, name), "ok") for name in sound}
    headers = {
        "ICNS": b"icns" + struct.pack(">I", 2**31 - 1) + b"ic10" + struct.pack(">I", 9),
        "PSD": b"8BPS\0\1" + bytes(6) + struct.pack(">HIIHH", 4, 2**31 - 1, 2**31 - 1, 8, 3),
        "PPM": b"P6 100000 100000 255\n",
        "QOI": b"qoif" + struct.pack(">IIBB", 2**31, 2**31, 4, 0) + bytes(8),
        "HEIC": b"\0\0\0\x18ftypheic" + bytes(100),
        "raw H.265": b"\0\0\0\1\x40\1" + bytes(100),
    }
    wrong = {CORRUPT, LARGE, UNSUPPORTED}
    return bombs | {name: Bomb(lambda data=data: data, wrong) for name, data in headers.items()}

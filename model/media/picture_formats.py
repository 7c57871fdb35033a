"""Detects the format of a picture file from its first bytes, its size and, for TGA, its last bytes.

Formats without a magic number are detected only if the whole header is plausible, so that a text or
random bytes are never called a picture. Formats that run programs or fetch files (EPS, WMF, SVG)
have names here, so that a refusal can say what was found, and no reader.
"""

import re
import struct
from collections.abc import Callable

from mediamill.model.errors import MediaError

# First bytes -> Pillow's name of the format, and the label for messages.
_PREFIXES: dict[bytes, tuple[str, str]] = {
    b"\xff\xd8\xff": ("JPEG", "JPEG picture"),
    b"\x89PNG\r\n\x1a\n": ("PNG", "PNG picture"),
    b"GIF87a": ("GIF", "GIF picture"),
    b"GIF89a": ("GIF", "GIF picture"),
    b"II*\0": ("TIFF", "TIFF picture"),
    b"MM\0*": ("TIFF", "TIFF picture"),
    b"II+\0": ("TIFF", "TIFF picture"),
    b"MM\0+": ("TIFF", "TIFF picture"),
    b"\xff\x4f\xff\x51": ("JPEG2000", "JPEG 2000 picture"),
    b"\0\0\0\x0cjP  \r\n\x87\n": ("JPEG2000", "JPEG 2000 picture"),
    b"\xff\x0a": ("JXL", "JPEG XL picture"),
    b"\0\0\0\x0cJXL \r\n\x87\n": ("JXL", "JPEG XL picture"),
    b"qoif": ("QOI", "QOI picture"),
    b"DDS ": ("DDS", "DDS picture"),
    b"8BPS": ("PSD", "Photoshop picture"),
    b"icns": ("ICNS", "Apple icon"),
    b"BLP1": ("BLP", "BLP picture"),
    b"BLP2": ("BLP", "BLP picture"),
    b"FTEX": ("FTEX", "FTEX picture"),
    b"FTUC": ("FTEX", "FTEX picture"),
    b"\xb1\x68\xde\x3a": ("DCX", "DCX picture"),
    b"\x59\xa6\x6a\x95": ("SUN", "Sun raster picture"),
    b"/* XPM */": ("XPM", "XPM picture"),
    b"DanM": ("MSP", "Microsoft Paint picture"),
    b"LinS": ("MSP", "Microsoft Paint picture"),
    b"SIMPLE  =": ("FITS", "FITS picture"),
    b"P7 332": ("XVThumb", "XV thumbnail"),
}
# Four letters may begin a text; the headers of these formats hold a zero byte.
_LETTERS = {
    b"qoif",
    b"DDS ",
    b"8BPS",
    b"icns",
    b"BLP1",
    b"BLP2",
    b"FTEX",
    b"FTUC",
    b"DanM",
    b"LinS",
}
# What people send beside pictures, or pictures without a reader here.
_REFUSED: dict[bytes, str] = {
    b"%!PS": "PostScript document, which is a program",
    b"\xc5\xd0\xd3\xc6": "PostScript document, which is a program",
    b"\xd7\xcd\xc6\x9a": "Windows metafile, which is a program",
    b"%PDF": "PDF document",
    b"gimp xcf": "GIMP project",
    b"\x76\x2f\x31\x01": "OpenEXR picture",
    b"#?RADIANCE": "Radiance picture",
    b"#?RGBE": "Radiance picture",
    b"II\xbc": "JPEG XR picture",
    b"BPG\xfb": "BPG picture",
    b"FLIF": "FLIF picture",
    b"AT&TFORM": "DjVu document",
    b"\x8aMNG": "MNG animation",
    b"\x8bJNG": "JNG picture",
    b"SDPX": "DPX picture",
    b"XPDS": "DPX picture",
    b"IIRO": "camera's raw file",
    b"IIU\0": "camera's raw file",
    b"FUJIFILM": "camera's raw file",
    b"\xd0\xcf\x11\xe0": "Microsoft Office document",
    b"PK\x03\x04": "ZIP archive",
    b"\x1f\x8b": "gzip archive",
    b"version https://git-lfs": "Git LFS pointer, whose content was not fetched",
}
_WEB_PAGE = re.compile(
    rb"[\s\xef\xbb\xbf]*(?:<!--.{0,500}?-->\s*)?<(?:!doctype html|html|head)", re.I | re.S
)
_SVG = re.compile(rb"[\s\xef\xbb\xbf]*<(?:\?xml|!doctype svg|!--|svg)[^\0]*?<?svg[\s>]", re.I)
_GAP = rb"(?:\s|#[^\r\n]*[\r\n])+"
_PNM = re.compile(
    rb"P(?:[14]%b\d+%b\d+[\s#]|(?:[2356]|0CMYK)%b\d+%b\d+%b\d+[\s#]|[Ff]\s+\d+\s+\d+\s+[-+.\d]"
    rb"|7\s+(?:#.*\n|\s)*(?:WIDTH|HEIGHT|DEPTH|MAXVAL|TUPLTYPE)\s)" % ((_GAP,) * 5)
)
_XBM = re.compile(
    rb"\s*(?:/\*.{0,1000}?\*/\s*)?#define[ \t]+\S*width[ \t]+\d+\s+#define[ \t]+\S*height[ \t]",
    re.S,
)
AVIF_BRANDS = {b"avif", b"avis", b"avio"}
HEIF_BRANDS = {
    b"heic", b"heix", b"hevc", b"hevx", b"heim", b"heis", b"hevm", b"hevs",
    b"mif1", b"mif2", b"mif3", b"msf1", b"miaf", b"jpeg", b"j2ki", b"avci", b"avcs", b"vvic",
    b"unif", b"MiHB", b"MiHE", b"MiPr",
}  # fmt: skip
_VIDEO_BRANDS = {b"qt  ", b"mp41", b"mp42", b"isom", b"M4V ", b"M4A ", b"3gp4", b"3gp5"}
_FOOTER = b"TRUEVISION-XFILE"
FOOTER_BYTES = 26
_TGA_HEADER = 18
_TGA_SLACK = 1_000_000  # bytes that may follow the pixels: extensions, developers' areas, padding

TailReader = Callable[[int], bytes]
"""Reads so many bytes from the end of the file."""


def detect_picture(data: bytes, size: int) -> tuple[str, str] | None:
    """Returns (name, label) of a picture with an unambiguous beginning; None for others.

    data: the first bytes, 4096 or all. size: bytes of the file.
    Raises MediaError decode_unsupported for known formats without a reader.
    """
    for prefix, found in _PREFIXES.items():
        if data.startswith(prefix) and not (prefix in _LETTERS and b"\0" not in data[4:32]):
            return found
    if data.startswith(b"RIFF") and data[8:12] == b"WEBP":
        return "WEBP", "WebP picture"
    if data[4:8] == b"ftyp":
        return _heif_or_avif(data)
    for check in (_bmp, _icon, _sgi, _pcx, _spider, _other_magic):
        if found_format := check(data, size):
            return found_format
    if _PNM.match(data):
        return "PNM", f"{'PAM' if data[1:2] == b'7' else 'PNM'} picture"
    if _XBM.match(data):
        return "XBM", "XBM picture"
    _refuse(data)
    return None


def detect_tga(data: bytes, size: int, read_tail: TailReader) -> tuple[str, str] | None:
    """Returns (name, label) of a TGA picture, which has no magic number; None for other files.

    To be asked last. read_tail: reads so many bytes from the end of the file.
    """
    if len(data) < _TGA_HEADER:
        return None
    identifier, map_type, kind = data[:3]
    map_start, map_length, map_bits = struct.unpack_from("<HHB", data, 3)
    width, height, bits, flags = struct.unpack_from("<HHBB", data, 12)
    if map_type > 1 or kind not in (1, 2, 3, 9, 10, 11) or not width or not height:
        return None
    has_map = kind in (1, 9)
    depths = {1: (8,), 2: (15, 16, 24, 32), 3: (1, 8, 16)}[kind & 7]
    if bits not in depths or flags & 0xC0 or (flags & 15) > 8 or has_map > map_type:
        return None
    if map_type and (map_bits not in (15, 16, 24, 32) or not map_length):
        return None
    if read_tail(FOOTER_BYTES)[8:24] == _FOOTER:
        return "TGA", "TGA picture"
    if not map_type and (map_start or map_length or map_bits not in (0, 8, 24, 32)):
        return None
    start = _TGA_HEADER + identifier + map_type * map_length * ((map_bits + 7) // 8)
    pixel = (bits + 7) // 8
    pixels = width * height
    # A run of 128 pixels takes 1 + pixel bytes; a literal pixel at most 1 more than its own.
    least = pixels * pixel if kind < 9 else -(-pixels // 128) * (1 + pixel)
    most = pixels * pixel if kind < 9 else pixels * (1 + pixel)
    return ("TGA", "TGA picture") if least <= size - start <= most + _TGA_SLACK else None


def _heif_or_avif(data: bytes) -> tuple[str, str] | None:
    """Decides by all brands of the file: the major one may name the family only (mif1)."""
    end = min(int.from_bytes(data[:4], "big"), len(data), 1024)
    major = data[8:12]
    brands = {data[at : at + 4] for at in range(16, end - 3, 4)}
    if major == b"crx ":
        raise MediaError("decode_unsupported", "the file is a camera's raw file, which is not read")
    known = AVIF_BRANDS | HEIF_BRANDS
    if major == b"jxl ":
        return "JXL", "JPEG XL picture"
    if major not in known and (
        major in _VIDEO_BRANDS or not brands & known or brands & _VIDEO_BRANDS
    ):
        return None
    is_avif = major in AVIF_BRANDS or (
        brands & AVIF_BRANDS and not (major in HEIF_BRANDS and major.startswith(b"he"))
    )
    # Without a brand of either codec the type of the first coded item tells.
    if not is_avif and not any(brand.startswith(b"he") for brand in brands | {major}):
        is_avif = b"av01" in data and b"hvc1" not in data
    return ("AVIF", "AVIF picture") if is_avif else ("HEIF", "HEIF picture")


def _bmp(data: bytes, _size: int) -> tuple[str, str] | None:
    # "BM" alone may be two letters of a text: the size of the DIB header must fit as well.
    dib_header_size = int.from_bytes(data[14:18], "little")
    if data.startswith(b"BM") and dib_header_size in (12, 16, 40, 52, 56, 64, 108, 124):
        return "BMP", "BMP picture"
    dib_header_size = int.from_bytes(data[:4], "little")
    planes, bits = data[12:14], int.from_bytes(data[14:16], "little")
    if dib_header_size in (40, 108, 124) and planes == b"\1\0" and bits in (1, 4, 8, 16, 24, 32):
        return "DIB", "BMP picture without its file header"
    return None


def _icon(data: bytes, size: int) -> tuple[str, str] | None:
    if data[:4] not in (b"\0\0\1\0", b"\0\0\2\0") or len(data) < 22:
        return None
    count = int.from_bytes(data[4:6], "little")
    length, offset = struct.unpack_from("<II", data, 14)
    if not count or not length or not 6 + 16 * count <= offset < size:
        return None
    return ("ICO", "icon") if data[2] == 1 else ("CUR", "mouse cursor")


def _sgi(data: bytes, _size: int) -> tuple[str, str] | None:
    if not data.startswith(b"\x01\xda") or len(data) < 12:
        return None
    storage, depth, dimension = struct.unpack_from(">BBH", data, 2)
    if storage > 1 or depth not in (1, 2) or not 1 <= dimension <= 3:
        return None
    return "SGI", "SGI picture"


def _pcx(data: bytes, size: int) -> tuple[str, str] | None:
    if len(data) < 128 or data[0] != 10 or data[1] not in (0, 2, 3, 4, 5) or data[2] > 1:
        return None
    left, top, right, bottom = struct.unpack_from("<4H", data, 4)
    planes, row_bytes = struct.unpack_from("<BH", data, 65)
    bits = data[3]
    if bits not in (1, 2, 4, 8) or not 1 <= planes <= 4 or right < left or bottom < top:
        return None
    if row_bytes * 8 < (right - left + 1) * bits or size <= 128:
        return None
    return "PCX", "PCX picture"


def _spider(data: bytes, size: int) -> tuple[str, str] | None:
    if len(data) < 108:
        return None
    for order in "<>":
        slices, rows, _, _, kind = struct.unpack_from(f"{order}5f", data, 0)
        (columns,) = struct.unpack_from(f"{order}f", data, 44)
        records, _, _, _, _, _, _, _, _, header, record = struct.unpack_from(
            f"{order}11f", data, 48
        )
        whole = (slices, rows, columns, records, header, record)
        if kind != 1 or not all(1 <= value < 2**24 and value == int(value) for value in whole):
            continue
        if header == records * record and header + 4 * rows * columns <= size:
            return "SPIDER", "SPIDER picture"
    return None


def _other_magic(data: bytes, _size: int) -> tuple[str, str] | None:
    if data[4:6] in (b"\x11\xaf", b"\x12\xaf") and data[14:16] in (b"\0\0", b"\3\0"):
        return "FLI", "FLI animation"
    if data[2048:2052] == b"PCD_":
        return "PCD", "Photo CD picture"
    if data.startswith(b"\x80\xe8\0\0"):
        return "PIXAR", "Pixar picture"
    if data[20:24] == b"GIMP" and int.from_bytes(data[4:8], "big") == 2:
        return "GBR", "GIMP brush"
    if data[:8] == b"\0\0\0\0\0\0\0\4":
        return "MCIDAS", "McIdas picture"
    return None


def _refuse(data: bytes) -> None:
    label = next((label for prefix, label in _REFUSED.items() if data.startswith(prefix)), None)
    if data[:4] == b"\1\0\0\0" and data[40:44] == b" EMF":
        label = "Windows metafile, which is a program"
    elif _WEB_PAGE.match(data):
        label = "web page"
    elif _SVG.match(data):
        label = "SVG drawing, which may fetch other files"
    if label is not None:
        raise MediaError(
            "decode_unsupported", f"the file is a {label}; expected a picture or video"
        )

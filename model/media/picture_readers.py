"""Opens and decodes the file of a picture by the format that was detected.

Each reader looks only at what the pixels need, and checks the size in the header before it decodes.
Formats that run programs or open other files have no reader here.
"""

import io
import struct
from collections.abc import Callable
from dataclasses import replace

import numpy as np
from PIL import Image, JpegImagePlugin, PngImagePlugin, PsdImagePlugin

from mediamill.model.errors import MediaError
from mediamill.model.media import jpeg
from mediamill.model.media.formats import gif, heif, icons, jpeg_xl, png, pnm, qoi, tiff, tiff_tags
from mediamill.model.media.formats.bit_fields import decode_bmp, has_bit_fields
from mediamill.model.media.formats.depth import Declared
from mediamill.model.media.formats.plugins import (
    OpenPicture,
    check_picture_size,
    read_by_plugin,
    with_useful_alpha,
)
from mediamill.model.media.formats.values import picture_of_values
from mediamill.model.media.formats.webp import webp_size
from mediamill.model.media.limits import MediaLimits

_HDR_NOTE = "HDR shown without tone mapping"
_MAX_PIXELS_PER_BYTE = 8 * 64  # of a JPEG file
_MAX_SCANNED = 12  # times max_image_pixels: all scans of a JPEG; encoders write about ten
_DARK = 64  # high bytes below it: the values have less than 15 significant bits


Reader = Callable[[bytes, str, MediaLimits], OpenPicture]


def open_picture(name: str, label: str, data: bytes, limits: MediaLimits) -> OpenPicture:
    """Decodes a picture. name, label: of its format, from `detect_format`.

    Raises MediaError, and any exception that a decoder raises on damage.
    """
    return _READERS.get(name, _reader_of_plugin(name))(data, label, limits)


def _reader_of_plugin(name: str) -> Reader:
    def read(data: bytes, label: str, limits: MediaLimits) -> OpenPicture:
        return read_by_plugin(name, data, label, limits)

    return read


def _jpeg(data: bytes, label: str, limits: MediaLimits) -> OpenPicture:
    if (scans := jpeg.scan_count(data)) > limits.max_scans:
        raise MediaError(
            "decode_too_large", f"the {label} has {scans} scans; the limit is {limits.max_scans}"
        )
    if jpeg.has_too_many_segments(data):
        raise MediaError("decode_too_large", f"the {label} has too many segments of metadata")
    try:
        return _whole_jpeg(data, label, limits)
    except MediaError:
        raise
    except Exception as error:
        if refusal := jpeg.refusal(data):
            message = f"the {label} {refusal}, which is not read"
            raise MediaError("decode_unsupported", message) from error
        raise


def _whole_jpeg(data: bytes, label: str, limits: MediaLimits) -> OpenPicture:
    orientation: int | None = None
    notes: tuple[str, ...] = ()
    try:
        picture: Image.Image = JpegImagePlugin.JpegImageFile(io.BytesIO(data))
    except Exception:  # noqa: BLE001 - damaged metadata raise anything
        # The pixels may be good: read again what they need, and the orientation.
        orientation, data = jpeg.orientation(data), jpeg.without_metadata(data)
        picture = JpegImagePlugin.JpegImageFile(io.BytesIO(data))
        notes = ("damaged metadata not used",)
    check_picture_size(label, picture.size, limits)
    scanned = picture.width * picture.height * jpeg.scan_count(data)
    if scanned > _MAX_SCANNED * limits.max_image_pixels:
        raise MediaError(
            "decode_too_large",
            f"the {label} is {picture.width} x {picture.height} pixels in "
            f"{jpeg.scan_count(data)} scans; the limit is {_MAX_SCANNED * limits.max_image_pixels} "
            "pixels over all scans",
        )
    # Each 8 x 8 pixels take a bit at least; decoders would fill what is missing with grey.
    if picture.width * picture.height > _MAX_PIXELS_PER_BYTE * len(data):
        raise MediaError(
            "decode_corrupt",
            f"the {label} is damaged: its {len(data)} bytes cannot hold {picture.width} x "
            f"{picture.height} pixels",
        )
    profile = picture.info.get("icc_profile") or None
    pixels = None
    if picture.mode in ("RGB", "L"):
        pixels, damage = jpeg.decode_jpeg(data, picture.height, picture.width)
        if damage is not None:
            notes = (*notes, f"damage: {damage}, concealed by the decoder")
    if pixels is None:
        picture.load()
    return OpenPicture(picture, pixels, profile, orientation, notes=notes)


def _png(data: bytes, label: str, limits: MediaLimits) -> OpenPicture:
    parts = png.read_parts(data)
    check_picture_size(label, parts.size, limits)
    picture: Image.Image = PngImagePlugin.PngImageFile(io.BytesIO(parts.data))
    picture.load()
    result = OpenPicture(picture, None, parts.profile, parts.orientation, notes=parts.notes)
    if parts.bits != 16:
        return result
    bits = parts.significant_bits
    if parts.colour_type == 0:
        # By the format's rules the significant bits are the highest; some writers use the lowest.
        if bits is not None and int(np.asarray(picture).max(initial=0)) >= 1 << bits:
            bits = 16
        return replace(result, declared=Declared(bits=bits))
    colour = picture.getchannel("L") if picture.mode == "LA" else picture.convert("RGB")
    if bits == 16 or np.asarray(colour).max() >= _DARK:
        return result
    values = png.decode_16_bits(parts)
    if values is None or (bits is not None and int(values[..., :3].max()) >= 1 << bits):
        return result
    colours = {2: "RGB", 4: "LA", 6: "RGBA"}[parts.colour_type]
    picture, note = picture_of_values(values, colours, Declared(bits=bits))
    return replace(result, picture=picture, notes=(*result.notes, *note))


def _gif(data: bytes, label: str, limits: MediaLimits) -> OpenPicture:
    check_picture_size(label, struct.unpack("<HH", data[6:10].ljust(4, b"\0")), limits)
    first, has_more = gif.first_frame(data)
    opened = read_by_plugin("GIF", first, label, limits)
    return replace(opened, notes=("first frame of several",) if has_more else ())


def _webp(data: bytes, label: str, limits: MediaLimits) -> OpenPicture:
    check_picture_size(
        label, webp_size(data), limits
    )  # Pillow allocates the canvas when it opens the file
    return read_by_plugin("WEBP", data, label, limits)


def _avif(data: bytes, label: str, limits: MediaLimits) -> OpenPicture:
    opened = read_by_plugin("AVIF", heif.with_avif_brand(data), label, limits)
    return replace(opened, notes=(*opened.notes, _HDR_NOTE)) if heif.is_hdr(data) else opened


def _heif(data: bytes, label: str, limits: MediaLimits) -> OpenPicture:
    picture = heif.open_heif(data)
    check_picture_size(label, picture.size, limits)
    notes = ("main picture of several",) if getattr(picture, "n_frames", 1) > 1 else ()
    if heif.is_hdr(data):
        notes = (*notes, _HDR_NOTE)
    try:
        picture.load()
    except (ValueError, RuntimeError, OSError) as error:
        raise heif.heif_error(error) from error
    return OpenPicture(picture, None, picture.info.get("icc_profile") or None, 1, notes=notes)


def _jxl(data: bytes, label: str, limits: MediaLimits) -> OpenPicture:
    stream = jpeg_xl.codestream(data)
    check_picture_size(label, jpeg_xl.stored_size(stream), limits)
    values, colours, profile = jpeg_xl.decode(stream)
    # The format's own depth counts: its values fill their range.
    bits = 16 if values.dtype == np.uint16 else None
    is_float = values.dtype.kind == "f"
    declared = Declared(bits=bits, low=0.0 if is_float else None, high=1.0 if is_float else None)
    picture, notes = picture_of_values(values, colours, declared)
    return OpenPicture(picture, None, profile, 1, notes=notes)


def _jpeg2000(data: bytes, label: str, limits: MediaLimits) -> OpenPicture:
    opened = read_by_plugin("JPEG2000", data, label, limits)
    # Pillow shifts the declared depth to the highest bits.
    return replace(opened, declared=Declared(bits=16), orientation=1)


def _pnm(data: bytes, label: str, limits: MediaLimits) -> OpenPicture:
    header = pnm.read_header(data)
    check_picture_size(label, (header.width, header.height), limits)
    values, declared = pnm.read_values(data, header)
    picture, notes = picture_of_values(values, header.colours, declared)
    return OpenPicture(picture, orientation=1, notes=notes)


def _bmp(data: bytes, label: str, limits: MediaLimits) -> OpenPicture:
    if has_bit_fields(data):
        check_picture_size(label, tuple(map(abs, struct.unpack_from("<ii", data, 18))), limits)
        return with_useful_alpha(OpenPicture(decode_bmp(data), orientation=1))
    colours, bits = int.from_bytes(data[46:50], "little"), int.from_bytes(data[28:30], "little")
    has_colours = len(data) > 54 and int.from_bytes(data[14:18], "little") >= 40 and bits <= 8
    if has_colours and 1 << bits < colours <= 1024:  # more than the pixels can name
        data = data[:46] + (1 << bits).to_bytes(4, "little") + data[50:]
    return read_by_plugin("BMP", data, label, limits)


def _qoi(data: bytes, label: str, limits: MediaLimits) -> OpenPicture:
    check_picture_size(label, qoi.stored_size(data), limits)
    return OpenPicture(qoi.decode_qoi(data), orientation=1)


def _psd(data: bytes, label: str, limits: MediaLimits) -> OpenPicture:
    version, depth, mode = (int.from_bytes(data[at : at + 2], "big") for at in (4, 22, 24))
    if version != 1 or (mode, depth) not in PsdImagePlugin.MODES:
        raise MediaError(
            "decode_unsupported",
            f"the {label} of version {version} has {depth} bits and the colour mode {mode}, which "
            "is not read",
        )
    height, width = struct.unpack_from(">II", data.ljust(22), 14)
    check_picture_size(label, (width, height), limits)
    return read_by_plugin("PSD", data, label, limits)


def _tiff(data: bytes, label: str, limits: MediaLimits) -> OpenPicture:
    tags = tiff_tags.read_tags(data)
    check_picture_size(
        label, (tags.number(tiff_tags.WIDTH, 0), tags.number(tiff_tags.HEIGHT, 0)), limits
    )
    notes: tuple[str, ...] = ("first frame of several",) if tags.has_more else ()
    if tags.number(tiff_tags.NEW_SUBFILE_TYPE, 0) & 1:
        notes = (*notes, "the file's first picture is a reduced copy")
    decoded = tiff.decode_tiff(data, tags)
    if isinstance(decoded, Image.Image):
        picture = decoded
    else:
        picture, more = picture_of_values(
            decoded.values, decoded.colours, decoded.declared, decoded.inverted
        )
        notes = (*notes, *decoded.notes, *more)
    profile = tags.values.get(tiff_tags.PROFILE)
    orientation = tags.number(tiff_tags.ORIENTATION, 1)
    return OpenPicture(
        picture, None, None if profile is None else profile.tobytes(), orientation, notes=notes
    )


def _ico(data: bytes, label: str, limits: MediaLimits) -> OpenPicture:
    icon, is_png, has_more = icons.largest_icon(data, label)
    if is_png:
        opened = _png(icon, label, limits)
    else:
        width, height = struct.unpack("<ii", icon[26:34])
        check_picture_size(label, (abs(width), abs(height) // 2), limits)
        opened = read_by_plugin("ICO", icon, label, limits)
    return replace(opened, notes=("largest picture of several",) if has_more else ())


def _icns(data: bytes, label: str, limits: MediaLimits) -> OpenPicture:
    largest = icons.largest_apple_icon(data)
    if largest is None:
        return read_by_plugin("ICNS", data, label, limits)
    icon, file_format = largest
    return (_png if file_format == "PNG" else _jpeg2000)(icon, label, limits)


_READERS: dict[str, Reader] = {
    "AVIF": _avif,
    "BMP": _bmp,
    "CUR": _ico,
    "GIF": _gif,
    "HEIF": _heif,
    "ICNS": _icns,
    "ICO": _ico,
    "JPEG": _jpeg,
    "JPEG2000": _jpeg2000,
    "JXL": _jxl,
    "PNG": _png,
    "PNM": _pnm,
    "PSD": _psd,
    "QOI": _qoi,
    "TIFF": _tiff,
    "WEBP": _webp,
}

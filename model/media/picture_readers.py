"""Opens and decodes the file of a picture by the format that was detected.

Each reader looks only at what the pixels need, and checks the size in the header before it decodes.
Formats that run programs or open other files have no reader here.
"""

import io
import struct
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
from PIL import (
    AvifImagePlugin, BlpImagePlugin, BmpImagePlugin, DcxImagePlugin, DdsImagePlugin,
    FitsImagePlugin, FliImagePlugin, FtexImagePlugin, GbrImagePlugin, GifImagePlugin,
    IcnsImagePlugin, IcoImagePlugin, Image, ImageFile, ImImagePlugin, Jpeg2KImagePlugin,
    JpegImagePlugin, McIdasImagePlugin, MspImagePlugin, PcdImagePlugin, PcxImagePlugin,
    PixarImagePlugin, PngImagePlugin, PsdImagePlugin, QoiImagePlugin, SgiImagePlugin,
    SpiderImagePlugin, SunImagePlugin, TgaImagePlugin, WebPImagePlugin, XbmImagePlugin,
    XpmImagePlugin, XVThumbImagePlugin,
)  # fmt: skip

from mediamill.model.errors import MediaError
from mediamill.model.media import jpeg
from mediamill.model.media.formats import gif, heif, icons, jpeg_xl, png, pnm, tiff, tiff_tags
from mediamill.model.media.formats.depth import Declared
from mediamill.model.media.formats.values import picture_of_values
from mediamill.model.media.formats.webp import webp_size
from mediamill.model.media.limits import MediaLimits, check_size

# Used instead of Image.open, which tries one format after another, and warns or raises by a
# process-wide limit on pixels.
_PLUGINS: dict[str, type[ImageFile.ImageFile]] = {
    "AVIF": AvifImagePlugin.AvifImageFile,
    "BLP": BlpImagePlugin.BlpImageFile,
    "BMP": BmpImagePlugin.BmpImageFile,
    "DCX": DcxImagePlugin.DcxImageFile,
    "DDS": DdsImagePlugin.DdsImageFile,
    "DIB": BmpImagePlugin.DibImageFile,
    "FITS": FitsImagePlugin.FitsImageFile,
    "FLI": FliImagePlugin.FliImageFile,
    "FTEX": FtexImagePlugin.FtexImageFile,
    "GBR": GbrImagePlugin.GbrImageFile,
    "GIF": GifImagePlugin.GifImageFile,
    "ICNS": IcnsImagePlugin.IcnsImageFile,
    "ICO": IcoImagePlugin.IcoImageFile,
    "IM": ImImagePlugin.ImImageFile,
    "JPEG": JpegImagePlugin.JpegImageFile,
    "JPEG2000": Jpeg2KImagePlugin.Jpeg2KImageFile,
    "MCIDAS": McIdasImagePlugin.McIdasImageFile,
    "MSP": MspImagePlugin.MspImageFile,
    "PCD": PcdImagePlugin.PcdImageFile,
    "PCX": PcxImagePlugin.PcxImageFile,
    "PIXAR": PixarImagePlugin.PixarImageFile,
    "PNG": PngImagePlugin.PngImageFile,
    "PSD": PsdImagePlugin.PsdImageFile,
    "QOI": QoiImagePlugin.QoiImageFile,
    "SGI": SgiImagePlugin.SgiImageFile,
    "SPIDER": SpiderImagePlugin.SpiderImageFile,
    "SUN": SunImagePlugin.SunImageFile,
    "TGA": TgaImagePlugin.TgaImageFile,
    "WEBP": WebPImagePlugin.WebPImageFile,
    "XBM": XbmImagePlugin.XbmImageFile,
    "XPM": XpmImagePlugin.XpmImageFile,
    "XVThumb": XVThumbImagePlugin.XVThumbImageFile,
}
_MAY_BE_ANIMATED = ("AVIF", "FLI", "WEBP")
_HDR_NOTE = "HDR shown without tone mapping"
_DARK = 64  # high bytes below it: the values have less than 15 significant bits


@dataclass(frozen=True)
class OpenPicture:
    """A picture whose pixels are decoded.

    pixels: RGB as stored, uint8 [H, W, 3], if `picture` is only open.
    profile: the ICC profile; empty if it is damaged. orientation: None = by the picture's EXIF.
    declared: what the file says about values of more than 8 bits. notes: for the receipt.
    """

    picture: Image.Image
    pixels: npt.NDArray[np.uint8] | None = None
    profile: bytes | None = None
    orientation: int | None = None
    declared: Declared | None = None
    notes: tuple[str, ...] = ()


Reader = Callable[[bytes, str, MediaLimits], OpenPicture]


def open_picture(name: str, label: str, data: bytes, limits: MediaLimits) -> OpenPicture:
    """Decodes a picture. name, label: of its format, from `detect_format`.

    Raises MediaError, and any exception that a decoder raises on damage.
    """
    return _READERS.get(name, _reader_of_plugin(name))(data, label, limits)


def _check(label: str, size: tuple[int, int], limits: MediaLimits) -> None:
    check_size(f"the {label}", *size, limits.max_image_pixels, limits.max_side)


def _reader_of_plugin(name: str) -> Reader:
    def read(data: bytes, label: str, limits: MediaLimits) -> OpenPicture:
        return _by_plugin(name, data, label, limits)

    return read


def _by_plugin(name: str, data: bytes, label: str, limits: MediaLimits) -> OpenPicture:
    picture = _PLUGINS[name](io.BytesIO(data))
    _check(label, picture.size, limits)
    notes: tuple[str, ...] = ()
    if any(str(tile[0]) == "fits_gzip" for tile in picture.tile):
        raise MediaError("decode_unsupported", f"the {label} is compressed, which is not read")
    picture.load()
    if name in _MAY_BE_ANIMATED and getattr(picture, "is_animated", False):
        picture.seek(0)
        notes = ("first frame of several",)
    profile = picture.info.get("icc_profile")
    return OpenPicture(picture, profile=profile or None, notes=notes)


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
    orientation, notes = None, ()
    try:
        picture: Image.Image = JpegImagePlugin.JpegImageFile(io.BytesIO(data))
    except Exception:  # noqa: BLE001 - damaged metadata raise anything
        # The pixels may be good: read again what they need, and the orientation.
        orientation, data = jpeg.orientation(data), jpeg.without_metadata(data)
        picture = JpegImagePlugin.JpegImageFile(io.BytesIO(data))
        notes = ("damaged metadata not used",)
    _check(label, picture.size, limits)
    profile = picture.info.get("icc_profile") or None
    pixels = None
    if picture.mode in ("RGB", "L"):
        pixels = jpeg.decode_jpeg(data, picture.height, picture.width)
    if pixels is None:
        picture.load()
    return OpenPicture(picture, pixels, profile, orientation, notes=notes)


def _png(data: bytes, label: str, limits: MediaLimits) -> OpenPicture:
    parts = png.read_parts(data)
    _check(label, parts.size, limits)
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
    colour = picture.convert("RGB") if picture.mode == "LA" else picture
    if max(high for _, high in colour.getextrema()[:3]) >= _DARK or bits == 16:
        return result
    values = png.decode_16_bits(parts)
    if values is None or (bits is not None and int(values[..., :3].max()) >= 1 << bits):
        return result
    colours = {2: "RGB", 4: "LA", 6: "RGBA"}[parts.colour_type]
    picture, note = picture_of_values(values, colours, Declared(bits=bits))
    return replace(result, picture=picture, notes=(*result.notes, *note))


def _gif(data: bytes, label: str, limits: MediaLimits) -> OpenPicture:
    _check(label, struct.unpack("<HH", data[6:10].ljust(4, b"\0")), limits)
    first, has_more = gif.first_frame(data)
    opened = _by_plugin("GIF", first, label, limits)
    return replace(opened, notes=("first frame of several",) if has_more else ())


def _webp(data: bytes, label: str, limits: MediaLimits) -> OpenPicture:
    _check(label, webp_size(data), limits)  # Pillow allocates the canvas when it opens the file
    return _by_plugin("WEBP", data, label, limits)


def _avif(data: bytes, label: str, limits: MediaLimits) -> OpenPicture:
    opened = _by_plugin("AVIF", heif.with_avif_brand(data), label, limits)
    return replace(opened, notes=(*opened.notes, _HDR_NOTE)) if heif.is_hdr(data) else opened


def _heif(data: bytes, label: str, limits: MediaLimits) -> OpenPicture:
    picture = heif.open_heif(data)
    _check(label, picture.size, limits)
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
    _check(label, jpeg_xl.stored_size(stream), limits)
    values, colours, profile = jpeg_xl.decode(stream)
    # The format's own depth counts: its values fill their range.
    bits = 16 if values.dtype == np.uint16 else None
    is_float = values.dtype.kind == "f"
    declared = Declared(bits=bits, low=0.0 if is_float else None, high=1.0 if is_float else None)
    picture, notes = picture_of_values(values, colours, declared)
    return OpenPicture(picture, None, profile, 1, notes=notes)


def _jpeg2000(data: bytes, label: str, limits: MediaLimits) -> OpenPicture:
    opened = _by_plugin("JPEG2000", data, label, limits)
    # Pillow shifts the declared depth to the highest bits.
    return replace(opened, declared=Declared(bits=16), orientation=1)


def _pnm(data: bytes, label: str, limits: MediaLimits) -> OpenPicture:
    header = pnm.read_header(data)
    _check(label, (header.width, header.height), limits)
    values, declared = pnm.read_values(data, header)
    picture, notes = picture_of_values(values, header.colours, declared)
    return OpenPicture(picture, orientation=1, notes=notes)


def _tiff(data: bytes, label: str, limits: MediaLimits) -> OpenPicture:
    tags = tiff_tags.read_tags(data)
    _check(label, (tags.number(tiff_tags.WIDTH, 0), tags.number(tiff_tags.HEIGHT, 0)), limits)
    notes: tuple[str, ...] = ("first frame of several",) if tags.has_more else ()
    if tags.number(tiff_tags.NEW_SUBFILE_TYPE, 0) & 1:
        notes = (*notes, "the file's first picture is a reduced copy")
    decoded = tiff.decode_tiff(data, tags)
    picture = decoded
    if isinstance(decoded, tiff.TiffValues):
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
        _check(label, (abs(width), abs(height) // 2), limits)
        opened = _by_plugin("ICO", icon, label, limits)
    return replace(opened, notes=("largest picture of several",) if has_more else ())


def _icns(data: bytes, label: str, limits: MediaLimits) -> OpenPicture:
    found = icons.largest_apple_icon(data)
    if found is None:
        return _by_plugin("ICNS", data, label, limits)
    return (_png if found[1] == "PNG" else _jpeg2000)(found[0], label, limits)


_READERS: dict[str, Reader] = {
    "AVIF": _avif,
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
    "TIFF": _tiff,
    "WEBP": _webp,
}

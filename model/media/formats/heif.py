"""Opens HEIF pictures (HEIC and the like) with libheif, and readies AVIF files for Pillow."""

import io

from PIL import Image
from pillow_heif.as_plugin import HeifImageFile

from mediamill.model.errors import MediaError
from mediamill.model.media.picture_formats import AVIF_BRANDS

_NOT_READ = ("nsupported", "not supported", "plugin", "decoder")
_HDR_TRANSFERS = (16, 18)  # PQ and HLG, ITU-T H.273 table 3
_HEADER_BYTES = 64 * 1024  # in which the properties lie


def open_heif(data: bytes) -> Image.Image:
    """Returns an open picture, upright already: the container's rotation is applied, not EXIF's.

    Raises MediaError decode_unsupported for other codecs, decode_corrupt for damage.
    """
    try:
        picture: Image.Image = HeifImageFile(io.BytesIO(data))  # type: ignore[no-untyped-call]
    except SyntaxError as error:
        # libheif leaves out pictures without compression, and tells no reason.
        if b"unci" in data[:_HEADER_BYTES] and b"hvc1" not in data[:_HEADER_BYTES]:
            message = "the HEIF picture is not compressed (unci), which is not read"
            raise MediaError("decode_unsupported", message) from error
        raise heif_error(error) from error
    # The library has turned it, and sets this to 1; damaged metadata cannot then matter.
    picture.info.pop("exif", None)
    picture.info.pop("xmp", None)
    return picture


def heif_error(error: Exception) -> MediaError:
    """Returns the MediaError of what libheif says about a file."""
    if any(words in str(error) for words in _NOT_READ):
        return MediaError(
            "decode_unsupported", f"the HEIF picture is of a kind that is not read: {error}"
        )
    return MediaError("decode_corrupt", f"the HEIF picture is damaged: {error}")


def with_avif_brand(data: bytes) -> bytes:
    """Returns an AVIF file that says so in its brands, which libavif asks for."""
    end = min(int.from_bytes(data[:4], "big"), len(data))
    if any(data[at : at + 4] in AVIF_BRANDS for at in range(8, end - 3, 4)):
        return data
    return data[:8] + b"avif" + data[12:]


def is_hdr(data: bytes) -> bool:
    """Whether a HEIF or AVIF file declares the transfer function PQ or HLG (a `colr` box, nclx)."""
    at = data.find(b"colrnclx", 0, _HEADER_BYTES)
    return at >= 0 and int.from_bytes(data[at + 10 : at + 12], "big") in _HDR_TRANSFERS

"""Embedded colour profiles are applied where the difference can be seen."""

import io

import numpy as np
import pytest
from PIL import Image, ImageCms

from mediamill.model.media.images import read_image, read_open_picture
from tests import media


def _profile(space: str = "display-p3") -> bytes:
    """A matrix profile: sRGB's with the colorants of another space, which ICC files hold as XYZ."""
    colorants = {
        "display-p3": ((0.51512, 0.2412, -0.00105), (0.29198, 0.69225, 0.04189),
        (0.1571, 0.06657, 0.78407)),
        "adobe": ((0.60974, 0.31111, 0.01947), (0.20528, 0.62567, 0.06087),
        (0.14919, 0.06322, 0.74457)),
        "nearly": ((0.4361, 0.2225, 0.0139), (0.3851, 0.7169, 0.0971), (0.1431, 0.0606, 0.7141)),
    }[space]  # fmt: skip
    data = bytearray(ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes())
    count = int.from_bytes(data[128:132], "big")
    for number in range(count):
        at = 132 + 12 * number
        name, offset = bytes(data[at : at + 4]), int.from_bytes(data[at + 4 : at + 8], "big")
        if name in (b"rXYZ", b"gXYZ", b"bXYZ"):
            values = colorants[(b"rXYZ", b"gXYZ", b"bXYZ").index(name)]
            for index, value in enumerate(values):
                fixed = round(value * 65536) & 0xFFFFFFFF
                data[offset + 8 + 4 * index : offset + 12 + 4 * index] = fixed.to_bytes(4, "big")
    return bytes(data)


def _red(form: str, profile: bytes, mode: str = "RGB", **options: object) -> tuple[np.ndarray, str]:
    picture = Image.new("RGB", (32, 32), (200, 60, 60)).convert(mode)
    decoded = read_image(media.encode(picture, form, icc_profile=profile, **options))
    return decoded.pixels[:, 16, 16].numpy().astype(int), " | ".join(decoded.notes)


@pytest.mark.parametrize("form", ["JPEG", "PNG", "TIFF", "WEBP", "AVIF"])
def test_a_wide_profile_is_applied(form: str) -> None:
    colour, notes = _red(form, _profile())
    assert "converted from the colour profile" in notes
    # Display P3 (200, 60, 60) is sRGB (217, 38, 52) by the matrices of the two spaces.
    assert np.abs(colour - (217, 38, 52)).max() <= 6
    plain, notes = _red(form, ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes())
    assert np.abs(plain - (200, 60, 60)).max() <= 3
    assert "profile" not in notes


def test_other_profiles() -> None:
    assert "converted" in _red("PNG", _profile("adobe"))[1]
    assert _red("PNG", _profile("nearly"))[0].tolist() == [200, 60, 60]
    for broken in (b"broken", _profile()[:200], bytes(5000)):
        colour, notes = _red("PNG", broken)
        assert colour.tolist() == [200, 60, 60]
        assert "damaged colour profile" in notes
    lab = ImageCms.ImageCmsProfile(ImageCms.createProfile("LAB")).tobytes()
    assert "not used: it is of" in _red("PNG", lab)[1]
    colour, notes = _red("JPEG", _profile(), "CMYK")
    assert "the picture of CMYK" in notes


def test_a_profile_and_transparency() -> None:
    picture = Image.new("RGBA", (4, 4), (200, 60, 60, 255))
    picture.putpixel((0, 0), (200, 60, 60, 0))
    decoded = read_image(media.encode(picture, "PNG", icc_profile=_profile()))
    assert decoded.pixels[:, 0, 0].tolist() == [255, 255, 255]
    assert np.abs(decoded.pixels[:, 2, 2].numpy().astype(int) - (217, 38, 52)).max() <= 4


def test_open_pictures_have_profiles_too() -> None:
    data = media.encode(Image.new("RGB", (8, 8), (200, 60, 60)), "PNG", icc_profile=_profile())
    opened = read_open_picture(Image.open(io.BytesIO(data)))
    assert np.array_equal(opened.pixels, read_image(data).pixels)
    assert opened.notes == read_image(data).notes

"""JPEG files: pixels and verdicts are Pillow's, whichever library decodes them."""

import io
import warnings

import numpy as np
import pytest
import simplejpeg
import torch
from PIL import Image, JpegImagePlugin

from mediamill.model.errors import MediaError
from mediamill.model.media import images
from mediamill.model.media.images import decode_image, read_image
from mediamill.model.media.jpeg import decode_jpeg
from mediamill.model.media.limits import MediaLimits
from tests import media

SIZES = [(1, 1), (7, 5), (16, 16), (17, 33), (90, 121), (255, 8), (8, 255)]
KINDS = {
    "4:4:4": {"subsampling": 0},
    "4:2:2": {"subsampling": 1},
    "4:2:0": {"subsampling": 2},
    "progressive 4:2:0": {"subsampling": 2, "progressive": True},
    "progressive 4:4:4": {"subsampling": 0, "progressive": True},
    "optimised": {"optimize": True},
    "coarse": {"quality": 3},
    "finest": {"quality": 100, "subsampling": 0},
    "restart markers": {"restart_marker_blocks": 2},
    "restart markers, progressive": {"restart_marker_rows": 1, "progressive": True},
    "stored as RGB": {"keep_rgb": True},
    "with a profile and a comment": {"icc_profile": bytes(70_000), "comment": b"drawn"},
}


def drawn(kind: str, height: int = 90, width: int = 121, grey: bool = False) -> bytes:
    picture = Image.fromarray(media.draw(height, width, seed=height + width))
    return media.encode(picture.convert("L") if grey else picture, "JPEG", **KINDS[kind])


def by_pillow(data: bytes) -> np.ndarray | None:
    """[H, W, 3] as stored; None for a file that it refuses."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            picture = JpegImagePlugin.JpegImageFile(io.BytesIO(data))
            picture.load()
        except Exception:  # noqa: BLE001 - as it raises whatever damage makes
            return None
    return np.array(picture.convert("RGB"))


def fast(data: bytes) -> np.ndarray | None:
    with Image.open(io.BytesIO(data)) as picture:
        return decode_jpeg(data, picture.height, picture.width)[0]


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("kind", KINDS)
def test_pixels_equal_pillows(kind, size):
    for grey in (False, True) if kind != "stored as RGB" else (False,):
        data = drawn(kind, *size, grey)
        pixels = fast(data)
        assert pixels is not None
        assert np.array_equal(pixels, by_pillow(data))


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("subsampling", ["440", "411", "420", "422", "444"])
def test_pixels_of_subsamplings_that_pillow_does_not_write(subsampling, size):
    pixels = np.ascontiguousarray(media.draw(*size, seed=3))
    data = simplejpeg.encode_jpeg(pixels, 85, "RGB", subsampling)
    pixels = fast(data)
    assert pixels is not None
    assert np.array_equal(pixels, by_pillow(data))


@pytest.mark.parametrize("orientation", range(1, 9))
def test_orientation_is_that_of_pillow(orientation):
    data = media.jpeg(31, 50, orientation=orientation)
    turns = images.Image.Transpose
    way = {
        2: turns.FLIP_LEFT_RIGHT, 3: turns.ROTATE_180, 4: turns.FLIP_TOP_BOTTOM,
        5: turns.TRANSPOSE, 6: turns.ROTATE_270, 7: turns.TRANSVERSE, 8: turns.ROTATE_90,
    }.get(orientation)  # fmt: skip
    picture = Image.fromarray(by_pillow(data))
    upright = np.array(picture if way is None else picture.transpose(way))
    assert torch.equal(decode_image(data), torch.from_numpy(upright).permute(2, 0, 1))


def test_what_is_not_grey_or_rgb_is_left_to_pillow():
    data = media.encode(Image.fromarray(media.draw(40, 50)).convert("CMYK"), "JPEG")
    assert decode_jpeg(data, 40, 50) == (None, None)
    assert np.array_equal(decode_image(data).permute(1, 2, 0).numpy(), by_pillow(data))


def test_another_size_than_the_checked_one_is_not_decoded():
    data = drawn("4:2:0", 40, 50)
    assert decode_jpeg(data, 40, 50)[0] is not None
    assert decode_jpeg(data, 50, 40) == (None, None)
    assert decode_jpeg(data, 40, 49) == (None, None)


def test_damage_that_pillow_conceals_is_a_note():
    data = drawn("4:2:0", 40, 50)
    end = data.rindex(b"\xff\xd9")
    damaged = data[:end] + b"\x12\x34\x56" * 9 + data[end:]
    assert not read_image(data).notes
    [note] = read_image(damaged).notes
    assert note.startswith("damage: 26 extraneous bytes before marker 0xd9")
    assert np.array_equal(read_image(damaged).pixels.permute(1, 2, 0), by_pillow(damaged))


def test_size_is_refused_from_the_header_alone():
    data = drawn("progressive 4:2:0", 40, 50)
    header = data[: data.index(b"\xff\xda") + 16]
    with pytest.raises(MediaError, match="50 x 40 = 2000 pixels; the limit is 1999") as caught:
        read_image(header, MediaLimits(max_image_pixels=1999))
    assert caught.value.code == "decode_too_large"


def assert_same_verdict(data: bytes) -> bool:
    """Whether the picture is good, for us as for Pillow; with equal pixels then."""
    expected = by_pillow(data)
    if expected is not None and expected[..., 0].size > 512 * len(data):
        expected = None  # libjpeg fills it with grey; so few bytes cannot hold so many pixels
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if expected is None:
            with pytest.raises(MediaError) as caught:
                decode_image(data)
            # Damage may make a file look like one of another kind.
            assert caught.value.code in ("decode_corrupt", "decode_unsupported")
            return False
        pixels = decode_image(data)
    assert np.array_equal(pixels.permute(1, 2, 0).numpy(), expected)
    return True


@pytest.mark.parametrize("kind", KINDS)
def test_verdict_on_every_truncation(kind):
    data = drawn(kind, 41, 57)
    cuts = [*range(3, len(data) - 12, max(1, len(data) // 60)), *range(len(data) - 12, len(data))]
    assert not any(assert_same_verdict(data[:end]) for end in cuts[:-12])
    for end in cuts[-12:]:  # the last bytes may be padding: what counts is that we agree
        assert_same_verdict(data[:end])
    assert assert_same_verdict(data)
    assert assert_same_verdict(data + b"what somebody left behind the picture")


@pytest.mark.parametrize("kind", KINDS)
def test_verdict_on_damaged_files(kind):
    rng = np.random.default_rng(len(kind))
    good = 0
    for number in range(60):
        data = bytearray(drawn(kind, 41, 57, grey=number % 3 == 0 and kind != "stored as RGB"))
        for _ in range(rng.integers(1, 5)):
            at = rng.integers(4, len(data)) if number % 2 else rng.integers(4, 700)
            data[min(at, len(data) - 1)] = rng.integers(0, 256)
        if number % 5 == 0:  # a part that is missing, or there twice
            start, length = rng.integers(4, len(data) - 40), rng.integers(1, 40)
            data[start : start + length] = data[start : start + length] * (number % 2 * 2)
        good += assert_same_verdict(bytes(data))
    assert good  # damage within the coded pixels is often no error for either


def test_a_second_header_within_the_file():
    small, large = drawn("4:2:0", 16, 16), drawn("4:2:0", 160, 160)
    start = large.index(b"\xff\xc0")
    length = int.from_bytes(large[start + 2 : start + 4], "big")
    second = large[start : start + 2 + length]
    at = small.index(b"\xff\xda")
    assert_same_verdict(small[:at] + second + small[at:])
    first = small.index(b"\xff\xc0")
    assert_same_verdict(small[:first] + second + small[first:])

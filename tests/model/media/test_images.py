"""Pictures: sizes, pixels and patches equal the reference's; other files are MediaErrors."""

import contextlib
import functools
import io
import json
import warnings

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from PIL import Image, ImageFile, ImageOps

from mediamill.model.errors import MediaError, ModelError
from mediamill.model.media.containers import detect_format
from mediamill.model.media.image_rules import ImageRules
from mediamill.model.media.images import decode_image, read_image
from mediamill.model.media.patches import normalize, patchify_image, patchify_video
from mediamill.model.media.resize import resize, smart_resize
from tests import media, oracle

sides = st.integers(1, 9000) | st.integers(1, 120)
limits = st.integers(28 * 28, 28 * 28 * 20000) | st.integers(1, 40_000)


@settings(max_examples=3000, deadline=None)
@given(sides, sides, limits, limits, st.just(28) | st.integers(1, 96))
@example(14, 14, 3136, 12845056, 28)
@example(42, 42, 3136, 12845056, 28)
@example(10, 2000, 3136, 12845056, 28)
@example(27, 5400, 3136, 12845056, 28)
@example(4000, 6000, 3136, 12845056, 28)
@example(1, 201, 3136, 12845056, 28)
def test_smart_resize_equals_the_reference(height, width, low, high, factor):
    low, high = sorted((low, high))
    try:
        expected = oracle.reference_smart_resize(height, width, factor, low, high)
    except ValueError:
        with pytest.raises(ValueError, match="200 times"):
            smart_resize(height, width, factor, low, high)
        return
    assert smart_resize(height, width, factor, low, high) == tuple(expected)


@functools.cache
def reference() -> oracle.Qwen2VLImageProcessor:
    return oracle.Qwen2VLImageProcessor(min_pixels=3136, max_pixels=60_000)


def own_pixel_values(data: bytes) -> tuple[torch.Tensor, list[int]]:
    pixels = decode_image(data)
    size = smart_resize(*pixels.shape[1:], 28, 3136, 60_000)
    patches = patchify_image(resize(pixels, *size))
    assert patches.dtype == torch.uint8
    assert patches.shape == (size[0] * size[1] // 196, 588)
    return normalize(patches), [1, size[0] // 14, size[1] // 14]


def assert_equals_reference(data: bytes) -> None:
    # The processor itself ignores EXIF; the reference's loader applies it.
    picture = ImageOps.exif_transpose(Image.open(io.BytesIO(data)))
    expected = reference()(picture, return_tensors="pt")
    values, grid = own_pixel_values(data)
    assert expected["image_grid_thw"].tolist() == [grid]
    assert torch.equal(values, expected["pixel_values"])


SHAPES = [
    (1, 1), (28, 28), (14, 14), (56, 57), (10, 1900), (1900, 10), (333, 777), (640, 480), (101, 99),
    (3, 500),
]  # fmt: skip


@pytest.mark.parametrize(("height", "width"), SHAPES)
def test_pixel_values_of_odd_shapes(height, width):
    picture = Image.fromarray(media.draw(height, width, seed=height))
    assert_equals_reference(media.encode(picture, "PNG"))


def _palette(transparent: bool) -> tuple[Image.Image, dict]:
    picture = Image.fromarray(media.draw(70, 90)).quantize(32)
    return picture, {"transparency": bytes([0, 90, 255] * 8)} if transparent else {}


def _rgba(height: int = 70, width: int = 90) -> Image.Image:
    return Image.fromarray(media.draw(height, width, 4, seed=3))


RGB = Image.fromarray(media.draw(70, 90))
FILES = {
    "JPEG RGB": lambda: media.encode(RGB, "JPEG"),
    "JPEG 4:4:4 progressive": lambda: media.encode(RGB, "JPEG", subsampling=0, progressive=True),
    "JPEG L": lambda: media.encode(RGB.convert("L"), "JPEG"),
    "JPEG CMYK": lambda: media.encode(RGB.convert("CMYK"), "JPEG"),
    "PNG L": lambda: media.encode(RGB.convert("L"), "PNG"),
    "PNG 1": lambda: media.encode(RGB.convert("1"), "PNG"),
    "PNG LA": lambda: media.encode(_rgba().convert("LA"), "PNG"),
    "PNG RGBA": lambda: media.encode(_rgba(), "PNG"),
    "PNG P": lambda: media.encode(_palette(False)[0], "PNG"),
    "PNG P with tRNS": lambda: media.encode(_palette(True)[0], "PNG", **_palette(True)[1]),
    "PNG RGB with tRNS": lambda: media.encode(RGB, "PNG", transparency=RGB.getpixel((4, 4))),
    "PNG L with tRNS": lambda: media.encode(RGB.convert("L"), "PNG", transparency=100),
    "animated PNG": lambda: media.animation(form="PNG"),
    "WebP RGB": lambda: media.encode(RGB, "WEBP"),
    "WebP lossless RGBA": lambda: media.encode(_rgba(), "WEBP", lossless=True),
    "animated WebP": lambda: media.animation(form="WEBP"),
    "GIF P": lambda: media.encode(RGB.quantize(64), "GIF"),
    "animated GIF": lambda: media.animation(form="GIF"),
    "BMP RGB": lambda: media.encode(RGB, "BMP"),
    "BMP P": lambda: media.encode(RGB.quantize(16), "BMP"),
    "TIFF RGB": lambda: media.encode(RGB, "TIFF"),
    "TIFF RGBA deflate": lambda: media.encode(_rgba(), "TIFF", compression="tiff_adobe_deflate"),
    "TIFF CMYK": lambda: media.encode(RGB.convert("CMYK"), "TIFF"),
    "AVIF RGB": lambda: media.encode(RGB, "AVIF"),
}


@pytest.mark.parametrize("name", FILES)
def test_pixel_values_of_formats_and_modes(name):
    assert_equals_reference(FILES[name]())


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("form", ["JPEG", "PNG", "TIFF", "WEBP"])
def test_exif_orientation(orientation, form):
    exif = Image.Exif()
    exif[0x0112] = orientation
    picture = Image.fromarray(media.draw(60, 88, seed=orientation))
    data = media.encode(picture, form, exif=exif)
    assert decode_image(data).shape[1:] == ((60, 88) if orientation < 5 else (88, 60))
    assert_equals_reference(data)


def test_damaged_exif_leaves_the_pixels_alone():
    plain = media.jpeg()
    marker = b"\xff\xe1" + (2 + 6 + 9).to_bytes(2, "big") + b"Exif\0\0" + b"MM\0*broke"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow tells that they are broken
        assert torch.equal(decode_image(plain[:2] + marker + plain[2:]), decode_image(plain))


def test_grey_of_16_bits_is_scaled_not_clipped():
    values = np.arange(48 * 64, dtype=np.uint16).reshape(48, 64) * 20
    decoded = read_image(media.encode(Image.fromarray(values), "PNG"))
    grey = torch.from_numpy((values >> 8).astype(np.uint8))
    assert torch.equal(decoded.pixels, grey.expand(3, -1, -1))
    assert "16-bit" in decoded.notes[0]


def test_grey_of_32_bits_is_scaled_by_its_own_range():
    values = np.linspace(-3, 7, 400, dtype=np.float32).reshape(20, 20)
    decoded = read_image(media.encode(Image.fromarray(values), "TIFF"))
    grey = np.rint((values - -3.0) * 25.5).astype(np.uint8)
    assert np.array_equal(decoded.pixels[0].numpy(), grey)
    assert decoded.notes == ("float grey scaled to 8 bits from the range -3 to 7 (its own)",)


def test_notes_tell_what_was_changed():
    assert read_image(media.jpeg(orientation=6)).notes == ("turned upright (EXIF orientation 6)",)
    assert read_image(FILES["PNG RGBA"]()).notes == ("transparency laid over white",)
    assert read_image(media.animation()).notes == ("first frame of several",)
    assert read_image(media.jpeg()).notes == ()


@pytest.mark.parametrize("shape", [(4, 50, 70), (1, 90, 60), (5, 60, 100), (2, 300, 200)])
def test_frames_equal_the_reference(shape):
    frames = torch.stack(
        [torch.from_numpy(media.draw(*shape[1:], seed=i)).permute(2, 0, 1) for i in range(shape[0])]
    )
    processor = oracle.Qwen2VLVideoProcessor(min_pixels=3136, max_pixels=30_000)
    expected = processor([frames], return_tensors="pt", do_sample_frames=False)
    size = smart_resize(*shape[1:], 28, 3136, 30_000)
    values = normalize(patchify_video(resize(frames, *size)))
    assert torch.equal(values, expected["pixel_values_videos"])
    one_by_one = torch.stack([resize(frame, *size) for frame in frames])
    assert torch.equal(one_by_one, resize(frames, *size))


def test_normalize_refuses_other_widths():
    with pytest.raises(ValueError, match="588"):
        normalize(torch.zeros(4, 100, dtype=torch.uint8))


def test_resize_refuses_floats():
    with pytest.raises(TypeError, match="uint8"):
        resize(torch.zeros(3, 40, 40), 28, 28)


# --- what is wrong with a file


def error_of(data: bytes, max_pixels: int | None = None) -> MediaError:
    with pytest.raises(MediaError) as caught:
        decode_image(data, max_pixels)
    assert len(str(caught.value)) > 20
    return caught.value


def test_empty_file():
    assert error_of(b"").code == "media_empty"


@pytest.mark.parametrize(
    "data",
    [b"a text that somebody named picture.jpg", b"\x00" * 500, b"BMW is a maker of cars", b"x"],
)
def test_files_that_are_no_pictures(data):
    assert error_of(data).code == "decode_unsupported"


def test_a_video_is_no_picture():
    error = error_of(media.video(media.numbered_frames(2)))
    assert error.code == "decode_unsupported"
    assert "MP4" in str(error)


@pytest.mark.sampled(24)
@pytest.mark.parametrize("name", [name for name in FILES if "animated" not in name])
@pytest.mark.parametrize("share", [0.3, 0.6, 0.95])
def test_truncated_pictures_are_errors_not_grey(name, share):
    data = FILES[name]()
    assert error_of(media.cut(data, share)).code == "decode_corrupt"


def test_size_is_refused_from_the_header_alone():
    header = media.encode(Image.new("L", (3000, 2000)), "PNG")[:60]
    error = error_of(header, max_pixels=1_000_000)
    assert error.code == "decode_too_large"
    assert "3000 x 2000" in str(error)
    assert "1000000" in str(error)


@pytest.mark.parametrize("name", ["WebP RGB", "WebP lossless RGBA", "animated WebP"])
def test_size_of_webp_is_refused_before_its_decoder_starts(name):
    data = FILES[name]()
    width, height = Image.open(io.BytesIO(data)).size
    assert decode_image(data, max_pixels=width * height).shape[1:] == (height, width)
    assert f"{width} x {height}" in str(error_of(data[:40], max_pixels=width * height - 1))


@pytest.mark.parametrize("name", FILES)
def test_pillows_own_ceiling_neither_warns_nor_raises(name, monkeypatch):
    data = FILES[name]()
    width, height = Image.open(io.BytesIO(data)).size
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", width * height - 1)
    decode_image(data)  # warnings are errors in these tests
    assert width * height - 1 == Image.MAX_IMAGE_PIXELS


@pytest.mark.parametrize("name", FILES)
def test_beyond_twice_pillows_ceiling(name, monkeypatch):
    data = FILES[name]()
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10)
    if "WebP" in name or "TIFF" in name:  # these plugins refuse by themselves
        assert error_of(data).code == "decode_too_large"
    else:
        decode_image(data)


def test_pillow_still_refuses_truncated_pictures():
    assert ImageFile.LOAD_TRUNCATED_IMAGES is False


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_any_damage_is_a_media_error(data):
    whole = FILES[data.draw(st.sampled_from(sorted(FILES)), label="file")]()
    damaged = bytearray(whole)
    for _ in range(data.draw(st.integers(1, 6), label="bytes")):
        damaged[data.draw(st.integers(0, len(whole) - 1))] = data.draw(st.integers(0, 255))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the TIFF reader tells what it stumbles over
        # any other error than a MediaError fails this test
        with contextlib.suppress(MediaError):
            pixels = decode_image(bytes(damaged), max_pixels=1_000_000)
            assert pixels.dtype == torch.uint8
            assert pixels.shape[0] == 3


@given(st.binary(max_size=64))
def test_detecting_the_format_of_any_bytes(data):
    # any other error than a MediaError fails this test
    with contextlib.suppress(MediaError):
        assert detect_format(data).kind in ("image", "video")


# --- the checkpoint's files

FLAT = {"patch_size": 14, "temporal_patch_size": 2, "merge_size": 2}
CLIP = {
    "image_mean": [0.48145466, 0.4578275, 0.40821073],
    "image_std": [0.26862954, 0.26130258, 0.27577711],
}
SIZE = {"shortest_edge": 7056, "longest_edge": 98000}
LAYOUTS = {
    "hub: min_pixels and max_pixels": {
        "preprocessor_config.json": {**FLAT, **CLIP, "min_pixels": 3136, "max_pixels": 12845056}
    },
    "size with edges": {"preprocessor_config.json": {**FLAT, "size": SIZE}},
    "both, which differ": {
        "preprocessor_config.json": {**FLAT, "size": SIZE, "min_pixels": 4000, "max_pixels": 50000}
    },
    "only max_pixels": {"preprocessor_config.json": {**FLAT, "max_pixels": 50000}},
    "no limits": {"preprocessor_config.json": FLAT},
    "video file of its own": {
        "preprocessor_config.json": {**FLAT, "size": SIZE},
        "video_preprocessor_config.json": {**FLAT, "size": {**SIZE, "longest_edge": 70000}},
    },
    "nested": {
        "processor_config.json": {
            "processor_class": "Qwen2VLProcessor",
            "image_processor": {**FLAT, "size": SIZE},
            "video_processor": {**FLAT, "size": {**SIZE, "longest_edge": 60000}},
        },
        "preprocessor_config.json": {**FLAT, "max_pixels": 11111},
    },
    "other colours": {
        "preprocessor_config.json": {
            **FLAT, "size": SIZE, "image_mean": [0.5, 0.4, 0.3], "image_std": [0.5, 0.5, 0.25]
        }
    },
}  # fmt: skip


def write(folder, files) -> None:
    for name, content in files.items():
        (folder / name).write_text(json.dumps(content))


@pytest.mark.parametrize("layout", LAYOUTS)
def test_config_layouts_equal_the_reference(layout, tmp_path):
    write(tmp_path, LAYOUTS[layout])
    for kind, expected in (
        ("image", oracle.load_image_processor(tmp_path)),
        ("video", oracle.load_video_processor(tmp_path)),
    ):
        rules = ImageRules.from_checkpoint(tmp_path, kind)
        size = expected.size
        assert (rules.min_pixels, rules.max_pixels) == (size["shortest_edge"], size["longest_edge"])
        assert rules.mean == tuple(expected.image_mean)
        assert rules.std == tuple(expected.image_std)


def test_size_with_pixel_keys_is_accepted_where_the_reference_fails(tmp_path):
    size = {"min_pixels": 5000, "max_pixels": 60000}
    write(tmp_path, {"preprocessor_config.json": {**FLAT, "size": size}})
    rules = ImageRules.from_checkpoint(tmp_path)
    assert (rules.min_pixels, rules.max_pixels) == (5000, 60000)


def test_videos_without_any_file_get_the_class_defaults(tmp_path):
    rules = ImageRules.from_checkpoint(tmp_path, "video")
    assert (rules.min_pixels, rules.max_pixels) == (128 * 784, 768 * 784)
    with pytest.raises(ModelError, match=r"preprocessor_config\.json"):
        ImageRules.from_checkpoint(tmp_path)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("patch_size", 0),
        ("merge_size", "two"),
        ("do_resize", "no"),
        ("do_center_crop", True),
        ("do_pad", True),
        ("rescale_factor", 0),
        ("rescale_factor", "1/255"),
        ("resample", 1),
        ("resample", "bicubic"),
        ("min_pixels", "many"),
        ("min_pixels", 0),
        ("size", 448),
        ("size", {"height": 448, "width": 448}),
        ("image_mean", [0.5, 0.5]),
        ("image_std", [0.5, 0.5, 0]),
    ],
)
def test_options_that_are_wrong_or_not_implemented(key, value, tmp_path):
    write(tmp_path, {"preprocessor_config.json": {**FLAT, "max_pixels": 50000, key: value}})
    with pytest.raises(ModelError, match=key):
        ImageRules.from_checkpoint(tmp_path)


def test_limits_can_be_replaced_but_not_crossed():
    rules = ImageRules().with_limits(None, 50_000)
    assert (rules.min_pixels, rules.max_pixels) == (3136, 50_000)
    with pytest.raises(ModelError, match="2000"):
        ImageRules().with_limits(None, 2000)

"""Pictures by every option of the reference's picture processor, from files and decoded already."""

import itertools
import json

import numpy as np
import pytest
import torch
from PIL import Image

from mediamill.model.errors import MediaError, ModelError
from mediamill.model.media.image_rules import ImageRules
from mediamill.model.media.limits import MediaLimits
from mediamill.model.media.pixels import Picture
from mediamill.model.media.prepared import prepare_picture
from mediamill.model.processor import Processor
from mediamill.model.tiny import CHECKPOINT
from tests import media, oracle

LIMITS = {"size": {"shortest_edge": 3136, "longest_edge": 40_000}}
HALF = {"image_mean": 0.5, "image_std": 0.5}
SHAPES = [(70, 90), (1, 1), (333, 77), (56, 112)]
OPTIONS = {
    "as published": {},
    "not normalised": {"do_normalize": False},
    "not rescaled": {"do_rescale": False},
    "neither": {"do_normalize": False, "do_rescale": False},
    "other factor": {"rescale_factor": 1 / 127.5},
    "other factor, not normalised": {"rescale_factor": 0.0039, "do_normalize": False},
    "one mean and std": HALF,
    "one in a list": {"image_mean": [0.25], "image_std": [2]},
    "three others": {"image_mean": [0.1, 0.2, 0.3], "image_std": [0.4, 0.5, 0.6]},
    "three others, not rescaled": {"image_mean": [9, 8, 7], "image_std": HALF["image_std"]}
    | {"do_rescale": False},
    "bilinear": {"resample": 2},
    "patches of 16": {"patch_size": 16},
    "three by three patches a token": {"patch_size": 7, "merge_size": 3},
    "one patch a token": {"merge_size": 1},
    "one slice": {"temporal_patch_size": 1},
    "three slices": {"temporal_patch_size": 3},
    "pixel limits": {"min_pixels": 5000, "max_pixels": 20_000},
}


def own(picture: bytes | Picture, options: dict) -> tuple[torch.Tensor, list[list[int]]]:
    rules = ImageRules().with_options({**LIMITS, **options}, "options")
    visual, receipt = prepare_picture(picture, rules, MediaLimits())
    assert receipt.visual_tokens == visual.tokens
    assert visual.patches.dtype == torch.uint8
    return rules.normalize(visual.patches, "image"), [list(visual.grid_thw)]


def assert_equals_reference(picture: Picture, options: dict) -> None:
    expected = oracle.Qwen2VLImageProcessor(**{**LIMITS, **options})(picture, return_tensors="pt")
    values, grid = own(picture, options)
    assert values.dtype == torch.float32
    assert grid == expected["image_grid_thw"].tolist()
    assert torch.equal(values, expected["pixel_values"].to(torch.float32))


@pytest.mark.sampled(30)
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("name", OPTIONS)
def test_every_option_equals_the_reference(name, shape):
    picture = Image.fromarray(media.draw(*shape, seed=shape[0]))
    assert_equals_reference(picture, OPTIONS[name])
    again = own(media.encode(picture, "PNG"), OPTIONS[name])[0]
    assert torch.equal(own(picture, OPTIONS[name])[0], again)


@pytest.mark.parametrize(("patch", "merge"), [(14, 2), (8, 1), (5, 3)])
def test_without_a_resize(patch, merge):
    options = {"do_resize": False, "patch_size": patch, "merge_size": merge}
    side = patch * merge
    picture = Image.fromarray(media.draw(3 * side, 5 * side))
    assert_equals_reference(picture, options)
    for height, width in ((3 * side + 1, side), (side, side - 1)):
        with pytest.raises(MediaError, match=f"multiples of {side}") as caught:
            own(Image.fromarray(media.draw(height, width)), options)
        assert caught.value.code == "decode_unsupported"


def test_without_a_conversion_to_rgb():
    options = {"do_convert_rgb": False}
    assert_equals_reference(Image.fromarray(media.draw(70, 90)), options)
    picture = Image.fromarray(media.draw(70, 90))
    for other in (picture.convert("L"), picture.convert("CMYK"), picture.quantize(9)):
        with pytest.raises(MediaError, match=f"mode {other.mode} and do_convert_rgb"):
            own(other, options)
    with pytest.raises(MediaError, match="mode L "):
        own(media.encode(picture.convert("L"), "PNG"), options)
    with pytest.raises(MediaError, match="4 colours"):
        own(media.draw(70, 90, 4), options)


# --- decoded already


def _with_info(picture: Image.Image, transparency: object) -> Image.Image:
    picture.info["transparency"] = transparency
    return picture


def _rgb() -> Image.Image:
    return Image.fromarray(media.draw(50, 80))


def _rgba() -> Image.Image:
    return Image.fromarray(media.draw(50, 80, 4))


PICTURES = {
    **{mode: lambda mode=mode: _rgb().convert(mode) for mode in ("1", "L", "CMYK", "YCbCr", "HSV")},
    "LAB": lambda: Image.frombytes("LAB", (80, 50), _rgb().tobytes()),
    "LA": lambda: _rgba().convert("LA"),
    "RGBA": _rgba,
    "RGBX": lambda: _rgb().convert("RGBX"),
    "PA": lambda: _rgb().quantize(9).convert("PA"),
    "P": lambda: _rgb().quantize(17),
    "P, one colour transparent": lambda: _with_info(_rgb().quantize(17), 3),
    "P, transparent by degrees": lambda: _with_info(_rgb().quantize(16), bytes(range(0, 240, 15))),
    "RGB, one colour transparent": lambda: _with_info(_rgb(), _rgb().getpixel((3, 3))),
    "array": lambda: media.draw(50, 80),
    "array, turned": lambda: media.draw(80, 50).transpose(1, 0, 2)[::-1].copy(),
    "array, grey": lambda: media.draw(50, 80, 1),
    "array with transparency": lambda: media.draw(50, 80, 4),
    "array, colours first": lambda: media.draw(50, 80).transpose(2, 0, 1),
    "tensor": lambda: torch.from_numpy(media.draw(50, 80)).permute(2, 0, 1),
    "tensor, grey": lambda: torch.from_numpy(media.draw(50, 80, 1)).permute(2, 0, 1),
    "tensor with transparency": lambda: torch.from_numpy(media.draw(50, 80, 4)).permute(2, 0, 1),
    "tensor, colours last": lambda: torch.from_numpy(media.draw(50, 80)),
}


@pytest.mark.parametrize("name", PICTURES)
def test_decoded_pictures_equal_the_reference(name):
    assert_equals_reference(PICTURES[name](), {})


def test_null_is_the_default():
    nulls = dict.fromkeys(
        ("do_resize", "image_mean", "resample", "size", "patch_size", "max_pixels")
    )
    assert ImageRules().with_options(nulls, "options") == ImageRules()


def test_a_read_only_array():
    pixels = np.frombuffer(_rgb().tobytes(), np.uint8).reshape(50, 80, 3)
    assert torch.equal(own(pixels, {})[0], own(_rgb(), {})[0])


def test_grey_without_a_dimension_of_colours():
    grey = media.draw(50, 80, 1)
    expected, _ = own(grey, {})
    assert torch.equal(own(grey[:, :, 0], {})[0], expected)
    assert torch.equal(own(torch.from_numpy(grey[:, :, 0]), {})[0], expected)


def test_the_orientation_of_an_open_picture_is_applied():
    data = media.jpeg(60, 88, orientation=6)
    picture = Image.open(media.io.BytesIO(data))
    assert torch.equal(own(picture, {})[0], own(data, {})[0])


def test_premultiplied_transparency_is_laid_over_white():
    assert torch.equal(
        own(_rgba().convert("RGBa"), {})[0],
        own(_rgba().convert("RGBa").convert("RGBA"), {})[0],
    )


@pytest.mark.parametrize(
    ("picture", "code", "words"),
    [
        (np.zeros((0, 5, 3), np.uint8), "media_empty", "[0, 5, 3]"),
        (Image.new("RGB", (0, 4)), "media_empty", "0 x 4"),
        (np.zeros((40, 50, 3), np.float32), "decode_unsupported", "float32"),
        (torch.zeros(3, 40, 50), "decode_unsupported", "float32"),
        (np.zeros((40, 50, 2), np.uint8), "decode_unsupported", "[40, 50, 2]"),
        (np.zeros((2, 40, 50, 3), np.uint8), "decode_unsupported", "[2, 40, 50, 3]"),
        ("picture.png", "decode_unsupported", "a str"),
        (np.zeros((2, 402, 3), np.uint8), "decode_unsupported", "200 times"),
        (np.zeros((200, 200), np.uint8), "decode_too_large", "40000"),
    ],
)
def test_decoded_pictures_that_cannot_be_used(picture, code, words):
    with pytest.raises(MediaError) as caught:
        prepare_picture(picture, ImageRules(), MediaLimits(max_image_pixels=20_000))
    assert caught.value.code == code
    assert words in str(caught.value)


# --- where the options come from

FLAT = {"patch_size": 14, "temporal_patch_size": 2, "merge_size": 2, **LIMITS}


@pytest.mark.parametrize("name", OPTIONS)
def test_options_of_the_file_equal_the_reference(name, tmp_path):
    config = {**FLAT, **OPTIONS[name], "processor_class": "x", "do_center_crop": False}
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(config))
    picture = Image.fromarray(media.draw(70, 90))
    expected = oracle.load_image_processor(tmp_path)(picture, return_tensors="pt")
    rules = ImageRules.from_checkpoint(str(tmp_path))
    visual, _ = prepare_picture(picture, rules, MediaLimits())
    values = rules.normalize(visual.patches, "image")
    assert [list(visual.grid_thw)] == expected["image_grid_thw"].tolist()
    assert torch.equal(values, expected["pixel_values"].to(torch.float32))


def test_options_of_the_caller_go_over_those_of_the_file():
    options = {"resample": 2, "image_mean": 0.5, "size": {"min_pixels": 784, "max_pixels": 8000}}
    processor = Processor.load(CHECKPOINT, image_max_pixels=5000, image=options)
    rules = processor.image_rules
    assert (rules.resample, rules.mean, rules.min_pixels) == ("bilinear", (0.5, 0.5, 0.5), 784)
    assert rules.max_pixels == 5000
    assert rules.std == ImageRules().std
    assert processor.frame_rules == Processor.load(CHECKPOINT).frame_rules
    visual, receipt = processor.prepare_picture(_rgb())
    assert receipt.height * receipt.width <= 5000
    assert processor.prepare_media(media.encode(_rgb(), "PNG"))[0].grid_thw == visual.grid_thw


def test_patches_of_the_other_kind_are_refused():
    rules = ImageRules()
    with pytest.raises(ValueError, match="1176"):
        rules.normalize(torch.zeros(4, 588, dtype=torch.uint8), "video")
    with pytest.raises(ValueError, match="588"):
        rules.normalize(torch.zeros(4, 1176, dtype=torch.uint8), "image")


def test_sizes_without_pixels_equal_the_reference():
    processor = oracle.Qwen2VLImageProcessor(**LIMITS)
    rules = ImageRules().with_options(LIMITS, "options")
    for height, width in itertools.product((1, 30, 77, 640), (5, 28, 199)):
        patches = processor.get_number_of_image_patches(height, width)
        assert rules.tokens_of(rules.size_of(height, width)) == patches // 4
    with pytest.raises(ValueError, match="at least 1 x 1"):
        rules.size_of(0, 5)


@pytest.mark.parametrize("key", ["do_center_crop", "do_pad", "do_flip_channel_order"])
def test_steps_that_are_not_implemented_are_refused(key):
    assert ImageRules().with_options({key: False, "crop_size": 224}, "x") == ImageRules()
    with pytest.raises(ModelError, match=key):
        ImageRules().with_options({key: True}, "x")

"""Videos by every option of the reference's video processor, from files and decoded already."""

import json
import shutil

import numpy as np
import pytest
import torch
from PIL import Image

from mediamill.model.errors import MediaError, ModelError, PromptError
from mediamill.model.media.frame_sampling import VideoRules
from mediamill.model.media.image_rules import ImageRules
from mediamill.model.media.limits import MediaLimits
from mediamill.model.media.pixels import Frames
from mediamill.model.media.prepared import prepare_frames, prepare_video
from mediamill.model.processor import Processor
from mediamill.model.tiny import CHECKPOINT
from tests import media, oracle

LIMITS = {"size": {"shortest_edge": 3136, "longest_edge": 12_000}}
ALL = VideoRules(do_sample_frames=False)
RATE = 10.0


def drawn(count: int, height: int = 64, width: int = 96) -> np.ndarray:
    """Uint8 [count, height, width, 3]."""
    return np.stack(media.numbered_frames(count, height, width))


def own(
    frames: Frames, rules: VideoRules, options: dict, fps: float | None = RATE
) -> tuple[torch.Tensor, list[list[int]]]:
    pixels = ImageRules().with_options({**LIMITS, **options}, "options")
    visual, receipt = prepare_frames(frames, fps, rules, pixels, MediaLimits())
    assert receipt.visual_tokens == visual.tokens
    return pixels.normalize(visual.patches, "video"), [list(visual.grid_thw)]


def assert_equals_reference(
    frames: Frames, rules: VideoRules, options: dict, **sampling: object
) -> None:
    metadata = oracle.VideoMetadata(total_num_frames=len(frames), fps=RATE)
    expected = oracle.Qwen2VLVideoProcessor(**LIMITS, **options)(
        [frames],
        video_metadata=[metadata],
        do_sample_frames=bool(sampling),
        return_tensors="pt",
        **sampling,
    )
    values, grid = own(frames, rules, options)
    assert grid == expected["video_grid_thw"].tolist()
    assert torch.equal(values, expected["pixel_values_videos"].to(torch.float32))


SAMPLINGS = {
    "few a second": {"fps": 1.0},
    "more than the video has": {"fps": 60},
    "at most": {"fps": 5.0, "max_frames": 6},
    "at most an odd number": {"fps": 5.0, "max_frames": 7},
    "at least": {"fps": 0.1, "min_frames": 6},
    "at least an odd number": {"fps": 0.1, "min_frames": 5},
    "a number": {"num_frames": 6},
    "an odd number": {"num_frames": 5},
    "all": {},
}


@pytest.mark.parametrize("count", [12, 19, 30])
@pytest.mark.parametrize("name", SAMPLINGS)
def test_sampled_frames_equal_the_reference(name, count):
    sampling = SAMPLINGS[name]
    rules = VideoRules(**sampling) if sampling else ALL
    assert_equals_reference(drawn(count), rules, {}, **sampling)


@pytest.mark.parametrize("count", [1, 2, 3, 4, 5, 8])
@pytest.mark.parametrize("group", [1, 2, 3, 4])
def test_counts_that_do_not_fill_the_last_patch(count, group):
    assert_equals_reference(drawn(count), ALL, {"temporal_patch_size": group})


@pytest.mark.parametrize("group", [1, 3, 4])
@pytest.mark.parametrize("sampling", [{"fps": 2.0}, {"num_frames": 7}])
def test_groups_of_other_sizes_are_sampled_as_by_the_reference(group, sampling):
    options = {"temporal_patch_size": group}
    assert_equals_reference(drawn(21), VideoRules(**sampling), options, **sampling)


@pytest.mark.parametrize(
    "options",
    [
        {"do_normalize": False},
        {"do_rescale": False, "image_mean": 0.5},
        {"resample": 2, "patch_size": 16},
        {"merge_size": 1, "rescale_factor": 0.5},
        {"min_pixels": 784, "max_pixels": 2000},
    ],
)
def test_pixel_options_equal_the_reference(options):
    assert_equals_reference(drawn(5), ALL, options)


@pytest.mark.parametrize("tokens", [1, 20, 60, 128_000])
@pytest.mark.parametrize("count", [1, 4, 11])
def test_capped_pixels_equal_the_reference(tokens, count):
    rules = VideoRules(cap_pixels_per_frame=True, max_video_tokens=tokens).with_defaults(ALL)
    options = {"cap_pixels_per_frame": True, "max_video_tokens": tokens}
    assert_equals_reference(drawn(count, 120, 200), rules, options)


def test_a_capped_file_is_as_its_frames():
    data = media.video(media.numbered_frames(12, 120, 200))
    pixels = ImageRules(min_pixels=784, max_pixels=40_000)
    rules = VideoRules(num_frames=12, cap_pixels_per_frame=True, max_video_tokens=40)
    visual, receipt = prepare_video(data, rules, pixels, MediaLimits())
    frames = np.stack(media.all_frames(data))
    again, expected = prepare_frames(frames, None, rules, pixels, MediaLimits())
    assert torch.equal(visual.patches, again.patches)
    assert visual.grid_thw == again.grid_thw
    assert visual.tokens <= 40
    assert any("max_pixels 4704" in note for note in receipt.notes)
    assert receipt.frame_indices == expected.frame_indices == tuple(range(12))


def test_all_frames_of_a_file():
    data = media.video(media.numbered_frames(9))
    visual, receipt = prepare_video(data, ALL, ImageRules(), MediaLimits())
    assert receipt.frame_indices == tuple(range(9))
    assert visual.grid_thw[0] == 5
    assert "last frame repeated to make a pair" in receipt.notes
    window = prepare_video(data, ALL, ImageRules(), MediaLimits(), 0.2, 0.55)[1]
    assert window.frame_indices == (2, 3, 4, 5)


def test_frames_without_a_resize():
    assert_equals_reference(drawn(4, 56, 84), ALL, {"do_resize": False})
    data = media.video(media.numbered_frames(4))
    with pytest.raises(MediaError, match="multiples of 28"):
        prepare_video(data, ALL, ImageRules(do_resize=False), MediaLimits())


# --- decoded already


def test_frames_in_every_form_are_the_same():
    frames = drawn(7)
    expected, grid = own(frames, ALL, {})
    first = torch.from_numpy(frames).permute(0, 3, 1, 2)
    forms = [first, frames.transpose(0, 3, 1, 2), list(frames), list(first)]
    forms.append([Image.fromarray(frame) for frame in frames])
    for form in forms:
        values, found_grid = own(form, ALL, {})
        assert found_grid == grid
        assert torch.equal(values, expected)
    assert_equals_reference(forms[-1], ALL, {})


def test_a_rate_decides_whether_frames_are_sampled():
    processor = Processor.load(CHECKPOINT)
    frames = drawn(20)
    visual, receipt = processor.prepare_frames(frames, fps=10.0)
    assert receipt.frame_indices == (0, 5, 10, 15)
    assert receipt.frame_times_s == (0.0, 0.5, 1.0, 1.5)
    data = processor.prepare_media(media.video(list(frames)))[1]
    assert data.frame_indices == receipt.frame_indices
    _, receipt = processor.prepare_frames(frames)
    assert receipt.frame_indices == tuple(range(20))
    assert receipt.frame_times_s == ()
    _, receipt = processor.prepare_frames(frames, video=VideoRules(num_frames=2))
    assert receipt.frame_indices == (0, 10)
    assert visual.tokens == receipt.visual_tokens * 2


def test_grey_and_transparent_frames():
    grey = [Image.fromarray(frame).convert("L") for frame in drawn(2)]
    as_rgb = np.stack([np.array(frame.convert("RGB")) for frame in grey])
    assert torch.equal(own(grey, ALL, {})[0], own(as_rgb, ALL, {})[0])
    clear = [Image.new("RGBA", (60, 60), (0, 0, 0, 0))] * 2
    white = np.full((2, 60, 60, 3), 255, np.uint8)
    assert torch.equal(own(clear, ALL, {})[0], own(white, ALL, {})[0])


@pytest.mark.parametrize(
    ("frames", "code", "words"),
    [
        ([], "media_empty", "no frames"),
        (np.zeros((0, 30, 30, 3), np.uint8), "media_empty", "no frames"),
        (np.zeros((30, 30, 3), np.uint8), "decode_unsupported", "[30, 30, 3]"),
        (torch.zeros(2, 3, 30, 30), "decode_unsupported", "float32"),
        (Image.new("RGB", (30, 30)), "decode_unsupported", "list of frames"),
        (
            [np.zeros((30, 30, 3), np.uint8), np.zeros((30, 40, 3), np.uint8)],
            "decode_unsupported",
            "frame 1 is 40 x 30",
        ),
        (np.zeros((2, 2, 500, 3), np.uint8), "decode_unsupported", "200 times"),
    ],
)
def test_frames_that_cannot_be_used(frames, code, words):
    with pytest.raises(MediaError) as caught:
        own(frames, ALL, {})
    assert caught.value.code == code
    assert words in str(caught.value)


def test_a_rate_out_of_range():
    with pytest.raises(ValueError, match="fps is 0"):
        own(drawn(2), ALL, {}, fps=0)


def test_more_frames_than_the_model_takes():
    processor = Processor.load(CHECKPOINT)
    with pytest.raises(PromptError, match="visual tokens") as caught:
        processor.prepare_frames([np.zeros((64, 96, 3), np.uint8)] * 2000)
    assert caught.value.code == "context_too_long"


# --- where the options come from


def folder(tmp_path, **keys: object):
    shutil.copytree(CHECKPOINT, tmp_path, dirs_exist_ok=True)
    path = tmp_path / "video_preprocessor_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **keys}))
    return tmp_path


def indices(processor: Processor) -> tuple[int, ...]:
    return processor.prepare_frames(drawn(20), fps=10.0)[1].frame_indices


def test_the_file_decides_what_the_caller_does_not_say(tmp_path):
    where = folder(tmp_path, fps=4.0, max_frames=6, min_frames=2)
    assert indices(Processor.load(where)) == (0, 3, 6, 10, 13, 16)
    assert len(indices(Processor.load(where, video=VideoRules(fps=1.0)))) == 2
    assert len(indices(Processor.load(where, video=VideoRules(max_frames=20)))) == 8
    assert len(indices(Processor.load(where, frames={"num_frames": 2}))) == 2
    assert len(indices(Processor.load(where, frames={"min_frames": 4, "fps": 0.5}))) == 4


def test_a_file_that_does_not_sample(tmp_path):
    where = folder(tmp_path, do_sample_frames=False)
    assert indices(Processor.load(where)) == tuple(range(20))
    assert indices(Processor.load(where, frames={"do_sample_frames": True})) == (0, 5, 10, 15)
    assert indices(Processor.load(where, video=VideoRules(fps=2.0))) == (0, 5, 10, 15)
    stubborn = VideoRules(fps=2.0, do_sample_frames=False)
    assert indices(Processor.load(where, video=stubborn)) == tuple(range(20))


def test_the_cap_of_a_file_equals_the_reference(tmp_path):
    where = folder(tmp_path, cap_pixels_per_frame=True, max_video_tokens=24)
    processor = Processor.load(where, frames={"min_pixels": 784, "max_pixels": 50_000})
    frames = drawn(8, 120, 200)
    expected = oracle.load_video_processor(where)(
        [frames], size={"shortest_edge": 784, "longest_edge": 50_000}, return_tensors="pt"
    )
    visual, _ = processor.prepare_frames(frames)
    values = processor.frame_rules.normalize(visual.patches, "video")
    assert torch.equal(values, expected["pixel_values_videos"])
    assert processor.video_tokens(8, 120, 200) == visual.tokens


@pytest.mark.parametrize(
    "keys",
    [
        {"fps": "two"},
        {"fps": 0},
        {"num_frames": 2.5},
        {"fps": 1.0, "num_frames": 4},
        {"do_sample_frames": 1},
        {"max_video_tokens": -1},
    ],
)
def test_files_with_wrong_values(keys, tmp_path):
    with pytest.raises(ModelError, match=next(iter(keys))):
        Processor.load(folder(tmp_path, **keys))

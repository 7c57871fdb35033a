"""Makes the patches of one picture or video, and a receipt of what they show."""

import hashlib
from functools import partial
from pathlib import Path

import torch

from mediamill.model.errors import MediaError, PromptError
from mediamill.model.inputs import VisualInput
from mediamill.model.media.frame_sampling import VideoRules
from mediamill.model.media.image_rules import ImageRules
from mediamill.model.media.images import DecodedImage, read_image
from mediamill.model.media.limit_names import ordered
from mediamill.model.media.limits import MediaLimits, out_of_memory_as_media_error
from mediamill.model.media.media_file import MediaFile, Source
from mediamill.model.media.patches import patchify_image, patchify_video
from mediamill.model.media.pixel_budget import PixelBudget
from mediamill.model.media.pixels import Frames, Picture, frame_count, picture_pixels
from mediamill.model.media.probe_cache import ProbeCache
from mediamill.model.media.receipt import Receipt
from mediamill.model.media.resize import resize
from mediamill.model.media.timeline import sample_within_budget
from mediamill.model.media.video import Video, decode_video

__all__ = ["Receipt", "prepare_frames", "prepare_picture", "prepare_video"]


def prepare_picture(
    source: Source | Picture, rules: ImageRules, limits: MediaLimits
) -> tuple[VisualInput, Receipt]:
    """Returns the patches and the receipt of one picture: a file, or a decoded picture.

    Raises as `read_image` or `picture_pixels`, and PromptError context_too_long.
    """
    if isinstance(source, (bytes, bytearray, memoryview, Path, MediaFile)):
        media_file = MediaFile.of(source)
        with out_of_memory_as_media_error("picture"):
            image = read_image(media_file, limits, rules.do_convert_rgb)
            return _picture(image, media_file.sha256(), rules, limits)
    image = picture_pixels(source, limits.max_image_pixels, rules.do_convert_rgb)
    digest = hashlib.sha256(image.pixels.contiguous().numpy().data)
    return _picture(image, digest.hexdigest(), rules, limits)


def _picture(
    image: DecodedImage, sha256: str, rules: ImageRules, limits: MediaLimits
) -> tuple[VisualInput, Receipt]:
    source = image.size
    try:
        size = rules.size_of(*source)
    except ValueError as error:
        raise MediaError("decode_unsupported", str(error)) from error
    tokens = rules.tokens_of(size)
    if limits.max_visual_tokens is not None and tokens > limits.max_visual_tokens:
        raise PromptError(
            "context_too_long",
            f"the picture of {size[1]} x {size[0]} pixels is {tokens} visual tokens; the model "
            f"takes {limits.max_visual_tokens}: lower max_pixels",
        )
    pixels = resize(image.pixels, *size, rules.resample)
    patches = patchify_image(pixels, rules.patch_size, rules.merge_size)
    visual = VisualInput("image", patches, rules.grid_of(size), rules.merge_size)
    limit = rules.resize_limit(source, size)
    receipt = Receipt(
        kind="image",
        sha256=sha256,
        height=size[0],
        width=size[1],
        frame_times_s=(),
        frame_indices=(),
        visual_tokens=visual.tokens,
        source_height=source[0],
        source_width=source[1],
        notes=image.notes + limit[1:] if limit else image.notes,
        bound_by=limit[:1] if limit else (),
        seen_sha256=None,
    )
    return visual, receipt


def prepare_video(
    source: Source,
    rules: VideoRules,
    pixels: ImageRules,
    limits: MediaLimits,
    start_s: float | None = None,
    end_s: float | None = None,
    probe_cache: ProbeCache | None = None,
) -> tuple[VisualInput, Receipt]:
    """Returns the patches and the receipt of one video file, or of a window of it.

    The arguments and the errors are those of `decode_video`.
    """
    media_file, probe_cache = MediaFile.of(source), probe_cache or ProbeCache()
    with out_of_memory_as_media_error("video"):
        video = decode_video(media_file, rules, pixels, limits, start_s, end_s, probe_cache)
        return _video(video, probe_cache.sha256(media_file), pixels)


def prepare_frames(
    frames: Frames, fps: float | None, rules: VideoRules, pixels: ImageRules, limits: MediaLimits
) -> tuple[VisualInput, Receipt]:
    """Returns the patches and the receipt of a video whose frames are decoded already.

    frames: a list of pictures as `picture_pixels` takes them, an array [T, H, W, C] or a tensor
        [T, C, H, W]; all of one size.
    fps: frames per second of `frames`. None: unknown; the frames are then sampled by
        rules.num_frames only, and without it all are used.
    Raises MediaError, PromptError context_too_long, and ValueError for an fps out of range.
    """
    if fps is not None and not 0 < fps < float("inf"):
        raise ValueError(f"fps is {fps}, expected a number above 0")
    total, group = frame_count(frames), pixels.temporal_patch_size
    pixels = pixels.with_limits(rules.min_pixels, rules.max_pixels)
    if fps is None and rules.num_frames is None:
        rules = VideoRules(do_sample_frames=False).with_defaults(rules)
    budget = PixelBudget(rules, pixels, limits)
    fit = None
    if budget.adapts:
        first = picture_pixels(frames[0], limits.max_video_pixels, pixels.do_convert_rgb)
        fit = partial(budget.fit_frames, first.size)
    indices, limit_names, notes = sample_within_budget(total, fps or 1.0, rules, group, fit)
    resized: list[torch.Tensor] = []
    digest, source, frame_size = hashlib.sha256(), (0, 0), None
    for index in indices:
        frame = picture_pixels(frames[index], limits.max_video_pixels, pixels.do_convert_rgb)
        if frame_size is None:
            source, frame_size = frame.size, budget.frame_size(frame.size, len(indices))
            notes.extend(frame.notes)
        elif frame.size != source:
            raise MediaError(
                "decode_unsupported",
                f"frame {index} is {frame.size[1]} x {frame.size[0]} pixels, expected "
                f"{source[1]} x {source[0]} as the first one",
            )
        digest.update(frame.pixels.contiguous().numpy().data)
        resized.append(resize(frame.pixels, *frame_size.size, pixels.resample))
    assert frame_size is not None
    if frame_size.note:
        notes.append(frame_size.note)
    video = Video(
        frames=torch.stack(resized),
        times_s=() if fps is None else tuple(index / fps for index in indices),
        indices=tuple(indices),
        fps=fps or 0.0,
        total_frames=total,
        source_height=source[0],
        source_width=source[1],
        notes=tuple(notes),
        bound_by=ordered(*limit_names, *frame_size.bound_by),
    )
    return _video(video, digest.hexdigest(), pixels)


def _video(video: Video, sha256: str, pixels: ImageRules) -> tuple[VisualInput, Receipt]:
    count, _, height, width = video.frames.shape
    group = pixels.temporal_patch_size
    patches = patchify_video(video.frames, pixels.patch_size, pixels.merge_size, group)
    grid = pixels.grid_of((height, width), count)
    visual = VisualInput("video", patches, grid, pixels.merge_size)
    group_name = "a pair" if group == 2 else f"a group of {group}"
    note = (f"last frame repeated to make {group_name}",) if count % group else ()
    receipt = Receipt(
        kind="video",
        sha256=sha256,
        height=height,
        width=width,
        frame_times_s=video.times_s,
        frame_indices=video.indices,
        visual_tokens=visual.tokens,
        source_height=video.source_height,
        source_width=video.source_width,
        notes=video.notes + note,
        bound_by=video.bound_by,
        seen_sha256=hashlib.sha256(patches.contiguous().numpy().data).hexdigest(),
    )
    return visual, receipt

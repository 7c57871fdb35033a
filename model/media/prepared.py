"""Turns one picture or video, as a file's bytes or decoded already, into patches and a receipt of
what they show.

Knows pixels, frames and ceilings; prompts and token ids are none of its business.
"""

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import torch

from mediamill.model.errors import MediaError, PromptError
from mediamill.model.inputs import VisualInput
from mediamill.model.media.budgets import Budget, Size
from mediamill.model.media.content import MediaFile, Source
from mediamill.model.media.frame_sampling import VideoRules
from mediamill.model.media.image_rules import ImageRules
from mediamill.model.media.images import DecodedImage, read_image
from mediamill.model.media.limit_names import in_order
from mediamill.model.media.limits import MediaLimits
from mediamill.model.media.patches import patchify_image, patchify_video, resize
from mediamill.model.media.pixels import Frames, Picture, frame_count, picture_pixels
from mediamill.model.media.probe_cache import ProbeCache
from mediamill.model.media.receipt import Receipt
from mediamill.model.media.timeline import sampled
from mediamill.model.media.video import Video, decode_video

__all__ = ["Receipt", "prepare_frames", "prepare_picture", "prepare_video"]

_TORCH_HAS_NO_MEMORY = "DefaultCPUAllocator"  # in its sentence: torch has no error for it


def prepare_picture(
    source: Source | Picture, rules: ImageRules, limits: MediaLimits
) -> tuple[VisualInput, Receipt]:
    """The patches of one picture, of a file or decoded.

    Raises as `read_image` or `picture_pixels`, and PromptError context_too_long.
    """
    if isinstance(source, (bytes, bytearray, memoryview, Path, MediaFile)):
        content = MediaFile.of(source)
        with _memory_may_end("picture"):
            image = read_image(content, limits, rules.do_convert_rgb)
            return _picture(image, content.sha256(), rules, limits)
    image = picture_pixels(source, limits.max_image_pixels, rules.do_convert_rgb)
    digest = hashlib.sha256(image.pixels.contiguous().numpy().data)
    return _picture(image, digest.hexdigest(), rules, limits)


@contextmanager
def _memory_may_end(label: str) -> Iterator[None]:
    """Where a process is given little memory, its end is what is wrong with the medium."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if not isinstance(error, MemoryError) and _TORCH_HAS_NO_MEMORY not in str(error):
            raise
        raise MediaError("decode_too_large", f"no memory to decode the {label}") from error


def _picture(
    image: DecodedImage, sha256: str, rules: ImageRules, limits: MediaLimits
) -> tuple[VisualInput, Receipt]:
    source = (image.pixels.shape[1], image.pixels.shape[2])
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
    note, bound = rules.resize_note(source, size), rules.bound_of(source)
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
        notes=image.notes + ((note,) if note else ()),
        bound_by=(bound,) if bound else (),
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
    known: ProbeCache | None = None,
) -> tuple[VisualInput, Receipt]:
    """The patches of one video file, or of a window of it. known: of files, from window to window.

    Raises as `decode_video`.
    """
    content, known = MediaFile.of(source), known or ProbeCache()
    with _memory_may_end("video"):
        video = decode_video(content, rules, pixels, limits, start_s, end_s, known)
        return _video(video, known.sha256(content), pixels)


def prepare_frames(
    frames: Frames,
    fps: float | None,
    rules: VideoRules,
    pixels: ImageRules,
    limits: MediaLimits,
) -> tuple[VisualInput, Receipt]:
    """The patches of a video whose frames are decoded already.

    frames: a list of pictures as `picture_pixels` takes them, an array [T, H, W, C] or a tensor
        [T, C, H, W]; all of one size.
    fps: of these frames. None: not known; then they are sampled only by rules.num_frames, and all
        are looked at without it. Raises MediaError, PromptError context_too_long, and ValueError
        for an fps that is no rate.
    """
    if fps is not None and not 0 < fps < float("inf"):
        raise ValueError(f"fps is {fps}, expected a number above 0")
    total, group = frame_count(frames), pixels.temporal_patch_size
    pixels = pixels.with_limits(rules.min_pixels, rules.max_pixels)
    if fps is None and rules.num_frames is None:
        rules = VideoRules(do_sample_frames=False).over(rules)
    budget = Budget(rules, pixels, limits)
    fit = partial(budget.frames, _size_of_first(frames, pixels, limits)) if budget.lowers else None
    indices, bounds, notes = sampled(total, fps or 1.0, rules, group, fit)
    taken: list[torch.Tensor] = []
    digest, source, sized = hashlib.sha256(), (0, 0), None
    for index in indices:
        frame = picture_pixels(frames[index], limits.max_video_pixels, pixels.do_convert_rgb)
        found = (frame.pixels.shape[1], frame.pixels.shape[2])
        if sized is None:
            source, sized = found, budget.sized(found, len(indices))
            notes.extend(frame.notes)
        elif found != source:
            raise MediaError(
                "decode_unsupported",
                f"frame {index} is {found[1]} x {found[0]} pixels, expected {source[1]} x "
                f"{source[0]} as the first one",
            )
        digest.update(frame.pixels.contiguous().numpy().data)
        taken.append(resize(frame.pixels, *sized.size, pixels.resample))
    assert sized is not None
    if sized.note:
        notes.append(sized.note)
    video = Video(
        frames=torch.stack(taken),
        times_s=() if fps is None else tuple(index / fps for index in indices),
        indices=tuple(indices),
        fps=fps or 0.0,
        total_frames=total,
        source_height=source[0],
        source_width=source[1],
        notes=tuple(notes),
        bound_by=in_order(*bounds, *sized.bound_by),
    )
    return _video(video, digest.hexdigest(), pixels)


def _size_of_first(frames: Frames, pixels: ImageRules, limits: MediaLimits) -> Size:
    first = picture_pixels(frames[0], limits.max_video_pixels, pixels.do_convert_rgb)
    return first.pixels.shape[1], first.pixels.shape[2]


def _video(video: Video, sha256: str, pixels: ImageRules) -> tuple[VisualInput, Receipt]:
    count, _, height, width = video.frames.shape
    group = pixels.temporal_patch_size
    patches = patchify_video(video.frames, pixels.patch_size, pixels.merge_size, group)
    grid = pixels.grid_of((height, width), count)
    visual = VisualInput("video", patches, grid, pixels.merge_size)
    whole = "a pair" if group == 2 else f"a group of {group}"
    repeated = (f"last frame repeated to make {whole}",) if count % group else ()
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
        notes=video.notes + repeated,
        bound_by=video.bound_by,
        seen_sha256=hashlib.sha256(patches.contiguous().numpy().data).hexdigest(),
    )
    return visual, receipt

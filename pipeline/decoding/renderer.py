"""Shows media as the model saw them: what decode workers run in place of a processor.

A file is decoded and resized by the same rules as in the job, to the size and at the frames that
the receipt names; the hashes say whether it is the same.
"""

import hashlib
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from mediamill.model.inputs import VisualInput, VisualKind
from mediamill.model.media.image_rules import ImageRules
from mediamill.model.media.images import read_image
from mediamill.model.media.limits import MediaLimits
from mediamill.model.media.media_file import MediaFile
from mediamill.model.media.patches import patchify_video
from mediamill.model.media.receipt import Receipt
from mediamill.model.media.resize import resize
from mediamill.model.media.video import decode_frames
from mediamill.pipeline.decoding.decode_request import RenderRequest
from mediamill.pipeline.decoding.decode_worker import decode_in_one_thread

_GROUP, _MERGE = 2, 2  # frames of a patch, and patches of a token in each direction: all families
_PIXELS = ImageRules(1, 2**62, patch_size=1, temporal_patch_size=1, merge_size=1)


def load_renderer(limits: Mapping[str, Any]) -> "Renderer":
    """The factory for a DecoderPool. limits: arguments of MediaLimits."""
    decode_in_one_thread()
    return Renderer(MediaLimits(**limits))


@dataclass(frozen=True)
class Renderer:
    """In place of a Processor in the decode workers: a patch is a pixel of a small picture.

    rules: those of a Processor, for patches of 1 x 1 pixels.
    """

    limits: MediaLimits
    rules: Mapping[VisualKind, ImageRules] = field(
        default_factory=lambda: {"image": _PIXELS, "video": _PIXELS}
    )

    def render(
        self, data: bytes | Path, kind: VisualKind | None, request: RenderRequest
    ) -> tuple[VisualInput, Receipt]:
        """Returns the pixels as patches [frames * H * W, 3], and a receipt of them.

        The receipt's sha256 and seen_sha256 are computed as in a job, its frames are those shown.
        Raises MediaError.
        """
        file, size = MediaFile.of(data), (request.height, request.width)
        notes: tuple[str, ...]
        indices: tuple[int, ...]
        times: tuple[float, ...]
        seen_sha256 = None
        if kind == "video":
            video = decode_frames(file, request.frame_indices, size, self.limits)
            seen_sha256 = _patches_sha256(video.frames, request)
            chosen = _spread(len(video.indices), request.max_frames)
            frames = video.frames[chosen]
            indices, times = (
                tuple(video.indices[number] for number in chosen),
                tuple(video.times_s[number] for number in chosen) if video.times_s else (),
            )
            source, notes = (video.source_height, video.source_width), video.notes
        else:
            image = read_image(file, self.limits)
            frames = resize(image.pixels, *size)[None]
            indices, times, source, notes = (), (), image.size, image.notes
        frames = _fit(frames, request.max_height, request.max_width)
        count, _, height, width = frames.shape
        patches = frames.permute(0, 2, 3, 1).reshape(-1, 3)
        receipt = Receipt(
            kind="video" if kind == "video" else "image",
            sha256=file.sha256(),
            height=height,
            width=width,
            frame_times_s=times,
            frame_indices=indices,
            visual_tokens=count * height * width,
            source_height=source[0],
            source_width=source[1],
            notes=notes,
            bound_by=(),
            seen_sha256=seen_sha256,
        )
        return VisualInput(receipt.kind, patches, (count, height, width), 1), receipt


def _patches_sha256(frames: torch.Tensor, request: RenderRequest) -> str | None:
    """The hash of the patches as a job computes it; None where their size is unknown."""
    groups = -(-len(frames) // _GROUP)
    factor = math.isqrt(groups * request.height * request.width // max(request.visual_tokens, 1))
    if factor % _MERGE or not factor or request.height % factor or request.width % factor:
        return None
    patches = patchify_video(frames, factor // _MERGE, _MERGE, _GROUP)
    return hashlib.sha256(patches.contiguous().numpy().data).hexdigest()


def _spread(total: int, limit: int) -> list[int]:
    """At most `limit` of `total` numbers, evenly spread, the first and the last among them."""
    if total <= limit:
        return list(range(total))
    if limit == 1:
        return [total // 2]
    return sorted({round(number * (total - 1) / (limit - 1)) for number in range(limit)})


def _fit(frames: torch.Tensor, max_height: int, max_width: int) -> torch.Tensor:
    """Shrinks frames (uint8 [n, 3, H, W]) to fit."""
    height, width = frames.shape[2:]
    scale = min(1.0, max_height / height, max_width / width)
    if scale == 1.0:
        return frames
    return resize(frames, max(1, round(height * scale)), max(1, round(width * scale)))

"""Checks that a request can be answered, and computes the positions of its tokens."""

from collections.abc import Mapping, Sequence
from typing import get_args

import torch

from mediamill.model.families.qwen2_vl.config import Qwen2VLConfig
from mediamill.model.families.qwen2_vl.positions import mrope_positions
from mediamill.model.inputs import VisualInput, VisualKind
from mediamill.model.media.image_rules import ImageRules
from mediamill.model.requests import Pooling, Request


def request_problem(
    request: Request, config: Qwen2VLConfig, rules: Mapping[VisualKind, ImageRules]
) -> str | None:
    """Returns why the request can never be answered, judged by its own content, or None."""
    if not request.input_ids:
        return "the prompt is empty"
    # The vision tower has no context length.
    if not request.skips_language and (
        problem := _length_problem(request, config.text.context_length)
    ):
        return problem
    vocabulary = config.text.vocab_size
    if min(request.input_ids) < 0 or max(request.input_ids) >= vocabulary:
        return f"the prompt holds a token id outside 0..{vocabulary - 1}"
    if any(not 0 <= token < vocabulary for ids in request.continuations for token in ids):
        return f"a continuation holds a token id outside 0..{vocabulary - 1}"
    return _mode_problem(request) or _media_problem(request, config, rules)


def _length_problem(request: Request, limit: int) -> str | None:
    tokens = len(request.input_ids)
    # To generate, there must be space for one more token.
    if tokens > limit or (tokens == limit and request.mode == "generate"):
        return f"the prompt has {tokens} tokens, and the model's context is {limit}"
    longest = max((len(ids) for ids in request.continuations), default=0)
    # The last token of a continuation is only scored; it is no input of the model.
    if tokens + longest - 1 > limit:
        return (
            f"the prompt has {tokens} tokens and a continuation {longest}, and the model's context "
            f"is {limit}"
        )
    return None


def _mode_problem(request: Request) -> str | None:
    if request.mode not in ("generate", "score", "embed"):
        return f"mode is {request.mode!r}, expected generate, score or embed"
    if request.mode == "score" and not request.continuations:
        return "mode is score, and there are no continuations"
    if request.mode != "score" and request.continuations:
        return f"mode is {request.mode}, and there are continuations"
    if request.pool not in get_args(Pooling):
        return f"pool is {request.pool!r}, expected last, mean, visual_tokens or vision_tower"
    visual = request.pool in ("visual_tokens", "vision_tower")
    if request.mode == "embed" and visual and not request.visuals:
        return f"pool is {request.pool}, and there are no media"
    return None


def _media_problem(
    request: Request, config: Qwen2VLConfig, rules: Mapping[VisualKind, ImageRules]
) -> str | None:
    names = request.media_names
    if names is not None and len(names) != len(request.visuals):
        return f"there are {len(names)} media names, and {len(request.visuals)} media"
    pad_ids = {"image": config.image_token_id, "video": config.video_token_id}
    for kind, token in pad_ids.items():
        pads = sum(i == token for i in request.input_ids)
        tokens = sum(v.tokens for v in request.visuals if v.kind == kind)
        if pads != tokens:
            return f"the prompt has {pads} {kind} tokens, and its {kind}s have {tokens}"
    for visual in request.visuals:
        t, h, w = visual.grid_thw
        shape = (t * h * w, rules[visual.kind].patch_values(visual.kind))
        if (
            visual.patches.dtype != torch.uint8
            or visual.patches.shape != shape
            or not visual.tokens
        ):
            return (
                f"the {visual.kind}'s patches {list(visual.patches.shape)} do not fit its "
                f"grid {visual.grid_thw}"
            )
    return None


def place_media(
    input_ids: Sequence[int], visuals: Sequence[VisualInput], config: Qwen2VLConfig
) -> tuple[torch.Tensor, int, list[int]]:
    """Returns the positions of a prompt's tokens, int64 [3, tokens], the position after the prompt,
    and the index of the first pad token of each medium.

    Raises ValueError if the media are not in the order of their pad tokens.
    """
    pad_ids = (config.image_token_id, config.video_token_id)
    grids = [visual.grid_thw for visual in visuals]
    merge = config.vision.spatial_merge_size
    positions, next_position = mrope_positions(input_ids, grids, pad_ids, config.mrope, merge)
    if not visuals:
        return positions, next_position, []
    pads = [i for i, token in enumerate(input_ids) if token in pad_ids]
    starts, seen = [], 0
    for number, visual in enumerate(visuals):
        pad_id = pad_ids[visual.kind == "video"]
        media_pads = pads[seen : seen + visual.tokens]
        seen += visual.tokens
        if any(input_ids[i] != pad_id for i in media_pads):
            raise ValueError(f"medium {number} is of another kind than its pad tokens")
        starts.append(media_pads[0])
    return positions, next_position, starts

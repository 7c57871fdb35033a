"""Describes a checkpoint folder in a page of text, without reading its weights."""

from dataclasses import asdict
from pathlib import Path

import torch

from mediamill.model.checkpoint.folder import Folder
from mediamill.model.checkpoint.generation_defaults import GenerationDefaults
from mediamill.model.families.qwen2_vl.config import MRopeRule, load_config
from mediamill.model.families.qwen2_vl.model import Qwen2VL
from mediamill.model.media.frame_sampling import DEFAULT_FPS, DEFAULT_MAX_FRAMES, DEFAULT_MIN_FRAMES
from mediamill.model.processor import Processor


def describe(folder: str | Path | Folder, mrope: MRopeRule = "original") -> str:
    """Returns lines "name: value": shapes, parameters, positions, limits, generation defaults and
    the unknown keys of config.json. Raises ModelError if the folder cannot be used.
    """
    folder = Folder.of(folder)
    config = load_config(folder, mrope)
    processor = Processor.load(folder)
    defaults = GenerationDefaults.load(folder)
    with torch.device("meta"):
        model = Qwen2VL(config)
    text, vision, rules = config.text, config.vision, processor.image_rules
    total = sum(parameter.numel() for parameter in model.parameters())
    vision_total = sum(parameter.numel() for parameter in model.visual.parameters())
    frames = processor.video_rules
    min_frames = frames.min_frames or DEFAULT_MIN_FRAMES
    max_frames = frames.max_frames or DEFAULT_MAX_FRAMES
    sampled = f"{frames.fps or DEFAULT_FPS:g} frames a second, {min_frames} to {max_frames} of them"
    if frames.num_frames:
        sampled = f"{frames.num_frames} frames"
    if frames.do_sample_frames is False:
        sampled = "all frames"
    generation = {name: value for name, value in asdict(defaults).items() if value is not None}
    rope = {name: value for name, value in asdict(text.rope).items() if name != "kind" and value}
    scaling = f" {_listed(rope)}" if text.rope.kind != "default" else ""
    lines = {
        "folder": str(folder),
        "parameters": f"{total:,}, of them {vision_total:,} in the vision tower",
        "dtype": config.dtype or "not said",
        "decoder": f"{text.num_hidden_layers} layers of width {text.hidden_size}, "
        f"{text.num_attention_heads} heads ({text.num_key_value_heads} key-value) of "
        f"{text.head_dim}, MLP {text.intermediate_size}, vocabulary {text.vocab_size}"
        + (", head tied to the embedding" if text.tie_word_embeddings else ""),
        "vision tower": f"{vision.depth} layers of width {vision.embed_dim}, {vision.num_heads} "
        f"heads of {vision.head_dim}, patches of {vision.patch_size} x {vision.patch_size} x "
        f"{vision.temporal_patch_size}, merged {vision.spatial_merge_size} x "
        f"{vision.spatial_merge_size}",
        "positions": f"rope {text.rope.kind}{scaling}, theta {text.rope_theta:g}, sections "
        f"{list(text.mrope_section)}, {config.mrope} rule for videos",
        "context": f"{text.max_position_embeddings} tokens",
        "pictures": f"{rules.min_pixels} to {rules.max_pixels} pixels, in steps of {rules.factor}",
        "videos": f"{sampled}, of "
        f"{processor.frame_rules.min_pixels} to {processor.frame_rules.max_pixels} pixels",
        "generation": _listed(generation),
        "unknown keys": ", ".join(config.unknown_keys) or "none",
    }
    return "\n".join(f"{name}: {value}" for name, value in lines.items())


def _listed(values: dict[str, object]) -> str:
    return ", ".join(f"{name} {value}" for name, value in values.items())

"""Reads the network's dimensions from a checkpoint's config.json.

Supports the flat layout of the 2024 hub files, the nested `text_config` of transformers 4.5x, and
`rope_parameters` of 5.x. Settings that the network does not implement raise a ModelError.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from mediamill.model.checkpoint.folder import Folder, parse_json
from mediamill.model.checkpoint.ignored_keys import IGNORED_KEYS
from mediamill.model.checkpoint.json_reader import JsonReader, is_whole
from mediamill.model.checkpoint.layer_windows import layer_windows
from mediamill.model.checkpoint.rope_settings import rope_scaling
from mediamill.model.errors import ModelError
from mediamill.model.layers.shapes import TextConfig, VisionConfig

MRopeRule = Literal["original", "hf5"]
ACTIVATIONS = ("silu", "gelu", "gelu_pytorch_tanh", "quick_gelu", "relu")
DTYPES = ("float32", "bfloat16", "float16", "float64", "auto")


@dataclass(frozen=True)
class Qwen2VLConfig:
    """A whole model: decoder, vision tower, and the ids of the tokens that stand for media.

    mrope: how the positions of videos are counted.
    unknown_keys: keys of config.json (`text_config.x`, `vision_config.x` for nested ones) that are
        neither read nor known to be irrelevant.
    """

    text: TextConfig
    vision: VisionConfig
    image_token_id: int = 151655
    video_token_id: int = 151656
    vision_start_token_id: int = 151652
    vision_end_token_id: int = 151653
    dtype: str | None = None
    mrope: MRopeRule = "original"
    unknown_keys: tuple[str, ...] = ()

    @property
    def pad_token_ids(self) -> tuple[int, int]:
        """The ids of the image and of the video pad token."""
        return self.image_token_id, self.video_token_id


def load_config(folder: str | Path | Folder, mrope: MRopeRule = "original") -> Qwen2VLConfig:
    """Reads config.json of `folder`.

    Raises ModelError, naming the file and key, for a missing or malformed file and for settings
    that this network does not implement.
    """
    folder = Folder.of(folder)
    content = folder.read("config.json")
    if content is None:
        raise ModelError(f"{folder} is not a model folder: it has no config.json")
    return parse_config(content, folder.path("config.json"), mrope)


def parse_config(content: bytes, where: str, mrope: MRopeRule = "original") -> Qwen2VLConfig:
    """Parses the `content` of a config.json; `where` names it in errors."""
    return config_from_dict(parse_json(content, where), where, mrope)


def config_from_dict(
    raw: Mapping[str, Any], where: str, mrope: MRopeRule = "original"
) -> Qwen2VLConfig:
    """Builds a config from the parsed JSON `raw`; `where` names its source in errors."""
    if mrope not in ("original", "hf5"):
        raise ValueError(f"mrope is {mrope!r}, expected 'original' or 'hf5'")
    top = JsonReader(raw, where)
    if top.get("model_type") != "qwen2_vl":
        top.refuse("model_type", "'qwen2_vl'")
    nested = JsonReader(top.part("text_config"), where, "text_config.")
    tower = JsonReader(top.part("vision_config"), where, "vision_config.")
    for part in (top, nested):
        _refuse_quantized(part)
    # Writers before 5.x put this flag into text_config; the reference accepts both places.
    tied = [part.flag("tie_word_embeddings", False) for part in (top, nested)]
    # Nested keys win: files of 4.5x have both, and the flat copy may be stale.
    text = JsonReader({**raw, **nested.raw}, where)
    config = Qwen2VLConfig(
        text=_text(text, nested, any(tied)),
        vision=_vision(tower, text),
        image_token_id=top.whole("image_token_id", 151655, 0),
        video_token_id=top.whole("video_token_id", 151656, 0),
        vision_start_token_id=text.whole("vision_start_token_id", 151652, 0),
        vision_end_token_id=text.whole("vision_end_token_id", 151653, 0),
        dtype=_dtype(top) or _dtype(nested),
        mrope=mrope,
        unknown_keys=(*_unknown(top, text), *_unknown(nested, text), *_unknown(tower, tower)),
    )
    _check(config, where)
    return config


def _refuse_quantized(part: JsonReader) -> None:
    config = part.get("quantization_config")
    if config:
        method = config.get("quant_method", "unknown") if isinstance(config, dict) else config
        raise ModelError(
            f"{part.where}: the weights are quantised ({method}), which is not supported: use the "
            "unquantised checkpoint"
        )


def _unknown(part: JsonReader, other: JsonReader) -> list[str]:
    known = part.read | other.read | IGNORED_KEYS
    return [part.prefix + key for key in part.raw if key not in known]


def _dtype(part: JsonReader) -> str | None:
    for key in ("dtype", "torch_dtype"):
        if part.get(key) is not None:
            return part.name(key, "", DTYPES)
    return None


def _text(raw: JsonReader, nested: JsonReader, tied: bool) -> TextConfig:
    default = TextConfig()
    hidden, heads = raw.whole("hidden_size", None), raw.whole("num_attention_heads", None)
    head_dim, layers = hidden // heads, raw.whole("num_hidden_layers", None)
    context = raw.whole("max_position_embeddings", default.max_position_embeddings)
    if hidden % heads:
        raise ModelError(
            f"{raw.where}: hidden_size {hidden} is not divisible by num_attention_heads {heads}"
        )
    if raw.number("partial_rotary_factor", 1.0) != 1.0:
        raw.refuse("partial_rotary_factor", "1: the whole head is rotated")
    if raw.whole("head_dim", head_dim) != head_dim:
        raw.refuse("head_dim", f"hidden_size / num_attention_heads, {head_dim}")
    # A nested rope object replaces a flat one, which may be stale. If one object has both keys, the
    # reference reads rope_scaling.
    has_rope = nested.raw.get("rope_scaling") or nested.raw.get("rope_parameters")
    holder = nested if has_rope else raw
    raw.read |= {"rope_scaling", "rope_parameters"}
    rope_raw = holder.part("rope_scaling") or holder.part("rope_parameters")
    original = nested.whole_or_none("original_max_position_embeddings", 1)
    scaling, rope = rope_scaling(rope_raw, raw.where, context, head_dim, original)
    flat = raw.whole_or_none("original_max_position_embeddings", 1)
    if scaling.original is not None and flat not in (None, scaling.original):
        # The reference ignores the key here, but reads it in a text_config.
        raw.refuse("original_max_position_embeddings", f"{scaling.original}, as in the rope object")
    return TextConfig(
        vocab_size=raw.whole("vocab_size", None),
        hidden_size=hidden,
        intermediate_size=raw.whole("intermediate_size", None),
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=_key_value_heads(raw, heads),
        max_position_embeddings=context,
        rms_norm_eps=raw.number("rms_norm_eps", default.rms_norm_eps),
        rope_theta=rope.number("rope_theta", raw.number("rope_theta", default.rope_theta)),
        mrope_section=_section(rope),
        tie_word_embeddings=tied,
        rope=scaling,
        windows=layer_windows(raw, layers),
        hidden_act=raw.name("hidden_act", "silu", ACTIVATIONS),
        attention_dropout=raw.fraction("attention_dropout"),
        initializer_range=raw.number("initializer_range", default.initializer_range),
        pad_token_id=raw.whole_or_none("pad_token_id"),
    )


def _key_value_heads(raw: JsonReader, heads: int) -> int:
    # As in the reference, null means as many as query heads; an absent key means the default.
    if raw.get("num_key_value_heads") is None and "num_key_value_heads" in raw.raw:
        return heads
    return raw.whole("num_key_value_heads", TextConfig().num_key_value_heads)


def _section(rope: JsonReader) -> tuple[int, int, int]:
    value = rope.get("mrope_section")
    if value is None:
        return TextConfig().mrope_section
    sizes = value if isinstance(value, list) else []
    if len(sizes) != 3 or not all(is_whole(n) and n >= 0 for n in sizes):
        rope.refuse("mrope_section", "three sizes")
    return (sizes[0], sizes[1], sizes[2])


def _vision(raw: JsonReader, text: JsonReader) -> VisionConfig:
    default = VisionConfig()
    rope = JsonReader(raw.part("rope_parameters"), raw.where, "vision_config.rope_parameters.")
    for key in ("rope_type", "type"):
        rope.name(key, "axial", ("axial", "default"))
    for key, value in rope.raw.items():
        if key not in ("rope_type", "type", "rope_theta") and value is not None:
            rope.refuse(key, "no such key")
    # Hub files say in_chans, the 5.x writer in_channels.
    channels = raw.whole("in_channels", raw.whole("in_chans", default.in_channels))
    if channels != 3:
        raise ModelError(
            f"{raw.where}: vision_config.in_channels is {channels}, expected 3: pictures are RGB"
        )
    return VisionConfig(
        depth=raw.whole("depth", default.depth),
        embed_dim=raw.whole("embed_dim", default.embed_dim),
        num_heads=raw.whole("num_heads", default.num_heads),
        mlp_ratio=raw.number("mlp_ratio", default.mlp_ratio),
        in_channels=channels,
        hidden_size=raw.whole("hidden_size", text.whole("hidden_size", None)),
        patch_size=_size(raw, "patch_size", default.patch_size),
        temporal_patch_size=_size(raw, "temporal_patch_size", default.temporal_patch_size),
        spatial_merge_size=raw.whole("spatial_merge_size", default.spatial_merge_size),
        hidden_act=raw.name("hidden_act", default.hidden_act, ACTIVATIONS),
        rope_theta=rope.number("rope_theta", raw.number("rope_theta", default.rope_theta)),
        initializer_range=raw.number("initializer_range", default.initializer_range),
    )


def _size(raw: JsonReader, key: str, default: int) -> int:
    """An integer, or a list of two equal ones."""
    value = raw.get(key)
    if isinstance(value, list):
        if len(value) != 2 or value[0] != value[1]:
            raw.refuse(key, "a positive integer or two equal ones")
        return JsonReader({key: value[0]}, raw.where, raw.prefix).whole(key, None)
    return raw.whole(key, default)


def _check(config: Qwen2VLConfig, where: str) -> None:
    text, vision = config.text, config.vision
    if text.num_attention_heads % text.num_key_value_heads:
        raise ModelError(
            f"{where}: num_attention_heads {text.num_attention_heads} is not divisible by "
            f"num_key_value_heads {text.num_key_value_heads}"
        )
    if sum(text.mrope_section) != text.head_dim // 2 or text.head_dim % 2:
        raise ModelError(
            f"{where}: mrope_section {list(text.mrope_section)} sums to "
            f"{sum(text.mrope_section)}, expected half the head size, {text.head_dim / 2:g}"
        )
    if text.rope.kind == "yarn" and text.rope_theta <= 1:
        raise ModelError(f"{where}: rope_theta is {text.rope_theta}, expected more than 1")
    if text.pad_token_id is not None and text.pad_token_id >= text.vocab_size:
        raise ModelError(
            f"{where}: pad_token_id is {text.pad_token_id}, expected less than vocab_size, "
            f"{text.vocab_size}"
        )
    if vision.embed_dim % vision.num_heads or vision.head_dim % 4:
        raise ModelError(
            f"{where}: vision embed_dim {vision.embed_dim} and num_heads {vision.num_heads} "
            "do not give a head size divisible by 4"
        )
    if vision.hidden_size != text.hidden_size:
        raise ModelError(
            f"{where}: vision_config.hidden_size {vision.hidden_size} differs from the "
            f"decoder's hidden_size {text.hidden_size}"
        )

"""Reads the rope object of a config.json (`rope_parameters`, `rope_scaling`).

Settings that the network does not support are refused: unknown types, unknown keys and partial
rotation.
"""

from collections.abc import Mapping
from typing import Any, get_args

from mediamill.model.checkpoint.json_reader import JsonReader
from mediamill.model.checkpoint.rope_scaling import RopeScaling, RopeType
from mediamill.model.errors import ModelError

_COMMON = {"type", "rope_type", "rope_theta", "mrope_section", "partial_rotary_factor"}
_EXTENDED = {"factor", "original_max_position_embeddings", "attention_factor"}
_KEYS: dict[RopeType, set[str]] = {
    "default": set(),
    "linear": {"factor"},
    "dynamic": {"factor"},
    "yarn": _EXTENDED | {"beta_fast", "beta_slow", "mscale", "mscale_all_dim", "truncate"},
    "llama3": _EXTENDED - {"attention_factor"} | {"low_freq_factor", "high_freq_factor"},
    "longrope": _EXTENDED | {"short_factor", "long_factor"},
}
_REQUIRED: dict[RopeType, tuple[str, ...]] = {
    "default": (),
    "linear": ("factor",),
    "dynamic": ("factor",),
    "yarn": ("factor",),
    "llama3": ("factor", "low_freq_factor", "high_freq_factor"),
    "longrope": ("short_factor", "long_factor"),
}


def rope_scaling(
    raw: Mapping[str, Any], where: str, context: int, head_dim: int, original: int | None = None
) -> tuple[RopeScaling, JsonReader]:
    """Returns the scaling of the rope object `raw`, and its reader for the caller's other keys.

    where: the name of its file in errors.
    context: max_position_embeddings, the default of original_max_position_embeddings.
    original: original_max_position_embeddings beside the rope object; overrides the one in it.
    Raises ModelError, naming the key.
    """
    rope = JsonReader(raw, where, "rope ")
    kind = _kind(rope)
    for key, value in raw.items():
        if key not in _COMMON | _KEYS[kind] and value is not None:
            raise ModelError(f"{where}: rope key {key!r} is not one of rope type {kind!r}")
    for key in _REQUIRED[kind]:
        if key not in raw:
            raise ModelError(f"{where}: rope type {kind!r} has no key {key!r}, which it needs")
    if rope.number("partial_rotary_factor", 1.0) != 1.0:
        rope.refuse("partial_rotary_factor", "1: the whole head is rotated")
    if kind == "default":
        return RopeScaling(), rope
    extended = kind in ("yarn", "llama3", "longrope")
    may_lack_factor = kind in ("yarn", "longrope")
    nested = rope.whole("original_max_position_embeddings", context) if extended else None
    scaling = RopeScaling(
        kind=kind,
        factor=rope.number_or_none("factor") if may_lack_factor else rope.number("factor", None),
        original=(original or nested) if extended else None,
        attention_factor=rope.number_or_none("attention_factor"),
        beta_fast=rope.number("beta_fast", 32.0),
        beta_slow=rope.number("beta_slow", 1.0),
        mscale=rope.number_or_none("mscale"),
        mscale_all_dim=rope.number_or_none("mscale_all_dim"),
        truncate=rope.flag("truncate", True),
        low_freq_factor=rope.number("low_freq_factor", 1.0 if kind != "llama3" else None),
        high_freq_factor=rope.number("high_freq_factor", 4.0 if kind != "llama3" else None),
        short_factor=rope.numbers("short_factor", head_dim // 2) if kind == "longrope" else (),
        long_factor=rope.numbers("long_factor", head_dim // 2) if kind == "longrope" else (),
    )
    if kind == "llama3" and scaling.high_freq_factor <= scaling.low_freq_factor:
        rope.refuse("high_freq_factor", f"more than low_freq_factor, {scaling.low_freq_factor}")
    if kind == "longrope" and scaling.original == 1:
        # The rule for attention_factor divides by the logarithm of `original`.
        raise ModelError(f"{where}: original_max_position_embeddings is 1, expected at least 2")
    if kind == "dynamic" and head_dim <= 2:
        raise ModelError(f"{where}: rope type 'dynamic' needs a head size above 2")
    return scaling, rope


def _kind(rope: JsonReader) -> RopeType:
    kind = rope.get("rope_type")
    kind = rope.get("type") if kind is None else kind
    if kind in (None, "mrope"):
        return "default"
    if kind in get_args(RopeType):
        return kind  # type: ignore[no-any-return]
    names = ", ".join(repr(name) for name in get_args(RopeType))
    raise ModelError(f"{rope.where}: rope type is {kind!r}, expected 'mrope', {names}")

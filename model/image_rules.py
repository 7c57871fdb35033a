"""Turns a checkpoint's preprocessor files into the rules for the pixels of pictures and of frames.

All published layouts are read: nested processor_config.json, video_preprocessor_config.json and
flat preprocessor_config.json, each with `size` or with `min_pixels`/`max_pixels`.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from model.errors import ModelError
from model.inputs import VisualKind

_CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
_CLIP_STD = (0.26862954, 0.26130258, 0.27577711)

# What the reference takes for a limit that the file does not name (areas in pixels).
_CLASS_LIMITS: dict[VisualKind, tuple[int, int]] = {
    "image": (56 * 56, 28 * 28 * 1280),
    "video": (128 * 28 * 28, 28 * 28 * 768),
}


@dataclass(frozen=True)
class ImageRules:
    """How one picture, or each frame of a video, becomes patches.

    min_pixels, max_pixels: limits of height * width after the resize.
    mean, std: of each colour, for values in 0..1.
    patch_size, merge_size: a patch is patch_size pixels wide; merge_size x merge_size patches make
        a token, so heights and widths are multiples of `factor`.
    temporal_patch_size: frames in one patch.
    """

    min_pixels: int = 56 * 56
    max_pixels: int = 28 * 28 * 16384
    mean: tuple[float, float, float] = _CLIP_MEAN
    std: tuple[float, float, float] = _CLIP_STD
    patch_size: int = 14
    temporal_patch_size: int = 2
    merge_size: int = 2

    def __post_init__(self) -> None:
        # A checkpoint's limits may cross (one left to its default): the reference then lets
        # max_pixels win, and so does smart_resize.
        if self.min_pixels <= 0 or self.max_pixels <= 0:
            raise ModelError(
                f"min_pixels is {self.min_pixels} and max_pixels is {self.max_pixels}; "
                "expected numbers above 0"
            )

    @property
    def factor(self) -> int:
        """Heights and widths after the resize are multiples of this, in pixels."""
        return self.patch_size * self.merge_size

    def with_limits(self, min_pixels: int | None, max_pixels: int | None) -> "ImageRules":
        """The same rules with other limits; None keeps one. ModelError if they cross."""
        if min_pixels is None and max_pixels is None:
            return self
        low = self.min_pixels if min_pixels is None else min_pixels
        high = self.max_pixels if max_pixels is None else max_pixels
        if low > high:
            raise ModelError(
                f"min_pixels is {low} and max_pixels is {high}, with the checkpoint's own for what "
                "is not set; expected min_pixels <= max_pixels"
            )
        return replace(self, min_pixels=low, max_pixels=high)

    @classmethod
    def from_checkpoint(cls, folder: str | Path, kind: VisualKind = "image") -> "ImageRules":
        """Reads the rules for pictures or for video frames.

        The first of these that exists decides: the part of processor_config.json, (videos only)
        video_preprocessor_config.json, preprocessor_config.json. A video without any of them gets
        the reference's class defaults.
        Raises ModelError if the files are missing, malformed or ask for what is not built here.
        """
        found = _find_config(Path(folder), kind)
        if found is None:
            if kind == "image":
                raise ModelError(
                    f"{folder}: found neither preprocessor_config.json nor processor_config.json "
                    "with an image_processor; expected one of them"
                )
            low, high = _CLASS_LIMITS[kind]
            return cls(min_pixels=low, max_pixels=high)
        where, config = found
        _refuse_other_recipes(where, config)
        low, high = _limits(where, config, kind)
        return cls(
            min_pixels=low,
            max_pixels=high,
            mean=_triple(where, config, "image_mean", _CLIP_MEAN),
            std=_triple(where, config, "image_std", _CLIP_STD),
            patch_size=_exactly(where, config, "patch_size", 14),
            temporal_patch_size=_exactly(where, config, "temporal_patch_size", 2),
            merge_size=_exactly(where, config, "merge_size", 2),
        )


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from a file of a checkpoint. ModelError if it is not one."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ModelError(f"{path}: cannot be read as JSON: {error}") from error
    if not isinstance(value, dict):
        raise ModelError(f"{path}: found a {type(value).__name__}, expected a JSON object")
    return value


def _find_config(folder: Path, kind: VisualKind) -> tuple[str, Mapping[str, Any]] | None:
    nested = folder / "processor_config.json"
    part = f"{kind}_processor"
    if nested.is_file():
        config = read_json(nested).get(part)
        if config is not None:
            if not isinstance(config, dict):
                raise ModelError(f"{nested}: {part} is not a JSON object")
            return f"{nested}, {part}", config
    names = ["preprocessor_config.json"]
    if kind == "video":
        names.insert(0, "video_preprocessor_config.json")
    for name in names:
        if (folder / name).is_file():
            return str(folder / name), read_json(folder / name)
    return None


def _limits(where: str, config: Mapping[str, Any], kind: VisualKind) -> tuple[int, int]:
    """(min, max) pixels; `min_pixels`/`max_pixels` beside `size` win, as in the reference."""
    low: object
    high: object
    low, high = _CLASS_LIMITS[kind]
    size = config.get("size")
    if size is not None:
        if not isinstance(size, dict):
            raise ModelError(f"{where}: size is {size!r}, expected an object of two pixel counts")
        low = size.get("shortest_edge", size.get("min_pixels"))
        high = size.get("longest_edge", size.get("max_pixels"))
    if config.get("min_pixels") is not None:
        low = config["min_pixels"]
    if config.get("max_pixels") is not None:
        high = config["max_pixels"]
    return _positive(where, "min_pixels", low), _positive(where, "max_pixels", high)


def _refuse_other_recipes(where: str, config: Mapping[str, Any]) -> None:
    """Resize and normalisation are fixed here; a checkpoint that wants others is refused."""
    for key, expected in (
        ("do_resize", True),
        ("do_rescale", True),
        ("do_normalize", True),
        ("resample", 3),
    ):
        found = config.get(key)
        if found is not None and found != expected:
            raise ModelError(f"{where}: {key} is {found!r}, expected {expected!r}")
    factor = config.get("rescale_factor")
    if factor is not None and abs(factor * 255 - 1) > 1e-9:
        raise ModelError(f"{where}: rescale_factor is {factor!r}, expected 1/255")


def _positive(where: str, key: str, value: object) -> int:
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if isinstance(value, bool) or not isinstance(value, int) or value <= 0:
        raise ModelError(f"{where}: {key} is {value!r}, expected a whole number above 0")
    return value


def _exactly(where: str, config: Mapping[str, Any], key: str, expected: int) -> int:
    value = config.get(key, expected)
    if value != expected:
        raise ModelError(f"{where}: {key} is {value!r}, expected {expected} (all of Qwen2-VL)")
    return expected


def _triple(
    where: str, config: Mapping[str, Any], key: str, default: tuple[float, float, float]
) -> tuple[float, float, float]:
    value = config.get(key)
    if value is None:
        return default
    if not isinstance(value, list) or len(value) != 3:
        raise ModelError(f"{where}: {key} is {value!r}, expected three numbers")
    red, green, blue = (float(v) for v in value)
    return red, green, blue

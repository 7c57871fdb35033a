"""The rules by which pictures and frames are resized, cut into patches and normalized.

They are read from a checkpoint's preprocessor files in all published layouts: nested
processor_config.json, video_preprocessor_config.json and flat preprocessor_config.json, each with
`size` or with `min_pixels`/`max_pixels`. Callers' options go over them.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch

from mediamill.model.checkpoint.folder import Folder
from mediamill.model.errors import ModelError
from mediamill.model.inputs import VisualKind
from mediamill.model.media import option_values
from mediamill.model.media.patches import CLIP_MEAN, CLIP_STD, Triple, normalize
from mediamill.model.media.resize import Resample, smart_resize

# The reference's class defaults, for limits that no file names (areas in pixels).
_CLASS_LIMITS: dict[VisualKind, tuple[int, int]] = {
    "image": (56 * 56, 28 * 28 * 1280),
    "video": (128 * 28 * 28, 28 * 28 * 768),
}
# Pillow's numbers of the filters (PIL.Image.Resampling) that are implemented.
_RESAMPLE: dict[int, Resample] = {2: "bilinear", 3: "bicubic"}
_SIZES = ("patch_size", "temporal_patch_size", "merge_size")


@dataclass(frozen=True)
class ImageRules:
    """How one picture, or each frame of a video, becomes patches.

    min_pixels, max_pixels: limits on height * width after the resize.
    mean, std: of each colour, for values in 0..1.
    patch_size: height and width of a patch in pixels. temporal_patch_size: frames in one patch.
    merge_size: merge_size x merge_size patches become one visual token.
    do_resize: False keeps the size; heights and widths then have to be multiples of `factor`.
    do_rescale, rescale_factor: whether values are multiplied by rescale_factor.
    do_normalize: whether mean is then subtracted, and the result divided by std.
    do_convert_rgb: False refuses pictures that are not RGB. resample: filter of the resize.
    shrink: divides the area that the other rules give.
    Raises ModelError (a ValueError) for values out of range.
    """

    min_pixels: int = 56 * 56
    max_pixels: int = 28 * 28 * 16384
    mean: Triple = CLIP_MEAN
    std: Triple = CLIP_STD
    patch_size: int = 14
    temporal_patch_size: int = 2
    merge_size: int = 2
    do_resize: bool = True
    do_rescale: bool = True
    rescale_factor: float = 1 / 255
    do_normalize: bool = True
    do_convert_rgb: bool = True
    resample: Resample = "bicubic"
    shrink: int = 1

    def __post_init__(self) -> None:
        # min_pixels above max_pixels is no error: a checkpoint may set only one of them. max_pixels
        # then wins, as in the reference.
        for key in ("min_pixels", "max_pixels", *_SIZES):
            if getattr(self, key) <= 0:
                raise ModelError(f"{key} is {getattr(self, key)}; expected a number above 0")
        if 0 in self.std:
            raise ModelError(f"image_std is {list(self.std)}; expected no 0, it divides")
        if not self.rescale_factor:
            raise ModelError("rescale_factor is 0; expected another number")

    @property
    def factor(self) -> int:
        """Height and width of a visual token in pixels; resized sides are multiples of it."""
        return self.patch_size * self.merge_size

    def size_of(self, height: int, width: int, max_pixels: int | None = None) -> tuple[int, int]:
        """Returns the (height, width) of a picture or frame after the resize, in pixels.

        max_pixels: overrides the rule of that name.
        Raises ValueError if one side is more than 200 times the other, or, with do_resize False, if
        a side is not a multiple of `factor`.
        """
        if self.do_resize:
            limit = self.max_pixels if max_pixels is None else max_pixels
            size = smart_resize(height, width, self.factor, self.min_pixels, limit)
            if self.shrink == 1:
                return size
            area = max(size[0] * size[1] // self.shrink, self.factor**2)
            return smart_resize(height, width, self.factor, self.factor**2, area)
        if height < 1 or width < 1 or height % self.factor or width % self.factor:
            raise ValueError(
                f"the picture is {width} x {height} pixels and do_resize is false; expected sides "
                f"that are multiples of {self.factor}"
            )
        return height, width

    def grid_of(self, size: tuple[int, int], frames: int | None = None) -> tuple[int, int, int]:
        """Returns (t, h, w) in patches for a size after the resize; frames: None for a picture."""
        groups = 1 if frames is None else -(-frames // self.temporal_patch_size)
        return groups, size[0] // self.patch_size, size[1] // self.patch_size

    def tokens_of(self, size: tuple[int, int], frames: int | None = None) -> int:
        """Returns the visual tokens: t * h * w / merge_size ** 2, of the grid of `grid_of`."""
        groups, rows, columns = self.grid_of(size, frames)
        return groups * rows * columns // self.merge_size**2

    def patch_values(self, kind: VisualKind) -> int:
        """Returns the number of values of a stored patch (one temporal slice of a picture)."""
        slices = 1 if kind == "image" else self.temporal_patch_size
        return 3 * slices * self.patch_size**2

    def normalize(self, patches: torch.Tensor, kind: VisualKind) -> torch.Tensor:
        """uint8 [N, patch_values(kind)] -> float32 [N, 3*T*p*p]: the reference's pixel_values.

        The result is on the device of `patches`, with the slice of a picture repeated T times. It
        equals the reference's bit for bit, except that with neither do_rescale nor do_normalize
        the reference keeps uint8.
        """
        if patches.shape[-1] != self.patch_values(kind):
            raise ValueError(
                f"found patches of {patches.shape[-1]} values, expected {self.patch_values(kind)} "
                f"for a{'n image' if kind == 'image' else ' video'}"
            )
        return normalize(
            patches,
            self.mean if self.do_normalize else None,
            self.std,
            self.rescale_factor if self.do_rescale else None,
            self.patch_size,
            self.temporal_patch_size,
        )

    def resize_limit(
        self, source: tuple[int, int], size: tuple[int, int], max_pixels: int | None = None
    ) -> tuple[Literal["min_pixels", "max_pixels"], str] | None:
        """Returns the limit that decided the resize and the receipt's note; None if none did.

        source, size: (height, width) before and after. max_pixels: as for `size_of`.
        """
        if self.shrink > 1 and self.do_resize:
            note = f"resized from {source[0]} x {source[1]} to {size[0]} x {size[1]} by "
            return "max_pixels", f"{note}retries.smaller, to 1/{self.shrink} of the area"
        high = self.max_pixels if max_pixels is None else max_pixels
        area = round(source[0] / self.factor) * round(source[1] / self.factor) * self.factor**2
        if not self.do_resize or self.min_pixels <= area <= high:
            return None
        note = f"resized from {source[0]} x {source[1]} to {size[0]} x {size[1]} by "
        if area > high:
            return "max_pixels", f"{note}max_pixels {high}"
        return "min_pixels", f"{note}min_pixels {self.min_pixels}"

    def with_limits(self, min_pixels: int | None, max_pixels: int | None) -> "ImageRules":
        """Returns the rules with other limits; None keeps a limit.

        Raises ModelError if min_pixels is above max_pixels.
        """
        if min_pixels is None and max_pixels is None:
            return self
        low = self.min_pixels if min_pixels is None else min_pixels
        high = self.max_pixels if max_pixels is None else max_pixels
        if low > high:
            raise ModelError(_limits_message(low, high))
        return replace(self, min_pixels=low, max_pixels=high)

    def with_options(self, options: Mapping[str, Any], where: str) -> "ImageRules":
        """Returns the rules with options over them, by the reference's keys; null keeps a rule.

        `min_pixels` and `max_pixels` win over `size`. Keys that do not concern pixels are ignored.
        where: names the source in errors.
        Raises ModelError for malformed values and steps that are not implemented.
        """
        option_values.refuse_unknown_steps(options, where)
        low, high = _limits(where, options, self)
        changes = option_values.read_set(options, _READERS, where)
        for key, name in (("image_mean", "mean"), ("image_std", "std")):
            if key in changes:
                changes[name] = changes.pop(key)
        try:
            return replace(self, min_pixels=low, max_pixels=high, **changes)
        except ModelError as error:
            raise ModelError(f"{where}: {error}") from None

    def with_overrides(self, options: Mapping[str, Any], where: str) -> "ImageRules":
        """As `with_options`, for a caller's options, which are checked more strictly.

        Raises ModelError also for keys not in PIXEL_KEYS and a new min_pixels above max_pixels.
        """
        option_values.refuse_unknown_keys(options, PIXEL_KEYS, where)
        rules = self.with_options(options, where)
        low, high = rules.min_pixels, rules.max_pixels
        if low > high and (low, high) != (self.min_pixels, self.max_pixels):
            raise ModelError(f"{where}: {_limits_message(low, high)}")
        return rules

    @classmethod
    def from_checkpoint(
        cls, folder: str | Path | Folder, kind: VisualKind = "image"
    ) -> "ImageRules":
        """Reads the rules for pictures or for the frames of videos.

        The first of these that exists counts: the part of processor_config.json, for videos
        video_preprocessor_config.json, then preprocessor_config.json. Missing and null keys get
        the reference's class defaults (the reference takes null for false), and so do videos
        without any of the files. Raises ModelError for missing and malformed files and for steps
        that are not implemented.
        """
        low, high = _CLASS_LIMITS[kind]
        default = cls(min_pixels=low, max_pixels=high)
        source = preprocessor_options(Folder.of(folder), kind)
        if source is None and kind == "image":
            raise ModelError(
                f"{folder}: found neither preprocessor_config.json nor processor_config.json "
                "with an image_processor; expected one of them"
            )
        where, options = source or ("", {})
        return default.with_options(options, where)


def preprocessor_options(folder: Folder, kind: VisualKind) -> tuple[str, dict[str, Any]] | None:
    """Returns (name of the source, options) for pictures or for videos; None without a file."""
    part = f"{kind}_processor"
    nested = folder.read_json("processor_config.json")
    if nested is not None and nested.get(part) is not None:
        where = f"{folder.path('processor_config.json')}, {part}"
        if not isinstance(nested[part], dict):
            raise ModelError(f"{where}: found a {type(nested[part]).__name__}, expected an object")
        return where, nested[part]
    names = ("video_preprocessor_config.json", "preprocessor_config.json")
    for name in names if kind == "video" else names[1:]:
        if (config := folder.read_json(name)) is not None:
            return folder.path(name), config
    return None


def _limits(where: str, options: Mapping[str, Any], base: ImageRules) -> tuple[int, int]:
    """Returns (min, max) pixels; `min_pixels` and `max_pixels` win over `size`."""
    size, low, high = options.get("size"), options.get("min_pixels"), options.get("max_pixels")
    if size is None:
        size = {"min_pixels": base.min_pixels, "max_pixels": base.max_pixels}
    if not isinstance(size, Mapping):
        raise ModelError(f"{where}: size is {size!r}, expected an object of two pixel counts")
    if low is None:
        low = size.get("shortest_edge", size.get("min_pixels"))
    if high is None:
        high = size.get("longest_edge", size.get("max_pixels"))
    if low is None or high is None:
        raise ModelError(
            f"{where}: size is {dict(size)}, expected a shortest_edge and a longest_edge"
        )
    positive = option_values.positive
    return positive(where, "min_pixels", low), positive(where, "max_pixels", high)


def _limits_message(low: int, high: int) -> str:
    return (
        f"min_pixels is {low} and max_pixels is {high}, with the checkpoint's own for what is not "
        "set; expected min_pixels <= max_pixels"
    )


def _resample(where: str, key: str, value: object) -> Resample:
    if isinstance(value, bool) or not isinstance(value, int) or value not in _RESAMPLE:
        raise ModelError(
            f"{where}: {key} is {value!r}, expected 3 (bicubic) or 2 (bilinear); other filters "
            "are not supported"
        )
    return _RESAMPLE[value]


_READERS: dict[str, Callable[[str, str, Any], Any]] = {
    **dict.fromkeys(
        ("do_resize", "do_rescale", "do_normalize", "do_convert_rgb"), option_values.switch
    ),
    **dict.fromkeys(_SIZES, option_values.positive),
    "rescale_factor": option_values.number,
    "image_mean": option_values.triple,
    "image_std": option_values.triple,
    "resample": _resample,
}
PIXEL_KEYS = frozenset((*_READERS, "size", "min_pixels", "max_pixels"))

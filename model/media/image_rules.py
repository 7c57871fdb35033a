"""Turns a checkpoint's preprocessor files, and a caller's wishes, into the rules for the pixels of
pictures and of frames.

All published layouts are read: nested processor_config.json, video_preprocessor_config.json and
flat preprocessor_config.json, each with `size` or with `min_pixels`/`max_pixels`. Which frames of a
video are looked at is model/media/frame_sampling.py's.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch

from mediamill.model.checkpoint.folder import Folder
from mediamill.model.errors import ModelError
from mediamill.model.inputs import VisualKind
from mediamill.model.media import option_values as values
from mediamill.model.media.patches import (
    CLIP_MEAN,
    CLIP_STD,
    Resample,
    Triple,
    normalize,
    smart_resize,
)

# What the reference takes for a limit that the file does not name (areas in pixels).
_CLASS_LIMITS: dict[VisualKind, tuple[int, int]] = {
    "image": (56 * 56, 28 * 28 * 1280),
    "video": (128 * 28 * 28, 28 * 28 * 768),
}
# Pillow's numbers of the filters. The reference's others are not built here.
_RESAMPLE: dict[int, Resample] = {2: "bilinear", 3: "bicubic"}
_SWITCHES = ("do_resize", "do_rescale", "do_normalize", "do_convert_rgb")
_SIZES = ("patch_size", "temporal_patch_size", "merge_size")
_NUMBERS = ("rescale_factor", "image_mean", "image_std")
PIXEL_KEYS = frozenset(
    (*_SWITCHES, *_SIZES, *_NUMBERS, "size", "min_pixels", "max_pixels", "resample")
)


@dataclass(frozen=True)
class ImageRules:
    """How one picture, or each frame of a video, becomes patches.

    min_pixels, max_pixels: limits of height * width after the resize.
    mean, std: of each colour, for values in 0..1.
    patch_size, merge_size: a patch is patch_size pixels wide; merge_size x merge_size patches make
        a token, so heights and widths are multiples of `factor`.
    temporal_patch_size: frames in one patch.
    do_resize: False takes pictures as they are; their sides have to be multiples of `factor` then.
    do_rescale, rescale_factor: values are multiplied by this first. do_normalize: and then brought
        to mean and std. do_convert_rgb: False refuses what is not RGB already.
    resample: the filter of the resize.
    Raises ValueError for values without sense.
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

    def __post_init__(self) -> None:
        # A checkpoint's limits may cross (one left to its default): the reference then lets
        # max_pixels win, and so does smart_resize.
        for key in ("min_pixels", "max_pixels", *_SIZES):
            if getattr(self, key) <= 0:
                raise ModelError(f"{key} is {getattr(self, key)}; expected a number above 0")
        if 0 in self.std:
            raise ModelError(f"image_std is {list(self.std)}; expected no 0, it divides")
        if not self.rescale_factor:
            raise ModelError("rescale_factor is 0; expected another number")

    @property
    def factor(self) -> int:
        """Heights and widths after the resize are multiples of this, in pixels."""
        return self.patch_size * self.merge_size

    def size_of(self, height: int, width: int, max_pixels: int | None = None) -> tuple[int, int]:
        """(height, width) in pixels that a picture or frame of this size has after the resize.

        max_pixels: instead of the rules' own. Raises ValueError if it cannot be used: a side more
        than 200 times the other, or with do_resize False sides that are no multiples of `factor`.
        """
        if self.do_resize:
            high = self.max_pixels if max_pixels is None else max_pixels
            return smart_resize(height, width, self.factor, self.min_pixels, high)
        if height < 1 or width < 1 or height % self.factor or width % self.factor:
            raise ValueError(
                f"the picture is {width} x {height} pixels and do_resize is false; expected sides "
                f"that are multiples of {self.factor}"
            )
        return height, width

    def grid_of(self, size: tuple[int, int], frames: int | None = None) -> tuple[int, int, int]:
        """(t, h, w) in patches of a resized picture (frames None), or of so many resized frames."""
        groups = 1 if frames is None else -(-frames // self.temporal_patch_size)
        return groups, size[0] // self.patch_size, size[1] // self.patch_size

    def tokens_of(self, size: tuple[int, int], frames: int | None = None) -> int:
        """Visual tokens of a resized picture (frames None), or of so many resized frames."""
        groups, rows, columns = self.grid_of(size, frames)
        return groups * rows * columns // self.merge_size**2

    def patch_values(self, kind: VisualKind) -> int:
        """uint8 values in one stored patch: of a picture one slice, of a video all T."""
        slices = 1 if kind == "image" else self.temporal_patch_size
        return 3 * slices * self.patch_size**2

    def normalize(self, patches: torch.Tensor, kind: VisualKind) -> torch.Tensor:
        """uint8 [N, patch_values(kind)] -> float32 [N, 3*T*p*p]: the reference's pixel_values.

        On the device of `patches`. The slices of pictures are repeated T times here. Bit for bit,
        except that with neither do_rescale nor do_normalize the reference leaves uint8.
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

    def resize_note(
        self, source: tuple[int, int], size: tuple[int, int], max_pixels: int | None = None
    ) -> str | None:
        """Which limit decided the resize from source to size (height, width); None if none did."""
        high = self.max_pixels if max_pixels is None else max_pixels
        bound = self.bound_of(source, max_pixels)
        if bound is None:
            return None
        limit = f"{bound} {high if bound == 'max_pixels' else self.min_pixels}"
        return f"resized from {source[0]} x {source[1]} to {size[0]} x {size[1]} by {limit}"

    def bound_of(
        self, source: tuple[int, int], max_pixels: int | None = None
    ) -> Literal["min_pixels", "max_pixels"] | None:
        """The limit that decides the size of a picture or frame of this size; None if none does."""
        high = self.max_pixels if max_pixels is None else max_pixels
        area = round(source[0] / self.factor) * round(source[1] / self.factor) * self.factor**2
        if not self.do_resize or self.min_pixels <= area <= high:
            return None
        return "max_pixels" if area > high else "min_pixels"

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

    def with_options(self, options: Mapping[str, Any], where: str) -> "ImageRules":
        """The same rules with the reference's own keys over them; null keeps what was.

        `min_pixels` and `max_pixels` win over `size`. Keys that do not concern pixels are ignored.
        where: names the source in errors. Raises ModelError for what is malformed or not built.
        """
        values.refuse_unknown_steps(options, where)
        low, high = _limits(where, options, self)
        changes: dict[str, Any] = {"min_pixels": low, "max_pixels": high}
        for key in _SWITCHES:
            changes[key] = values.switch(where, options, key, getattr(self, key))
        for key in _SIZES:
            changes[key] = values.count(where, options, key, getattr(self, key))
        found = values.number(where, options, "rescale_factor", self.rescale_factor)
        changes["rescale_factor"] = found
        changes["mean"] = values.triple(where, options, "image_mean", self.mean)
        changes["std"] = values.triple(where, options, "image_std", self.std)
        if options.get("resample") is not None:
            changes["resample"] = _resample(where, options["resample"])
        try:
            return replace(self, **changes)
        except ModelError as error:
            raise ModelError(f"{where}: {error}") from None

    def with_overrides(self, options: Mapping[str, Any], where: str) -> "ImageRules":
        """As `with_options`, for a caller's options: a key that is none of PIXEL_KEYS is a mistake,
        and so are limits that cross.
        """
        values.refuse_unknown_keys(options, PIXEL_KEYS, where)
        rules = self.with_options(options, where)
        low, high = rules.min_pixels, rules.max_pixels
        if low > high and (low, high) != (self.min_pixels, self.max_pixels):
            raise ModelError(
                f"{where}: min_pixels is {low} and max_pixels is {high}, with the checkpoint's own "
                "for what is not set; expected min_pixels <= max_pixels"
            )
        return rules

    @classmethod
    def from_checkpoint(
        cls, folder: str | Path | Folder, kind: VisualKind = "image"
    ) -> "ImageRules":
        """Reads the rules for pictures or for video frames.

        The first of these that exists decides: the part of processor_config.json, (videos only)
        video_preprocessor_config.json, preprocessor_config.json. A video without any of them gets
        the reference's class defaults, and so does every key that is missing or null (where the
        reference takes null for false).
        Raises ModelError if the files are missing, malformed or ask for what is not built here.
        """
        low, high = _CLASS_LIMITS[kind]
        default = cls(min_pixels=low, max_pixels=high)
        found = preprocessor_options(Folder.of(folder), kind)
        if found is not None:
            return default.with_options(found[1], found[0])
        if kind == "video":
            return default
        raise ModelError(
            f"{folder}: found neither preprocessor_config.json nor processor_config.json "
            "with an image_processor; expected one of them"
        )


def preprocessor_options(folder: Folder, kind: VisualKind) -> tuple[str, dict[str, Any]] | None:
    """(where it stands, the keys) of the file that decides for pictures or for videos; or None."""
    part = f"{kind}_processor"
    nested = folder.read_json("processor_config.json")
    if nested is not None and nested.get(part) is not None:
        where = f"{folder.path('processor_config.json')}, {part}"
        if not isinstance(nested[part], dict):
            raise ModelError(f"{where}: found a {type(nested[part]).__name__}, expected an object")
        return where, nested[part]
    names = ["preprocessor_config.json"]
    if kind == "video":
        names.insert(0, "video_preprocessor_config.json")
    for name in names:
        config = folder.read_json(name)
        if config is not None:
            return folder.path(name), config
    return None


def _limits(where: str, options: Mapping[str, Any], base: ImageRules) -> tuple[int, int]:
    """(min, max) pixels; `min_pixels`/`max_pixels` beside `size` win, as in the reference."""
    low: object
    high: object
    low, high = base.min_pixels, base.max_pixels
    size = options.get("size")
    if size is not None:
        if not isinstance(size, Mapping):
            raise ModelError(f"{where}: size is {size!r}, expected an object of two pixel counts")
        low = size.get("shortest_edge", size.get("min_pixels"))
        high = size.get("longest_edge", size.get("max_pixels"))
    if options.get("min_pixels") is not None:
        low = options["min_pixels"]
    if options.get("max_pixels") is not None:
        high = options["max_pixels"]
    if low is None or high is None:
        raise ModelError(
            f"{where}: size is {dict(size or {})}, expected a shortest_edge and a longest_edge"
        )
    return values.positive(where, "min_pixels", low), values.positive(where, "max_pixels", high)


def _resample(where: str, value: object) -> Resample:
    if isinstance(value, bool) or not isinstance(value, int) or value not in _RESAMPLE:
        raise ModelError(
            f"{where}: resample is {value!r}, expected 3 (bicubic) or 2 (bilinear); other filters "
            "are not built here"
        )
    return _RESAMPLE[value]

"""Turns the size of a video's frames into the size and the number of frames that keep all limits.

Knows numbers only. First the frames get smaller, down to min_pixels; then they get fewer, down to
min_frames; what is too much even so is an error. Without total_pixels and max_tokens nothing is
lowered, and a video beyond the model's context is that error at once.
"""

import math
from dataclasses import dataclass

from mediamill.model.errors import MediaError, PromptError
from mediamill.model.media.frame_sampling import VideoRules, fewest_frames, max_pixels_for
from mediamill.model.media.image_rules import ImageRules
from mediamill.model.media.limit_names import LimitName, in_order
from mediamill.model.media.limits import MediaLimits

Size = tuple[int, int]


@dataclass(frozen=True)
class Sized:
    """size: (height, width) in pixels after the resize. bound_by: what decided it. note: in words,
    None if nothing did.
    """

    size: Size
    bound_by: tuple[LimitName, ...]
    note: str | None


@dataclass(frozen=True)
class Budget:
    """What the frames of a video may be, one by one and all together.

    pixels: the rules for one frame. rules, limits: for all of them.
    """

    rules: VideoRules
    pixels: ImageRules
    limits: MediaLimits

    @property
    def lowers(self) -> bool:
        """Whether a video that is too much is made smaller, or is an error."""
        return self.rules.total_pixels is not None or self.rules.max_tokens is not None

    def sized(self, source: Size, count: int) -> Sized:
        """How `count` frames of the size `source` (height, width) in pixels are resized.

        Raises MediaError decode_unsupported for sizes that cannot be used, and PromptError
        context_too_long if they are too much.
        """
        try:
            size = self._alone(source, count)
        except ValueError as error:
            raise MediaError("decode_unsupported", str(error)) from error
        beyond = self._beyond(size, count)
        if not beyond:
            bounds, note = self._told(source, size, count)
            return Sized(size, bounds, note)
        smaller = self._smaller(source, size, count) if self.lowers else None
        if smaller is None:
            raise self._too_much(source, size, count, beyond)
        floor: tuple[LimitName, ...] = ()
        if smaller == self._smallest(source):
            floor = ("min_pixels",)
        note = f"resized from {source[0]} x {source[1]} to {smaller[0]} x {smaller[1]} by "
        return Sized(smaller, in_order(*beyond, *floor), note + self._listed(beyond))

    def tokens_of(self, source: Size, count: int) -> int:
        """Visual tokens of `count` frames of the size `source`; the context alone is no limit here.

        Raises ValueError for sizes that cannot be used, and PromptError if total_pixels or
        max_tokens leave room for fewer frames only.
        """
        size = self._alone(source, count)
        size = self.sized(source, count).size if self.lowers else size
        return self.pixels.tokens_of(size, count)

    def frames(
        self, source: Size, total: int, count: int
    ) -> tuple[int, tuple[LimitName, ...], str]:
        """How many frames of the size `source` to look at, which bounds lowered that, and in words.

        total: frames that there are. count: those that are wanted, at most so many come back.
        Where nothing fits it is the fewest that the rules allow.
        """
        group = self.pixels.temporal_patch_size
        if not self.lowers or self._fits(source, count):
            return count, (), ""
        low = fewest_frames(total, count, self.rules, group)
        # Fewer frames never need smaller pixels: what fits is found by halving.
        fitting, not_fitting = low // group, -(-count // group)
        while not_fitting - fitting > 1:
            middle = (fitting + not_fitting) // 2
            if self._fits(source, middle * group):
                fitting = middle
            else:
                not_fitting = middle
        found = min(count, max(low, fitting * group))
        if found == count:
            return count, (), ""
        beyond = self._beyond(self._least(source, count), count)
        bounds = in_order(*beyond, "min_pixels")
        words = f"{found} frames instead of {count}: {self._listed(beyond)}, at the least size"
        return found, bounds, words

    def _fits(self, source: Size, count: int) -> bool:
        try:
            size = self._alone(source, count)
        except ValueError:
            return True  # an error that fewer frames do not mend
        return not self._beyond(size, count) or self._smaller(source, size, count) is not None

    def _alone(self, source: Size, count: int) -> Size:
        """By the rules for one frame. Raises ValueError."""
        return self.pixels.size_of(*source, max_pixels_for(count, self.pixels, self.rules))

    def _ceilings(self, count: int) -> dict[LimitName, int]:
        """Pixels of one frame that each limit on `count` frames leaves."""
        found: dict[LimitName, int] = {}
        groups = -(-count // self.pixels.temporal_patch_size)
        area = self.pixels.factor**2
        if self.rules.total_pixels is not None:
            found["total_pixels"] = self.rules.total_pixels // count
        if self.rules.max_tokens is not None:
            found["max_tokens"] = self.rules.max_tokens // groups * area
        if self.limits.max_visual_tokens is not None:
            found["context"] = self.limits.max_visual_tokens // groups * area
        return found

    def _beyond(self, size: Size, count: int) -> tuple[LimitName, ...]:
        """The limits that `count` frames of this size are beyond."""
        area = size[0] * size[1]
        return tuple(name for name, most in self._ceilings(count).items() if area > most)

    def _smaller(self, source: Size, size: Size, count: int) -> Size | None:
        """The size that all limits allow; None if there is none that is not below min_pixels."""
        if not self.pixels.do_resize:
            return None
        most = min(self._ceilings(count).values())
        if most < 1:
            return None
        # The resize rounds down: the limit that gives most within the ceiling lies above it.
        low, high = most, size[0] * size[1]
        while high - low > 1:
            middle = (low + high) // 2
            height, width = self.pixels.size_of(*source, middle)
            if height * width <= most:
                low = middle
            else:
                high = middle
        found = self.pixels.size_of(*source, low)
        least = min(self.pixels.min_pixels, size[0] * size[1])
        if least <= found[0] * found[1] <= most:
            return found
        smallest = self._smallest(source)
        if smallest is not None and smallest[0] * smallest[1] <= most:
            return smallest
        return None

    def _smallest(self, source: Size) -> Size | None:
        """The size nearest above min_pixels; None where frames are not resized."""
        if not self.pixels.do_resize:
            return None
        factor = self.pixels.factor
        scale = math.sqrt(self.pixels.min_pixels / (source[0] * source[1]))
        height = math.ceil(source[0] * scale / factor) * factor
        return height, math.ceil(source[1] * scale / factor) * factor

    def _least(self, source: Size, count: int) -> Size:
        """The smallest that a frame may be made."""
        size = self._alone(source, count)
        smallest = self._smallest(source) or size
        return min(size, smallest, key=lambda one: one[0] * one[1])

    def _told(
        self, source: Size, size: Size, count: int
    ) -> tuple[tuple[LimitName, ...], str | None]:
        """Which limit on one frame decided its size, and in words."""
        most = max_pixels_for(count, self.pixels, self.rules)
        bound: LimitName | None = self.pixels.bound_of(source, most)
        if bound is None:
            return (), None
        if bound == "max_pixels" and most < self.pixels.max_pixels:
            bound = "max_video_tokens"
        return (bound,), self.pixels.resize_note(source, size, most)

    def _listed(self, bounds: tuple[LimitName, ...]) -> str:
        numbers: dict[LimitName, int | None] = {
            "total_pixels": self.rules.total_pixels,
            "max_tokens": self.rules.max_tokens,
            "context": self.limits.max_visual_tokens,
        }
        return " and ".join(f"{bound} {numbers[bound]}" for bound in bounds)

    def _too_much(
        self, source: Size, size: Size, count: int, beyond: tuple[LimitName, ...]
    ) -> PromptError:
        tokens = self.pixels.tokens_of(size, count)
        if not self.lowers:
            return PromptError(
                "context_too_long",
                f"{count} frames of {size[1]} x {size[0]} pixels are {tokens} visual tokens; the "
                f"model takes {self.limits.max_visual_tokens}: lower the video's max_pixels, "
                "max_frames or fps",
            )
        least = self._least(source, count)
        return PromptError(
            "context_too_long",
            f"{count} frames of {least[1]} x {least[0]} pixels, the fewest and smallest that are "
            f"allowed, are {self.pixels.tokens_of(least, count)} visual tokens and "
            f"{count * least[0] * least[1]} pixels; the limit is {self._listed(beyond)}: raise it, "
            "or lower the video's min_pixels or min_frames",
        )

"""Computes the size and the number of a video's frames that keep all limits on the whole video.

With `total_pixels` or `max_tokens` the frames first become smaller, down to min_pixels, and then
fewer, down to min_frames; what is still too much is an error. Without them nothing is lowered, and
a video beyond the model's context is an error at once.
"""

import math
from dataclasses import dataclass

from mediamill.model.errors import MediaError, PromptError
from mediamill.model.media.frame_sampling import VideoRules, max_pixels_for, min_sampled_frames
from mediamill.model.media.image_rules import ImageRules
from mediamill.model.media.limit_names import LimitName, ordered
from mediamill.model.media.limits import MediaLimits

Size = tuple[int, int]


@dataclass(frozen=True)
class FrameSize:
    """The size (height, width) of a video's frames after the resize.

    bound_by: the limits that decided it. note: the same for the receipt, in words.
    """

    size: Size
    bound_by: tuple[LimitName, ...]
    note: str | None


@dataclass(frozen=True)
class PixelBudget:
    """The limits on the frames of a video, on each frame and on all of them together.

    Every limit on `n` frames becomes a limit on the area (height * width) of one frame:

        total_pixels                                    floor(total_pixels / n)
        max_tokens, and the model's max_visual_tokens   floor(tokens / ceil(n / T)) * factor ** 2

    where T = temporal_patch_size frames make one group, and one visual token covers factor * factor
    pixels of a group. The smallest of them holds.

    rules, limits: the limits on all frames. pixels: the rules for one frame.
    fixed_size: of the frames, whatever the rules say.
    """

    rules: VideoRules
    pixels: ImageRules
    limits: MediaLimits
    fixed_size: Size | None = None

    @property
    def adapts(self) -> bool:
        """Whether a video beyond the limits is made smaller; otherwise it is an error."""
        return self.rules.total_pixels is not None or self.rules.max_tokens is not None

    def frame_size(self, source: Size, count: int) -> FrameSize:
        """Returns the size after the resize of `count` frames of the size `source` (height, width).

        Raises MediaError decode_unsupported for sizes that cannot be used, and PromptError
        context_too_long if the frames do not fit.
        """
        if self.fixed_size is not None:
            return FrameSize(self.fixed_size, (), None)
        try:
            size = self._size_of_one(source, count)
        except ValueError as error:
            raise MediaError("decode_unsupported", str(error)) from error
        exceeded = self._exceeded(size, count)
        if not exceeded:
            return self._size_within_limits(source, size, count)
        smaller = self._shrunk(source, size, count) if self.adapts else None
        if smaller is None:
            raise self._too_long(source, size, count, exceeded)
        at_least = smaller == self._min_pixels_size(source)
        floor: tuple[LimitName, ...] = ("min_pixels",) if at_least else ()
        note = f"resized from {source[0]} x {source[1]} to {smaller[0]} x {smaller[1]} by "
        return FrameSize(smaller, ordered(*exceeded, *floor), note + self._listed(exceeded))

    def visual_tokens(self, source: Size, count: int) -> int:
        """Returns the visual tokens of `count` frames of the size `source` (height, width).

        Without total_pixels and max_tokens the model's context is not checked.
        Raises ValueError for sizes that cannot be used, and PromptError if total_pixels or
        max_tokens allow fewer frames only.
        """
        size = self._size_of_one(source, count)
        size = self.frame_size(source, count).size if self.adapts else size
        return self.pixels.tokens_of(size, count)

    def fit_frames(
        self, source: Size, total: int, count: int
    ) -> tuple[int, tuple[LimitName, ...], str]:
        """Returns how many frames of the size `source` to use, the limits that lowered it, a note.

        total: frames of the video or window. count: frames that the sampling rules ask for; the
        result is not above it. If no number of frames fits, it is the fewest that the rules allow.
        """
        group = self.pixels.temporal_patch_size
        if not self.adapts or self._fits(source, count):
            return count, (), ""
        low = min_sampled_frames(total, count, self.rules, group)
        # Fewer frames never need smaller pixels, so the largest number is found by bisection.
        fitting, not_fitting = low // group, -(-count // group)
        while not_fitting - fitting > 1:
            middle = (fitting + not_fitting) // 2
            if self._fits(source, middle * group):
                fitting = middle
            else:
                not_fitting = middle
        lowered = min(count, max(low, fitting * group))
        if lowered == count:
            return count, (), ""
        exceeded = self._exceeded(self._smallest(source, count), count)
        note = f"{lowered} frames instead of {count}: {self._listed(exceeded)}, at the least size"
        return lowered, ordered(*exceeded, "min_pixels"), note

    def _fits(self, source: Size, count: int) -> bool:
        try:
            size = self._size_of_one(source, count)
        except ValueError:
            return True  # the size itself is unusable: fewer frames do not help
        return not self._exceeded(size, count) or self._shrunk(source, size, count) is not None

    def _size_of_one(self, source: Size, count: int) -> Size:
        """Returns the size by the rules for one frame alone. Raises ValueError."""
        return self.pixels.size_of(*source, max_pixels_for(count, self.pixels, self.rules))

    def _max_areas(self, count: int) -> dict[LimitName, int]:
        """Returns the largest area of one frame that each limit on `count` frames allows."""
        areas: dict[LimitName, int] = {}
        groups = -(-count // self.pixels.temporal_patch_size)
        token_area = self.pixels.factor**2
        if self.rules.total_pixels is not None:
            areas["total_pixels"] = self.rules.total_pixels // count
        if self.rules.max_tokens is not None:
            areas["max_tokens"] = self.rules.max_tokens // groups * token_area
        if self.limits.max_visual_tokens is not None:
            areas["context"] = self.limits.max_visual_tokens // groups * token_area
        return areas

    def _exceeded(self, size: Size, count: int) -> tuple[LimitName, ...]:
        """Returns the limits that `count` frames of this size exceed."""
        area = size[0] * size[1]
        return tuple(name for name, largest in self._max_areas(count).items() if area > largest)

    def _shrunk(self, source: Size, size: Size, count: int) -> Size | None:
        """Returns the size within all limits; None if only sizes below min_pixels are."""
        if not self.pixels.do_resize:
            return None
        max_area = min(self._max_areas(count).values())
        if max_area < 1:
            return None
        # The resize rounds down, so the max_pixels that gives the largest size within max_area
        # lies above max_area itself.
        low, high = max_area, size[0] * size[1]
        while high - low > 1:
            middle = (low + high) // 2
            height, width = self.pixels.size_of(*source, middle)
            if height * width <= max_area:
                low = middle
            else:
                high = middle
        shrunk = self.pixels.size_of(*source, low)
        min_area = min(self.pixels.min_pixels, size[0] * size[1])
        if min_area <= shrunk[0] * shrunk[1] <= max_area:
            return shrunk
        smallest = self._min_pixels_size(source)
        return smallest if smallest and smallest[0] * smallest[1] <= max_area else None

    def _min_pixels_size(self, source: Size) -> Size | None:
        """Returns the size nearest above min_pixels; None where frames are not resized."""
        if not self.pixels.do_resize:
            return None
        factor = self.pixels.factor
        scale = math.sqrt(self.pixels.min_pixels / (source[0] * source[1]))
        height = math.ceil(source[0] * scale / factor) * factor
        return height, math.ceil(source[1] * scale / factor) * factor

    def _smallest(self, source: Size, count: int) -> Size:
        """Returns the smallest size that the rules allow for a frame."""
        size = self._size_of_one(source, count)
        smallest = self._min_pixels_size(source) or size
        return min(size, smallest, key=lambda candidate: candidate[0] * candidate[1])

    def _size_within_limits(self, source: Size, size: Size, count: int) -> FrameSize:
        """Names the limit on one frame that decided its size."""
        max_pixels = max_pixels_for(count, self.pixels, self.rules)
        limit = self.pixels.resize_limit(source, size, max_pixels)
        if limit is None:
            return FrameSize(size, (), None)
        name: LimitName = limit[0]
        if name == "max_pixels" and max_pixels < self.pixels.max_pixels:
            name = "max_video_tokens"
        return FrameSize(size, (name,), limit[1])

    def _listed(self, names: tuple[LimitName, ...]) -> str:
        values: dict[LimitName, int | None] = {
            "total_pixels": self.rules.total_pixels,
            "max_tokens": self.rules.max_tokens,
            "context": self.limits.max_visual_tokens,
        }
        return " and ".join(f"{name} {values[name]}" for name in names)

    def _too_long(
        self, source: Size, size: Size, count: int, exceeded: tuple[LimitName, ...]
    ) -> PromptError:
        tokens = self.pixels.tokens_of(size, count)
        if not self.adapts:
            return PromptError(
                "context_too_long",
                f"{count} frames of {size[1]} x {size[0]} pixels are {tokens} visual tokens; the "
                f"model takes {self.limits.max_visual_tokens}: lower the video's max_pixels, "
                "max_frames or fps",
            )
        smallest = self._smallest(source, count)
        return PromptError(
            "context_too_long",
            f"{count} frames of {smallest[1]} x {smallest[0]} pixels, the fewest and smallest that "
            f"are allowed, are {self.pixels.tokens_of(smallest, count)} visual tokens and "
            f"{count * smallest[0] * smallest[1]} pixels; the limit is {self._listed(exceeded)}: "
            "raise it, or lower the video's min_pixels or min_frames",
        )

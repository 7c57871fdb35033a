"""How players show the decoded frames of a video: cropped, upright, with square pixels.

The order is the players': crop the stored frame, make its pixels square, then mirror and turn it.
Nothing here enlarges a frame: the shape of the pixels only changes the size that the resize for the
model starts from, so that one resize does both.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction
from typing import cast

import numpy as np
import numpy.typing as npt
from av.buffer import Buffer
from av.video.frame import VideoFrame

Pixels = npt.NDArray[np.uint8]

_MAX_PIXEL_SHAPE = 10  # of one side of a pixel to the other; beyond it the number is nonsense
_EXACT = 0.9999  # how well a matrix fits an orientation, 1 = exactly
_MATRIX_BYTES = 36  # 3 x 3 numbers, int32
# 10-bit and 12-bit HDR by the transfer characteristics of ITU-T H.273.
_HDR = {16: "PQ", 18: "HLG"}


@dataclass(frozen=True)
class Orientation:
    """One of the eight ways to lay a frame: first transposed, then flipped."""

    transposed: bool = False
    flip_rows: bool = False
    flip_columns: bool = False

    def apply(self, pixels: Pixels) -> Pixels:
        """[H, W, C] -> [H, W, C] or [W, H, C], contiguous."""
        turned = pixels.swapaxes(0, 1) if self.transposed else pixels
        rows, columns = (-1 if flip else 1 for flip in (self.flip_rows, self.flip_columns))
        return np.ascontiguousarray(turned[::rows, ::columns])

    @property
    def note(self) -> str | None:
        """What was done, in words; None for a frame that is stored upright."""
        words = _ORIENTATION_NOTES[self.transposed, self.flip_rows, self.flip_columns]
        return f"{words} (file metadata)" if words else None


# Degrees count counterclockwise.
_ORIENTATION_NOTES = {
    (False, False, False): None,
    (False, False, True): "mirrored left to right",
    (False, True, False): "mirrored top to bottom",
    (False, True, True): "rotated by 180 degrees",
    (True, False, False): "mirrored left to right and rotated by 90 degrees",
    (True, False, True): "rotated by 270 degrees",
    (True, True, False): "rotated by 90 degrees",
    (True, True, True): "mirrored left to right and rotated by 270 degrees",
}
_ORIENTATIONS = [Orientation(*flags) for flags in _ORIENTATION_NOTES]


def frame_orientation(frame: VideoFrame) -> tuple[Orientation, str | None]:
    """Returns the orientation by the frame's display matrix, and a note if it is not exact.

    The matrix is that of the container, or of the stream (H.264 and HEVC display orientation).
    """
    # PyAV's type says that this is a dictionary with other keys; it is a mapping of all side data.
    side_data = cast(Mapping[str, Buffer], frame.side_data)
    if "DISPLAYMATRIX" not in side_data:
        return Orientation(), None
    return matrix_orientation(bytes(side_data["DISPLAYMATRIX"]))


def matrix_orientation(matrix: bytes) -> tuple[Orientation, str | None]:
    """Returns the orientation nearest to a display matrix, and a note if it is not exact.

    matrix: int32 [3, 3] (a b u, c d v, x y w) as FFmpeg has it: the pixel in column p and row q
        is shown in column a*p + c*q + x and row b*p + d*q + y.
    """
    if len(matrix) < _MATRIX_BYTES:
        return Orientation(), None
    numbers = np.frombuffer(matrix[:_MATRIX_BYTES], np.int32).astype(np.float64)
    a, b, c, d = numbers[[0, 1, 3, 4]]
    # What remains without the scale of either axis; a matrix that shows nothing is none.
    column, row = math.hypot(a, c), math.hypot(b, d)
    if not column or not row:
        return Orientation(), "display matrix ignored: it shows nothing"
    a, b, c, d = a / column, b / row, c / column, d / row

    def fit(orientation: Orientation) -> float:
        down, across = (
            -1 if flip else 1 for flip in (orientation.flip_rows, orientation.flip_columns)
        )
        if orientation.transposed:
            return float(across * c + down * b) / 2
        return float(across * a + down * d) / 2

    best = max(_ORIENTATIONS, key=lambda orientation: round(fit(orientation), 6))
    if fit(best) > _EXACT:
        return best, None
    angle = -math.degrees(math.atan2(b, a))
    return best, f"display matrix turns by {angle:.1f} degrees: taken to the nearest quarter"


@dataclass(frozen=True)
class Display:
    """How the frames of one stream are shown, besides their orientation.

    pixel_shape: width of a pixel by its height.
    crop: pixels of the stored frame left out at (left, top, right, bottom), for frames of the
        stored size (height, width) only.
    notes: what the container says and is not used, in words.
    """

    pixel_shape: Fraction = Fraction(1)
    crop: tuple[int, int, int, int] = (0, 0, 0, 0)
    stored: tuple[int, int] = (0, 0)
    notes: tuple[str, ...] = ()

    @classmethod
    def of(
        cls,
        stored: tuple[int, int],
        pixel_shape: Fraction | None,
        crop: tuple[int, int, int, int] = (0, 0, 0, 0),
        notes: tuple[str, ...] = (),
    ) -> "Display":
        """Takes what the file says, and leaves out what makes no sense, with a note.

        pixel_shape: None or 0 if the file has none.
        """
        height, width = stored
        left, top, right, bottom = crop
        if min(crop) < 0 or left + right >= width or top + bottom >= height:
            notes, crop = (*notes, f"cropping {crop} ignored: nothing would be left"), (0, 0, 0, 0)
        if pixel_shape is None or pixel_shape <= 0:
            return cls(Fraction(1), crop, stored, notes)
        if not 1 / _MAX_PIXEL_SHAPE <= pixel_shape <= _MAX_PIXEL_SHAPE:
            shape = f"{pixel_shape.numerator}:{pixel_shape.denominator}"
            return cls(Fraction(1), crop, stored, (*notes, f"pixel shape {shape} ignored"))
        return cls(pixel_shape, crop, stored, notes)

    def cropped(self, pixels: Pixels) -> Pixels:
        """[H, W, C] -> [H, W, C] of what is shown."""
        height, width = pixels.shape[:2]
        if (height, width) != self.stored:
            return pixels
        left, top, right, bottom = self.crop
        return pixels[top : height - bottom, left : width - right]

    def size(self, height: int, width: int) -> tuple[int, int]:
        """Returns the (height, width) in square pixels of a cropped frame; no side gets shorter."""
        if self.pixel_shape >= 1:
            return height, math.floor(width * self.pixel_shape + Fraction(1, 2))
        return math.floor(height / self.pixel_shape + Fraction(1, 2)), width

    @property
    def shown(self) -> tuple[int, int]:
        """The (height, width) in square pixels of a frame of the stored size, before any turn."""
        return self.size(*self._cropped_size)

    @property
    def _cropped_size(self) -> tuple[int, int]:
        left, top, right, bottom = self.crop
        return self.stored[0] - top - bottom, self.stored[1] - left - right

    @property
    def size_notes(self) -> tuple[str, ...]:
        """What was applied, in words."""
        notes: list[str] = []
        if any(self.crop):
            left, top, right, bottom = self.crop
            notes.append(f"cropped by left {left}, top {top}, right {right}, bottom {bottom}")
        if self.shown != self._cropped_size:
            shape = f"{self.pixel_shape.numerator}:{self.pixel_shape.denominator}"
            notes.append(f"pixels of {shape} made square")
        return tuple(notes)


def rgb_pixels(frame: VideoFrame) -> tuple[Pixels, bool]:
    """Returns uint8 [H, W, 3], and whether transparency was laid over white.

    Raises what FFmpeg raises.
    """
    has_alpha = frame.format.has_palette or any(
        component.is_alpha for component in frame.format.components
    )
    # By default PyAV starts a thread per core for every frame.
    if not has_alpha:
        return np.asarray(frame.to_ndarray(format="rgb24", threads=1), np.uint8), False
    rgba = np.asarray(frame.to_ndarray(format="rgba", threads=1), np.uint8)
    if rgba[..., 3].min() == 255:
        return np.ascontiguousarray(rgba[..., :3]), False
    alpha = rgba[..., 3:].astype(np.uint16)
    blended = (rgba[..., :3] * alpha + 255 * (255 - alpha) + 127) // 255
    return blended.astype(np.uint8), True


def frame_notes(frame: VideoFrame) -> list[str]:
    """Returns what a frame says about itself that is not used, in words."""
    notes: list[str] = []
    if (transfer := _HDR.get(int(frame.color_trc))) is not None:
        notes.append(f"HDR ({transfer}): shown without tone mapping")
    if frame.interlaced_frame:
        notes.append("interlaced: both fields shown in one frame")
    return notes

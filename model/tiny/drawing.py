"""Draws backgrounds, shapes and words on pictures."""

from functools import cache

import numpy as np
from PIL import Image, ImageDraw, ImageFont

Colour = tuple[int, int, int]

COLOURS: dict[str, Colour] = {
    "red": (214, 40, 44),
    "orange": (244, 136, 32),
    "yellow": (246, 214, 48),
    "green": (44, 156, 76),
    "blue": (42, 92, 214),
    "purple": (132, 56, 176),
    "pink": (246, 132, 186),
    "black": (28, 28, 32),
}
SHAPES = ("circle", "square", "triangle", "star", "cross")


def draw_background(rng: np.random.Generator, width: int, height: int) -> np.ndarray:
    """Returns a light background, plain, graded or grainy: uint8 [height, width, 3]."""
    base = rng.uniform(208, 250) + rng.uniform(-10, 10, 3)
    style = rng.integers(3)
    if style == 0:
        return np.broadcast_to(np.clip(base, 0, 255).astype(np.uint8), (height, width, 3)).copy()
    if style == 1:
        slope = rng.uniform(-28, 28, 3)
        is_horizontal = bool(rng.integers(2))
        axis = np.linspace(-0.5, 0.5, width if is_horizontal else height)
        axis = axis[None, :] if is_horizontal else axis[:, None]
        shaded = base + np.broadcast_to(axis, (height, width))[..., None] * slope
        return np.clip(shaded, 0, 255).astype(np.uint8)
    # Grain in cells of about 1/80 of the side, so that it survives the model's small pictures.
    cell = max(1, round((width * height) ** 0.5 / 80))
    rows, columns = -(-height // cell), -(-width // cell)
    noise = rng.normal(0, rng.uniform(3, 11), (rows, columns, 1))
    grain = np.clip(base + noise, 0, 255).astype(np.uint8)
    return np.ascontiguousarray(grain.repeat(cell, 0).repeat(cell, 1)[:height, :width])


def draw_shape(
    canvas: Image.Image, shape: str, x: float, y: float, radius: float, tilt: float, fill: Colour
) -> None:
    """Draws a filled shape around (x, y), in pixels, rotated by `tilt` degrees.

    `radius` is scaled so that all shapes look equally large.
    """
    draw = ImageDraw.Draw(canvas)
    if shape == "circle":
        radius *= 0.95
        draw.ellipse((x - radius, y - radius, x + radius, y + radius), fill=fill)
        return
    angles, radii = _outline(shape)
    rotated = np.radians(angles + tilt)
    points = np.stack(
        (x + radius * radii * np.sin(rotated), y - radius * radii * np.cos(rotated)), axis=1
    )
    draw.polygon([(float(px), float(py)) for px, py in points], fill=fill)


@cache
def _outline(shape: str) -> tuple[np.ndarray, np.ndarray]:
    """Returns the corners' angles (degrees, clockwise from the top) and distances (in radii)."""
    if shape == "square":
        return np.array([45.0, 135, 225, 315]), np.full(4, 1.16)
    if shape == "triangle":
        return np.array([0.0, 120, 240]), np.full(3, 1.18)
    if shape == "star":
        return np.arange(10) * 36.0, np.tile([1.18, 0.47], 5)
    arm, half = 1.05, 0.36
    corner, inner = np.hypot(arm, half), np.hypot(half, half)
    spread = np.degrees(np.arctan2(half, arm))
    angles = np.concatenate(
        [[90.0 * k - spread, 90.0 * k + spread, 90.0 * k + 45] for k in range(4)]
    )
    return angles, np.tile([corner, corner, inner], 4)


def draw_word(
    canvas: Image.Image, word: str, x: float, y: float, half_width: float, fill: Colour
) -> None:
    """Draws a word around (x, y), 2 * half_width pixels wide."""
    width_at_64 = _font(64).getlength(word)
    font = _font(max(6, round(64 * 2 * half_width / width_at_64)))
    ImageDraw.Draw(canvas).text((x, y), word, font=font, fill=fill, anchor="mm")


@cache
def _font(size: int) -> ImageFont.FreeTypeFont:
    # This font is part of Pillow's wheel, so a word looks the same on every machine.
    font = ImageFont.load_default(size)
    assert isinstance(font, ImageFont.FreeTypeFont), "Pillow was built without FreeType"
    return font


def downsample(canvas: Image.Image, width: int, height: int) -> np.ndarray:
    """Returns the canvas resized to width x height: uint8 [height, width, 3]."""
    if canvas.size != (width, height):
        canvas = canvas.resize((width, height), Image.Resampling.LANCZOS)
    return np.asarray(canvas)

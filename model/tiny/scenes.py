"""Draws labelled scenes and clips: the whole world that the embedded model knows.

Turns a random generator into pictures with exactly one right caption. Lengths are fractions of
sqrt(width * height), so that a scene looks the same at any resolution. It does not know tokens or
files.
"""

from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

import numpy as np
from PIL import Image

from mediamill.model.tiny.drawing import (
    COLOURS,
    SHAPES,
    paint_ground,
    paint_shape,
    paint_word,
    shrink,
)

Kind = Literal["one", "two", "three", "word", "clip"]
KINDS: tuple[Kind, ...] = ("one", "two", "three", "word", "clip")
SIZES = ("small", "large")
MOTIONS = ("moving left", "moving right", "moving up", "moving down", "growing", "shrinking")
WORDS = ("open", "sale", "stop", "exit", "taxi", "milk", "fish", "park")

# A clip's caption names the colour first, and every caption of this world begins with "a" or "the".
CLIP_COLOURS = tuple(colour for colour in COLOURS if colour != "orange")
# Thin strokes of the lightest colours vanish on a light ground.
WORD_COLOURS = tuple(c for c in COLOURS if c not in ("yellow", "pink", "orange"))
# Radii of a small and of a large shape. The gap between them keeps the label certain.
RADII = {"small": (0.12, 0.145), "large": (0.215, 0.26)}


@dataclass(frozen=True)
class SceneObject:
    """One labelled object. `path` holds (x, y, radius) in pixels for each frame; a word has its
    box's half width as radius.
    """

    path: tuple[tuple[float, float, float], ...]
    colour: str
    shape: str | None = None
    size: str | None = None
    motion: str | None = None
    word: str | None = None

    @property
    def tags(self) -> tuple[str, ...]:
        """Every label that holds of this object."""
        return tuple(t for t in (self.colour, self.shape, self.size, self.motion, self.word) if t)


@dataclass(frozen=True)
class Scene:
    """frames: uint8 [H, W, 3] each, one for a picture, in time order for a clip."""

    kind: Kind
    frames: tuple[np.ndarray, ...]
    caption: str
    things: tuple[SceneObject, ...]


def draw_picture(
    rng: np.random.Generator, kind: Kind, width: int, height: int, supersample: int = 1
) -> Scene:
    """A picture of `kind` (not "clip"), width x height pixels, painted `supersample` times larger
    for smooth edges.
    """
    unit = (width * height) ** 0.5
    if kind == "word":
        things, caption = _word(rng, width / unit, height / unit)
    else:
        things, caption = _shapes(
            rng, {"one": 1, "two": 2, "three": 3}[kind], width / unit, height / unit
        )
    things = tuple(_scaled(thing, unit) for thing in things)
    return Scene(kind, _paint(rng, things, 1, width, height, supersample), caption, things)


def draw_clip(
    rng: np.random.Generator, width: int, height: int, frames: int, supersample: int = 1
) -> Scene:
    """A clip of `frames` frames in which one shape moves, grows or shrinks; each frame width x
    height pixels.

    Frame i shows the moment i / frames, so that any even subset shows the same motion.
    """
    unit = (width * height) ** 0.5
    right, bottom = width / unit, height / unit
    motion, shape = str(rng.choice(MOTIONS)), str(rng.choice(SHAPES))
    colour = str(rng.choice(CLIP_COLOURS))
    moments = np.arange(frames) / frames
    if motion in ("growing", "shrinking"):
        few, many = rng.uniform(0.11, 0.14), rng.uniform(0.27, 0.34)
        start, end = (few, many) if motion == "growing" else (many, few)
        x, y = rng.uniform(many, right - many), rng.uniform(many, bottom - many)
        path = [(x, y, start + (end - start) * m) for m in moments]
    else:
        radius = rng.uniform(0.14, 0.2)
        along, across = (
            (right, bottom) if motion in ("moving left", "moving right") else (bottom, right)
        )
        travel = rng.uniform(0.65, 0.95) * (along - 2 * radius)
        first = rng.uniform(radius, along - radius - travel)
        other = rng.uniform(radius, across - radius)
        steps = first + travel * (
            moments if motion in ("moving right", "moving down") else 1 - moments
        )
        path = [
            (s, other, radius)
            if along is right and motion in ("moving left", "moving right")
            else (other, s, radius)
            for s in steps
        ]
    thing = _scaled(SceneObject(tuple(path), colour, shape, motion=motion), unit)
    pictures = _paint(rng, (thing,), frames, width, height, supersample)
    return Scene("clip", pictures, f"a {colour} {shape} {motion}", (thing,))


def _shapes(
    rng: np.random.Generator, count: int, right: float, bottom: float
) -> tuple[tuple[SceneObject, ...], str]:
    """`count` distinct shapes that do not touch, and their caption; coordinates in units."""
    looks = [(c, s) for c in COLOURS for s in SHAPES]
    chosen = [looks[i] for i in rng.choice(len(looks), size=count, replace=False)]
    while True:
        sizes = [str(s) for s in rng.choice(SIZES, size=count)]
        # Three shapes of which two are large do not fit beside each other.
        if count == 3 and sizes.count("large") > 1:
            continue
        relation = str(rng.choice(("left of", "above"))) if count == 2 else "left of"
        spots = _place(rng, sizes, relation, right, bottom)
        if spots:
            break
    things = tuple(
        SceneObject((spot,), colour, shape, size)
        for spot, (colour, shape), size in zip(spots, chosen, sizes, strict=True)
    )
    names = [f"a {t.size} {t.colour} {t.shape}" for t in things]
    if count == 3:
        return things, f"{names[0]}, {names[1]} and {names[2]}"
    return things, f" {relation} ".join(names)


def _place(
    rng: np.random.Generator, sizes: list[str], relation: str, right: float, bottom: float
) -> list[tuple[float, float, float]] | None:
    """Centres and radii in reading order along `relation`, or None when thirty tries did not
    fit.
    """
    for _ in range(30):
        spots = []
        for size in sizes:
            radius = rng.uniform(*RADII[size])
            margin = 1.15 * radius
            spots.append(
                (rng.uniform(margin, right - margin), rng.uniform(margin, bottom - margin), radius)
            )
        along, across = (0, 1) if relation == "left of" else (1, 0)
        order = [spot[along] for spot in spots]
        if order != sorted(order):
            continue
        if all(_clear(a, b, along, across, len(sizes)) for a, b in pairwise(spots)) and (
            len(spots) < 3 or _apart(spots[0], spots[2])
        ):
            return spots
    return None


def _apart(a: tuple[float, float, float], b: tuple[float, float, float]) -> bool:
    return bool(np.hypot(a[0] - b[0], a[1] - b[1]) > 1.12 * (a[2] + b[2]))


def _clear(
    a: tuple[float, float, float],
    b: tuple[float, float, float],
    along: int,
    across: int,
    count: int,
) -> bool:
    """Whether nobody could doubt the relation: for two shapes one axis dominates, for three the
    order shows.
    """
    gap, drift = b[along] - a[along], abs(b[across] - a[across])
    return _apart(a, b) and (gap > 1.6 * drift if count == 2 else gap > 0.17)


def _word(
    rng: np.random.Generator, right: float, bottom: float
) -> tuple[tuple[SceneObject, ...], str]:
    word = str(rng.choice(WORDS))
    colour = str(rng.choice(WORD_COLOURS))
    half = rng.uniform(0.36, 0.44) * right
    x, y = rng.uniform(half, right - half), bottom * rng.uniform(0.3, 0.7)
    return (SceneObject(((x, y, half),), colour, word=word),), f"the word {word}"


def _scaled(thing: SceneObject, unit: float) -> SceneObject:
    path = tuple((x * unit, y * unit, r * unit) for x, y, r in thing.path)
    return SceneObject(path, thing.colour, thing.shape, thing.size, thing.motion, thing.word)


def _paint(
    rng: np.random.Generator,
    things: tuple[SceneObject, ...],
    frames: int,
    width: int,
    height: int,
    scale: int,
) -> tuple[np.ndarray, ...]:
    ground = paint_ground(rng, width * scale, height * scale)
    tints = [np.clip(np.array(COLOURS[t.colour]) + rng.uniform(-14, 14, 3), 0, 255) for t in things]
    tilts = [float(rng.uniform(-9, 9)) for _ in things]
    pictures = []
    for frame in range(frames):
        canvas = Image.fromarray(ground)
        for thing, tint, tilt in zip(things, tints, tilts, strict=True):
            x, y, radius = (value * scale for value in thing.path[frame])
            fill = (int(tint[0]), int(tint[1]), int(tint[2]))
            if thing.word:
                paint_word(canvas, thing.word, x, y, radius, fill)
            else:
                assert thing.shape
                paint_shape(canvas, thing.shape, x, y, radius, tilt, fill)
        pictures.append(shrink(canvas, width, height))
    return tuple(pictures)

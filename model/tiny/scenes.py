"""Draws the synthetic scenes of the embedded model: pictures and clips with their captions.

Every scene has exactly one right caption. Lengths are fractions of sqrt(width * height), so that a
scene looks the same at any resolution.
"""

from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Literal

import numpy as np
from PIL import Image

from mediamill.model.tiny.drawing import (
    COLOURS,
    SHAPES,
    downsample,
    draw_background,
    draw_shape,
    draw_word,
)

Kind = Literal["one", "two", "three", "word", "clip"]
KINDS: tuple[Kind, ...] = ("one", "two", "three", "word", "clip")
SIZES = ("small", "large")
MOTIONS = ("moving left", "moving right", "moving up", "moving down", "growing", "shrinking")
WORDS = ("open", "sale", "stop", "exit", "taxi", "milk", "fish", "park")
TAGS = (*COLOURS, *SHAPES, *SIZES, *MOTIONS, *WORDS)

# A clip's caption names the colour first, and every caption begins with "a" or "the".
CLIP_COLOURS = tuple(colour for colour in COLOURS if colour != "orange")
# Thin strokes of the lightest colours vanish on a light ground.
WORD_COLOURS = tuple(c for c in COLOURS if c not in ("yellow", "pink", "orange"))
# Radii of a small and of a large shape, far enough apart to be distinguished.
RADII = {"small": (0.12, 0.145), "large": (0.215, 0.26)}


@dataclass(frozen=True)
class SceneObject:
    """One labelled object of a scene: a shape or a word.

    path: (x, y, radius) in pixels for each frame; the radius of a word is half its width.
    """

    path: tuple[tuple[float, float, float], ...]
    colour: str
    shape: str | None = None
    size: str | None = None
    motion: str | None = None
    word: str | None = None

    @property
    def tags(self) -> tuple[str, ...]:
        """All labels of the object."""
        labels = (self.colour, self.shape, self.size, self.motion, self.word)
        return tuple(label for label in labels if label)


@dataclass(frozen=True)
class Scene:
    """A picture or clip with its labels.

    frames: uint8 [H, W, 3] each; one for a picture, those of a clip in order.
    """

    kind: Kind
    frames: tuple[np.ndarray, ...]
    caption: str
    objects: tuple[SceneObject, ...]


def draw_picture(
    rng: np.random.Generator, kind: Kind, width: int, height: int, supersample: int = 1
) -> Scene:
    """Draws a picture of a kind other than "clip", of width x height pixels.

    supersample: it is drawn so many times larger and resized, for smooth edges.
    """
    unit = (width * height) ** 0.5
    right, bottom = width / unit, height / unit
    if kind == "word":
        objects, caption = _word(rng, right, bottom)
    else:
        objects, caption = _shapes(rng, {"one": 1, "two": 2, "three": 3}[kind], right, bottom)
    objects = tuple(_scaled(scene_object, unit) for scene_object in objects)
    return Scene(kind, _render(rng, objects, 1, width, height, supersample), caption, objects)


def draw_clip(
    rng: np.random.Generator, width: int, height: int, frames: int, supersample: int = 1
) -> Scene:
    """Draws a clip in which one shape moves, grows or shrinks, of width x height pixels.

    Frame i shows the moment i / frames, so that evenly sampled frames show the same motion.
    """
    unit = (width * height) ** 0.5
    right, bottom = width / unit, height / unit
    motion, shape = str(rng.choice(MOTIONS)), str(rng.choice(SHAPES))
    colour = str(rng.choice(CLIP_COLOURS))
    moments = np.arange(frames) / frames
    if motion in ("growing", "shrinking"):
        small, large = rng.uniform(0.11, 0.14), rng.uniform(0.27, 0.34)
        start, end = (small, large) if motion == "growing" else (large, small)
        x, y = rng.uniform(large, right - large), rng.uniform(large, bottom - large)
        path = [(x, y, start + (end - start) * moment) for moment in moments]
    else:
        radius = rng.uniform(0.14, 0.2)
        is_horizontal = motion in ("moving left", "moving right")
        along, across = (right, bottom) if is_horizontal else (bottom, right)
        travel = rng.uniform(0.65, 0.95) * (along - 2 * radius)
        first = rng.uniform(radius, along - radius - travel)
        fixed = rng.uniform(radius, across - radius)
        is_forward = motion in ("moving right", "moving down")
        path = [
            (step, fixed, radius) if is_horizontal else (fixed, step, radius)
            for step in first + travel * (moments if is_forward else 1 - moments)
        ]
    scene_object = _scaled(SceneObject(tuple(path), colour, shape, motion=motion), unit)
    pictures = _render(rng, (scene_object,), frames, width, height, supersample)
    return Scene("clip", pictures, f"a {colour} {shape} {motion}", (scene_object,))


def _shapes(
    rng: np.random.Generator, count: int, right: float, bottom: float
) -> tuple[tuple[SceneObject, ...], str]:
    """Returns `count` distinct shapes that do not touch, in relative units, and their caption."""
    pairs = [(colour, shape) for colour in COLOURS for shape in SHAPES]
    chosen = [pairs[index] for index in rng.choice(len(pairs), size=count, replace=False)]
    while True:
        sizes = [str(size) for size in rng.choice(SIZES, size=count)]
        # Three shapes, two of them large, do not fit into a picture.
        if count == 3 and sizes.count("large") > 1:
            continue
        relation = str(rng.choice(("left of", "above"))) if count == 2 else "left of"
        places = _arrange(rng, sizes, relation, right, bottom)
        if places:
            break
    objects = tuple(
        SceneObject((place,), colour, shape, size)
        for place, (colour, shape), size in zip(places, chosen, sizes, strict=True)
    )
    names = [f"a {shape.size} {shape.colour} {shape.shape}" for shape in objects]
    if count == 3:
        return objects, f"{names[0]}, {names[1]} and {names[2]}"
    return objects, f" {relation} ".join(names)


def _arrange(
    rng: np.random.Generator, sizes: list[str], relation: str, right: float, bottom: float
) -> list[tuple[float, float, float]] | None:
    """Returns (x, y, radius) of each shape, in the order of the relation.

    None if thirty attempts did not fit.
    """
    for _ in range(30):
        places = []
        for size in sizes:
            radius = rng.uniform(*RADII[size])
            margin = 1.15 * radius
            places.append(
                (rng.uniform(margin, right - margin), rng.uniform(margin, bottom - margin), radius)
            )
        along, across = (0, 1) if relation == "left of" else (1, 0)
        order = [place[along] for place in places]
        if order != sorted(order):
            continue
        if all(_is_unambiguous(a, b, along, across, len(sizes)) for a, b in pairwise(places)) and (
            len(places) < 3 or _do_not_touch(places[0], places[2])
        ):
            return places
    return None


def _do_not_touch(a: tuple[float, float, float], b: tuple[float, float, float]) -> bool:
    return bool(np.hypot(a[0] - b[0], a[1] - b[1]) > 1.12 * (a[2] + b[2]))


def _is_unambiguous(
    a: tuple[float, float, float],
    b: tuple[float, float, float],
    along: int,
    across: int,
    count: int,
) -> bool:
    """Whether the relation of two neighbours is clear.

    Of two shapes, the distance along the axis has to be the larger one; of three, it has to show.
    """
    gap, drift = b[along] - a[along], abs(b[across] - a[across])
    return _do_not_touch(a, b) and (gap > 1.6 * drift if count == 2 else gap > 0.17)


def _word(
    rng: np.random.Generator, right: float, bottom: float
) -> tuple[tuple[SceneObject, ...], str]:
    word = str(rng.choice(WORDS))
    colour = str(rng.choice(WORD_COLOURS))
    half_width = rng.uniform(0.36, 0.44) * right
    x, y = rng.uniform(half_width, right - half_width), bottom * rng.uniform(0.3, 0.7)
    return (SceneObject(((x, y, half_width),), colour, word=word),), f"the word {word}"


def _scaled(scene_object: SceneObject, unit: float) -> SceneObject:
    path = tuple((x * unit, y * unit, r * unit) for x, y, r in scene_object.path)
    return replace(scene_object, path=path)


def _render(
    rng: np.random.Generator,
    objects: tuple[SceneObject, ...],
    frames: int,
    width: int,
    height: int,
    scale: int,
) -> tuple[np.ndarray, ...]:
    background = draw_background(rng, width * scale, height * scale)
    colours = [np.array(COLOURS[item.colour]) for item in objects]
    tints = [np.clip(colour + rng.uniform(-14, 14, 3), 0, 255) for colour in colours]
    tilts = [float(rng.uniform(-9, 9)) for _ in objects]
    pictures = []
    for frame in range(frames):
        canvas = Image.fromarray(background)
        for scene_object, tint, tilt in zip(objects, tints, tilts, strict=True):
            x, y, radius = (value * scale for value in scene_object.path[frame])
            fill = (int(tint[0]), int(tint[1]), int(tint[2]))
            if scene_object.word:
                draw_word(canvas, scene_object.word, x, y, radius, fill)
            else:
                assert scene_object.shape
                draw_shape(canvas, scene_object.shape, x, y, radius, tilt, fill)
        pictures.append(downsample(canvas, width, height))
    return tuple(pictures)

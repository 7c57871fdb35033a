"""Measures the detection of scene cuts: `python -m benchmarks.scene_cuts`.

The films are joined clips of the embedded world, and drawn films with known cuts: pictures of noise
and colour, with still, panning and shaking views, flashes and fades. A cut counts as found if a
detected one is within a frame of it, for fades within six.
"""

import functools
import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from mediamill.model.media.scene_cuts import SceneRules, scene_cuts
from mediamill.model.tiny.encode import CLIP_RATE, clip_bytes
from mediamill.model.tiny.scenes import draw_clip
from tests import media

RATE = 25
SIZE = (180, 320)


@dataclass(frozen=True)
class Film:
    """A file, and the frames at which its scenes begin, without the first one's 0.

    within: how many frames a detected cut may be away.
    """

    name: str
    data: bytes
    cuts: tuple[int, ...]
    rate: int
    within: int = 1


@dataclass(frozen=True)
class Score:
    """The numbers of true cuts, of detected cuts, and of correctly detected ones."""

    cuts: int
    detected: int
    right: int

    @property
    def recall(self) -> float:
        return self.right / self.cuts if self.cuts else 1.0

    @property
    def precision(self) -> float:
        return self.right / self.detected if self.detected else 1.0


def score(film: Film, rules: SceneRules | None = None) -> Score:
    """Matches each cut with at most one detected cut."""
    detected = [at * film.rate for at in scene_cuts(film.data, rules)]
    left = list(detected)
    right = 0
    for cut in film.cuts:
        near = [one for one in left if abs(one - cut) <= film.within + 1e-6]
        if near:
            right += 1
            left.remove(min(near, key=lambda one: abs(one - cut)))
    return Score(len(film.cuts), len(detected), right)


@functools.cache
def embedded_world(seed: int = 0, clips: int = 24) -> Film:
    """Returns joined clips of the embedded world, each with one moving shape."""
    rng = np.random.default_rng(seed)
    scenes = [
        draw_clip(rng, 288, 288, int(rng.choice((2, 3, 4))) * CLIP_RATE) for _ in range(clips)
    ]
    frames = tuple(frame for scene in scenes for frame in scene.frames)
    cuts = _cuts([len(scene.frames) for scene in scenes])
    return Film(f"embedded world {seed}", clip_bytes(frames), cuts, CLIP_RATE)


def _cuts(lengths: Sequence[int]) -> tuple[int, ...]:
    return tuple(int(at) for at in np.cumsum(lengths)[:-1])


def _picture(rng: np.random.Generator) -> np.ndarray:
    """Returns uint8 [H + 60, W + 120, 3], photo-like: structure of all sizes, in a few colours."""
    height, width = SIZE[0] + 60, SIZE[1] + 120
    ground = np.zeros((height, width, 3), np.float32)
    for cells in (2, 4, 9, 20, 60):
        tiles = rng.normal(0, 1, (cells, cells * 2, 3)).astype(np.float32)
        rows = np.arange(height) * cells // height
        columns = np.arange(width) * cells * 2 // width
        ground += tiles[rows][:, columns] * 34 / cells**0.4
    return np.clip(ground + rng.uniform(50, 200, 3), 0, 255).astype(np.uint8)


def _scene(rng: np.random.Generator, count: int, motion: str) -> list[np.ndarray]:
    """Returns frames of one picture and an object; the camera stands, pans or shakes."""
    picture = _picture(rng)
    colour = rng.integers(0, 256, 3)
    frames = []
    for index in range(count):
        share = index / count
        x, y = {
            "still": (60, 30),
            "pan": (int(110 * share), int(50 * share)),
            "shake": (60 + int(rng.integers(-6, 7)), 30 + int(rng.integers(-6, 7))),
        }[motion]
        frame = picture[y : y + SIZE[0], x : x + SIZE[1]].copy()
        left = int(share * (SIZE[1] - 80))
        frame[60:120, left : left + 80] = colour
        noise = rng.integers(-6, 7, frame.shape)
        frames.append(np.clip(frame + noise, 0, 255).astype(np.uint8))
    return frames


def _film(name: str, scenes: Sequence[list[np.ndarray]], within: int = 1) -> Film:
    frames = [frame for scene in scenes for frame in scene]
    options = {"preset": "veryfast", "crf": "26"}
    data = media.video(frames, rate=RATE, options=options)
    return Film(name, data, _cuts([len(scene) for scene in scenes]), RATE, within)


@functools.cache
def films(seed: int = 0, scenes: int = 10) -> tuple[Film, ...]:
    """Returns the drawn films."""
    rng = np.random.default_rng(seed)

    def some(motion: str) -> list[list[np.ndarray]]:
        return [_scene(rng, int(rng.integers(20, 60)), motion) for _ in range(scenes)]

    drawn = [_film(motion, some(motion)) for motion in ("still", "pan", "shake")]
    flashes = some("pan")
    for scene in flashes:
        at = len(scene) // 2
        for index in range(at, at + int(rng.integers(1, 4))):
            scene[index] = np.clip(scene[index].astype(np.int16) + 160, 0, 255).astype(np.uint8)
    drawn.append(_film("flashes", flashes))
    fades = some("still")
    for scene in fades:
        for index in range(8):
            for at in (index, -1 - index):
                scene[at] = (scene[at] * (index / 8)).astype(np.uint8)
    drawn.append(_film("fades", fades, within=6))
    return tuple(drawn)


def main() -> None:
    print(
        f"{'film':20} {'cuts':>5} {'det.':>5} {'right':>5} {'recall':>7} {'precision':>9} {'s':>6}"
    )
    for seed in range(3):
        for film in (embedded_world(seed), *films(seed)):
            start = time.perf_counter()
            found = score(film)
            spent = time.perf_counter() - start
            print(
                f"{film.name:20} {found.cuts:5} {found.detected:5} {found.right:5} "
                f"{found.recall:7.3f} {found.precision:9.3f} {spent:6.2f}"
            )


if __name__ == "__main__":
    main()

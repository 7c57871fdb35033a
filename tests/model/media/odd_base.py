"""What odd picture files show, and the pixels that they are drawn from."""

from dataclasses import dataclass

import numpy as np
from PIL import Image

from tests import media

HEIGHT, WIDTH = 20, 28
RGB = media.draw(HEIGHT, WIDTH, seed=5)
GREY = RGB[..., 1].copy()
ALPHA = np.where(np.arange(WIDTH) < 9, 0, 255)[None].repeat(HEIGHT, 0).astype(np.uint8)


@dataclass(frozen=True)
class Odd:
    """A file. seen: uint8 [H, W] or [H, W, 3]. note: words of one of the receipt's notes.

    levels: by which a pixel may differ.
    """

    data: bytes
    seen: np.ndarray
    note: str | None = None
    levels: int = 0


def over_white(colour: np.ndarray, alpha: np.ndarray = ALPHA) -> np.ndarray:
    colour = colour if colour.ndim == 3 else np.repeat(colour[..., None], 3, 2)
    return np.where(alpha[..., None] == 0, 255, colour).astype(np.uint8)


def encoded(pixels: np.ndarray, form: str, mode: str | None = None, **options: object) -> bytes:
    picture = Image.fromarray(pixels)
    return media.encode(picture.convert(mode) if mode else picture, form, **options)

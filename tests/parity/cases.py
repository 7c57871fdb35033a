"""Makes case n of the parity suite from a seed: a chat, its files and how they are sampled."""

from dataclasses import dataclass
from typing import Any

import numpy as np

from tests.parity.drawn import PICTURES, VIDEOS

WORDS = (
    *("What is shown here?", "Describe the picture .", "How many", "shapes", "of which colour?"),
    *(
        "“Zitat”",
        "–",
        "漢字",
        "🙂",
        "naïve",
        "café\n\nList:\t1)",
        "don't",
        "we'll",
        "I'm",
        "1234567",
    ),
    *("<br>", "|", "  ", "\n", "e\u0301", "im_start"),
)


@dataclass(frozen=True)
class Medium:
    """kind: "image" or "video". name: what it was drawn as. data: the file."""

    kind: str
    name: str
    data: bytes


@dataclass(frozen=True)
class Case:
    """messages: with a part {"type": kind} for each of `media`, in order.

    sampling: the reference's own arguments for videos (fps or num_frames, min_frames, max_frames).
    limits: min and max pixels of pictures and of frames; None = as the checkpoint says.
    penalty: for repetitions, in generation.
    """

    messages: list[dict[str, Any]]
    media: tuple[Medium, ...]
    add_vision_id: bool
    sampling: dict[str, Any]
    limits: tuple[int, int] | None
    penalty: float

    @property
    def title(self) -> str:
        return " + ".join(medium.name for medium in self.media) or "text"


def case(seed: int, number: int) -> Case:
    """Returns case `number`; the same seed gives the same case. All kinds of file occur in turn."""
    rng = np.random.default_rng([seed, number])
    media: list[Medium] = []

    def medium(kind: str, turn: int | None = None) -> dict[str, Any]:
        kinds = PICTURES if kind == "image" else VIDEOS
        name = list(kinds)[(rng.integers(len(kinds)) if turn is None else turn) % len(kinds)]
        media.append(Medium(kind, name, kinds[name](rng)))
        return {"type": kind}

    # The first medium runs through all kinds in turn; the rest of the chat is random.
    first_medium = (
        medium("video", number // 3)
        if number % 3 == 2
        else medium("image", number // 3 * 2 + number % 3)
    )
    first = (
        [first_medium, _text(rng)] if rng.random() < 0.8 else [_text(rng), first_medium, _text(rng)]
    )
    messages: list[dict[str, Any]] = []
    if rng.random() < 0.4:
        messages.append({"role": "system", "content": _words(rng)})
    if rng.random() < 0.08:  # text alone
        media.clear()
        first = [_text(rng)]
    messages.append({"role": "user", "content": first})
    for _ in range(int(rng.choice([0, 0, 1, 2]))):
        messages.append({"role": "assistant", "content": _words(rng)})
        more = [
            medium("video" if rng.random() < 0.3 else "image") for _ in range(rng.integers(0, 3))
        ]
        messages.append({"role": "user", "content": [*more, _text(rng)]})
    return Case(
        messages=messages,
        media=tuple(media),
        add_vision_id=bool(rng.random() < 0.3),
        sampling=_sampling(rng),
        limits=None
        if rng.random() < 0.6
        else (784 * int(rng.integers(1, 9)), 784 * int(rng.integers(9, 40))),
        penalty=float(rng.choice([1.0, 1.0, 1.05, 1.3])),
    )


def _words(rng: np.random.Generator) -> str:
    return " ".join(WORDS[i] for i in rng.integers(0, len(WORDS), int(rng.integers(1, 12))))


def _text(rng: np.random.Generator) -> dict[str, Any]:
    return {"type": "text", "text": _words(rng)}


def _sampling(rng: np.random.Generator) -> dict[str, Any]:
    match int(rng.integers(4)):
        case 0:
            return {"num_frames": int(rng.integers(2, 7))}
        case 1:
            return {
                "fps": float(rng.choice([0.5, 1.0, 3.7, 8.0])),
                "max_frames": int(rng.integers(4, 13)),
            }
        case 2:
            return {"fps": 2.0, "min_frames": int(rng.integers(2, 9)), "max_frames": 12}
        case _:
            return {"fps": 2.0, "max_frames": 10}

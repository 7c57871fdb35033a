"""Rows to score: drawn pictures and clips with the true text among four that are wrong."""

import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from mediamill.jobs.demo.drawn_media import draw
from mediamill.model.tiny.drawing import COLOURS, SHAPES
from mediamill.model.tiny.questions import NUMBERS
from mediamill.model.tiny.scenes import MOTIONS, SIZES, WORDS

_KINDS: tuple[Sequence[str], ...] = (
    tuple(COLOURS),
    tuple(SHAPES),
    SIZES,
    WORDS,
    ("left of", "above"),
    MOTIONS,
)


def drawn_rows(folder: Path, pictures: int, clips: int) -> list[dict[str, Any]]:
    """For each drawn picture and clip: `easy`, the captions of other scenes of its kind; `hard`,
    its own with one word changed; `question`, the answers that a question has.

    Ids are NAME/easy and so on; `truth` is in `texts`, at any place.
    """
    draw(folder, pictures, clips)
    found = pq.read_table(folder / "manifest").to_pylist()
    scenes = [row for row in found if row["truth"] is not None]
    rng = random.Random(4)
    rows = []
    for scene in scenes:
        truth, kind = scene["truth"], scene["kind"]
        others = {one["truth"] for one in scenes if one["kind"] == kind} - {truth}
        prompt = "Describe the video." if kind == "clip" else "Describe the picture."
        rows.append(_row(scene, "easy", prompt, truth, sorted(others), rng))
        rows.append(_row(scene, "hard", prompt, truth, one_word_changed(truth), rng))
        if kind == "word":
            word = truth.rpartition(" ")[2]
            rows.append(_row(scene, "question", "What does it say?", word, WORDS, rng))
        elif kind in ("one", "two", "three"):
            number = NUMBERS[("one", "two", "three").index(kind) + 1]
            numbers = list(NUMBERS.values())
            rows.append(_row(scene, "question", "How many shapes are there?", number, numbers, rng))
    return rows


def one_word_changed(caption: str) -> list[str]:
    """All captions that differ in one word of the world: a colour, a shape, a relation."""
    changed = set()
    for kind in _KINDS:
        for word in kind:
            for other in kind:
                at = caption.find(word)
                while at >= 0:
                    changed.add(caption[:at] + other + caption[at + len(word) :])
                    at = caption.find(word, at + 1)
    return sorted(changed - {caption})


def _row(
    scene: dict[str, Any],
    name: str,
    prompt: str,
    truth: str,
    others: Sequence[str],
    rng: random.Random,
) -> dict[str, Any]:
    wrong = [one for one in others if one != truth]
    texts = [truth, *rng.sample(wrong, min(4, len(wrong)))]
    rng.shuffle(texts)
    return {
        "id": f"{scene['id']}/{name}",
        "uri": scene["uri"],
        "prompt": prompt,
        "truth": truth,
        "texts": texts,
    }

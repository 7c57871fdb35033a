"""Asks questions about scenes: turns a scene into a prompt and its one right answer.

Only questions with exactly one answer are asked: of two red shapes none is "the red shape".
"""

from collections import Counter

import numpy as np

from mediamill.model.tiny.scenes import Scene, SceneObject

CAPTION_PROMPTS = (
    "Describe the picture.",
    "Describe this picture.",
    "Describe the image.",
    "Describe this image.",
    "What is in the picture?",
    "What is in this image?",
    "Caption this image.",
    "Write a caption.",
)
CLIP_PROMPTS = (
    "Describe the picture.",
    "Describe this image.",
    "Describe the video.",
    "Describe this video.",
    "Describe the clip.",
    "What happens in the video?",
    "Caption this video.",
    "Write a caption.",
)
NUMBERS = {1: "one", 2: "two", 3: "three"}


def caption_prompt(rng: np.random.Generator, scene: Scene) -> str:
    """One of the ways to ask for a caption, sometimes in lower case or without its last mark."""
    return _vary(rng, str(rng.choice(CLIP_PROMPTS if scene.kind == "clip" else CAPTION_PROMPTS)))


def draw_question(rng: np.random.Generator, scene: Scene) -> tuple[str, str]:
    """A question about the scene and its answer."""
    options = questions(scene)
    question, answer = options[int(rng.integers(len(options)))]
    return _vary(rng, question), answer


def questions(scene: Scene) -> list[tuple[str, str]]:
    """Every question that has exactly one answer, with that answer."""
    thing = scene.things[0]
    if scene.kind == "word":
        assert thing.word
        return [
            ("What does it say?", thing.word),
            ("Which word is it?", thing.word),
            ("What colour is the word?", thing.colour),
        ]
    if scene.kind == "clip":
        assert thing.motion
        assert thing.shape
        return [
            ("What does the shape do?", thing.motion),
            (f"What does the {thing.shape} do?", thing.motion),
            ("Which colour is the shape?", thing.colour),
            ("Which shape is it?", thing.shape),
        ]
    options = [("How many shapes are there?", NUMBERS[len(scene.things)])]
    colours = Counter(t.colour for t in scene.things)
    shapes = Counter(t.shape for t in scene.things)
    for t in scene.things:
        options += _about(t, colours[t.colour] == 1, shapes[t.shape] == 1)
    return options


def _about(thing: SceneObject, only_colour: bool, only_shape: bool) -> list[tuple[str, str]]:
    assert thing.shape
    assert thing.size
    options = []
    if only_shape:
        options.append((f"Which colour is the {thing.shape}?", thing.colour))
        options.append((f"Which size is the {thing.shape}?", thing.size))
    if only_colour:
        options.append((f"Which shape is {thing.colour}?", thing.shape))
    return options


def _vary(rng: np.random.Generator, prompt: str) -> str:
    form = rng.integers(4)
    if form == 0:
        return prompt.lower()
    return prompt[:-1] if form == 1 else prompt

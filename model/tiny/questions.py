"""Makes questions about synthetic scenes, each with its one right answer.

Ambiguous questions are left out: with two red shapes there is no question about "the red shape".
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
    """Draws a prompt for a caption, sometimes in lower case or without its final mark."""
    return _vary(rng, str(rng.choice(CLIP_PROMPTS if scene.kind == "clip" else CAPTION_PROMPTS)))


def draw_question(rng: np.random.Generator, scene: Scene) -> tuple[str, str]:
    """Draws a question about the scene. Returns it with its answer."""
    options = questions(scene)
    question, answer = options[int(rng.integers(len(options)))]
    return _vary(rng, question), answer


def questions(scene: Scene) -> list[tuple[str, str]]:
    """Returns all unambiguous questions about the scene, with their answers."""
    scene_object = scene.objects[0]
    if scene.kind == "word":
        assert scene_object.word
        return [
            ("What does it say?", scene_object.word),
            ("Which word is it?", scene_object.word),
            ("What colour is the word?", scene_object.colour),
        ]
    if scene.kind == "clip":
        assert scene_object.motion
        assert scene_object.shape
        return [
            ("What does the shape do?", scene_object.motion),
            (f"What does the {scene_object.shape} do?", scene_object.motion),
            ("Which colour is the shape?", scene_object.colour),
            ("Which shape is it?", scene_object.shape),
        ]
    options = [("How many shapes are there?", NUMBERS[len(scene.objects)])]
    colours = Counter(shape.colour for shape in scene.objects)
    shapes = Counter(shape.shape for shape in scene.objects)
    for shape in scene.objects:
        options += _shape_questions(shape, colours[shape.colour] == 1, shapes[shape.shape] == 1)
    return options


def _shape_questions(
    scene_object: SceneObject, unique_colour: bool, unique_shape: bool
) -> list[tuple[str, str]]:
    assert scene_object.shape
    assert scene_object.size
    options = []
    if unique_shape:
        options.append((f"Which colour is the {scene_object.shape}?", scene_object.colour))
        options.append((f"Which size is the {scene_object.shape}?", scene_object.size))
    if unique_colour:
        options.append((f"Which shape is {scene_object.colour}?", scene_object.shape))
    return options


def _vary(rng: np.random.Generator, prompt: str) -> str:
    form = rng.integers(4)
    if form == 0:
        return prompt.lower()
    return prompt[:-1] if form == 1 else prompt

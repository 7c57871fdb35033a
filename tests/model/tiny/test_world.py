"""The synthetic scenes: captions are true, questions have one answer, seeds repeat."""

import itertools

import numpy as np
import pytest

from mediamill.model.media.resize import smart_resize
from mediamill.model.tiny import questions, scenes
from mediamill.model.tiny.drawing import COLOURS
from mediamill.model.tiny.encode import CLIP_SIZES as CLIP_FILES
from mediamill.model.tiny.encode import PICTURE_SIZES as PICTURE_FILES
from mediamill.model.tiny.folder import IMAGE_PIXELS, VIDEO_PIXELS
from mediamill.model.tiny.samples import CLIP_SIZES, PICTURE_SIZES
from mediamill.model.tiny.scenes import KINDS, RADII, TAGS, draw_clip, draw_picture

SIZE = (280, 210)


def scene_of(kind, seed):
    rng = np.random.default_rng(seed)
    return draw_clip(rng, *SIZE, 6) if kind == "clip" else draw_picture(rng, kind, *SIZE)


def painted(frame, colour):
    """Where the frame has about this colour."""
    return np.abs(frame.astype(int) - COLOURS[colour]).max(axis=2) <= 16


@pytest.mark.parametrize("kind", KINDS)
def test_a_seed_gives_the_same_scene(kind):
    first, same, different = scene_of(kind, 5), scene_of(kind, 5), scene_of(kind, 6)
    assert first.caption == same.caption
    assert all(np.array_equal(a, b) for a, b in zip(first.frames, same.frames, strict=True))
    assert not np.array_equal(first.frames[0], different.frames[0])
    assert first.frames[0].shape == (SIZE[1], SIZE[0], 3)
    assert first.frames[0].dtype == np.uint8


@pytest.mark.parametrize("kind", KINDS)
def test_every_object_is_drawn_where_and_as_its_label_says(kind):
    for seed in range(60):
        scene = scene_of(kind, seed)
        for scene_object in scene.objects:
            for frame, (x, y, radius) in zip(scene.frames, scene_object.path, strict=True):
                rows, columns = np.nonzero(painted(frame, scene_object.colour))
                near = np.hypot(columns - x, rows - y) < 1.4 * radius
                assert near.sum() > (0.06 if scene_object.word else 0.9) * radius**2, (
                    seed,
                    scene_object,
                )


def test_two_shapes_stand_as_the_caption_says():
    for seed in range(200):
        scene = scene_of("two", seed)
        (first,), (second,) = (scene_object.path for scene_object in scene.objects)
        if " left of " in scene.caption:
            assert second[0] - first[0] > abs(second[1] - first[1])
        else:
            assert " above " in scene.caption
            assert second[1] - first[1] > abs(second[0] - first[0])


def test_three_shapes_are_named_from_left_to_right():
    for seed in range(200):
        scene = scene_of("three", seed)
        centres = [scene_object.path[0][0] for scene_object in scene.objects]
        assert centres == sorted(centres)


def test_shapes_do_not_touch_and_lie_within_the_picture():
    for kind, seed in itertools.product(("one", "two", "three"), range(100)):
        objects = scene_of(kind, seed).objects
        for scene_object in objects:
            ((x, y, radius),) = scene_object.path
            assert radius < x < SIZE[0] - radius
            assert radius < y < SIZE[1] - radius
            low, high = RADII[scene_object.size]
            assert low * 0.99 <= radius / (SIZE[0] * SIZE[1]) ** 0.5 <= high * 1.01
        for a, b in itertools.combinations(objects, 2):
            distance = np.hypot(a.path[0][0] - b.path[0][0], a.path[0][1] - b.path[0][1])
            assert distance > a.path[0][2] + b.path[0][2]


def test_clips_move_as_the_caption_says():
    seen = set()
    for seed in range(120):
        (scene_object,) = scene_of("clip", seed).objects
        seen.add(scene_object.motion)
        dx, dy, grown = np.array(scene_object.path[-1]) - np.array(scene_object.path[0])
        unit = (SIZE[0] * SIZE[1]) ** 0.5
        value = {
            "moving left": -dx,
            "moving right": dx,
            "moving up": -dy,
            "moving down": dy,
            "growing": grown,
            "shrinking": -grown,
        }[scene_object.motion]
        assert value > 0.1 * unit
    assert seen == set(scenes.MOTIONS)


@pytest.mark.parametrize("kind", KINDS)
def test_no_question_has_two_answers(kind):
    for seed in range(100):
        scene = scene_of(kind, seed)
        asked = questions.questions(scene)
        assert asked
        answers = {}
        for question, answer in asked:
            assert answers.setdefault(question, answer) == answer, scene.caption


@pytest.mark.parametrize("kind", KINDS)
def test_every_caption_is_good_english(kind):
    for seed in range(60):
        words = scene_of(kind, seed).caption.split()
        assert words[0] in ("a", "the")
        followers = [after for word, after in itertools.pairwise(words) if word == "a"]
        assert not any(word[0] in "aeiou" for word in followers)


def test_tags_name_every_label_once():
    assert len(set(TAGS)) == len(TAGS)
    labels = {
        tag
        for k, s in itertools.product(KINDS, range(50))
        for t in scene_of(k, s).objects
        for tag in t.tags
    }
    assert labels <= set(TAGS)


def test_the_training_sizes_are_what_the_limits_make_of_the_media():
    pictures = {smart_resize(h, w, 28, *IMAGE_PIXELS)[::-1] for w, h in PICTURE_FILES}
    clips = {smart_resize(h, w, 28, *VIDEO_PIXELS)[::-1] for w, h in CLIP_FILES}
    assert pictures == set(PICTURE_SIZES)
    assert clips == set(CLIP_SIZES)

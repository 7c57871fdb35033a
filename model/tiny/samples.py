"""Makes the training batches: prompts, patches, labels, and tags for each visual token."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from tokenizers import Tokenizer

from mediamill.model.layers.rope import Grid
from mediamill.model.media.patches import normalize, patchify_image, patchify_video
from mediamill.model.media.resize import resize
from mediamill.model.tiny import questions, scenes
from mediamill.model.tiny.scenes import TAGS, Kind, Scene

Triple = tuple[float, float, float]
CELL = 28  # pixels of a visual token's side
# (width, height) in pixels to which the checkpoint's limits resize the media of encode.py.
PICTURE_SIZES = ((84, 84), (112, 84), (84, 112))
CLIP_SIZES = ((84, 84), (84, 56), (56, 84))
QUESTION_SHARE = 0.4


@dataclass(frozen=True)
class Sample:
    """One prompt with its answer.

    input_ids, labels: of the same length; -100 where nothing is predicted.
    patches: float32 [N, 1176]. grid: (t, h, w) in patches.
    tags: float32 [visual tokens, len(TAGS)], 1 where a tag holds.
    """

    kind: Kind
    input_ids: list[int]
    labels: list[int]
    patches: torch.Tensor
    grid: Grid
    tags: torch.Tensor


@dataclass(frozen=True)
class TrainingBatch:
    """Samples of one kind of medium.

    input_ids, labels: int64 [B, S]. patches, tags: as in Sample, concatenated in the same order.
    """

    input_ids: torch.Tensor
    labels: torch.Tensor
    patches: torch.Tensor
    grids: list[Grid]
    tags: torch.Tensor
    is_clip: bool


class SampleMaker:
    """Draws samples; the same generator state gives the same sample."""

    def __init__(self, tokenizer: Tokenizer, mean: Triple, std: Triple) -> None:
        self.tokenizer = tokenizer
        self.mean, self.std = mean, std

    def sample(self, rng: np.random.Generator, kind: Kind) -> Sample:
        """Draws a scene of a kind with a question or a prompt for its caption."""
        scale = int(rng.integers(2, 5))
        if kind == "clip":
            width, height = CLIP_SIZES[int(rng.integers(3))]
            scene = scenes.draw_clip(rng, width * scale, height * scale, int(rng.choice((4, 6, 8))))
        else:
            width, height = PICTURE_SIZES[int(rng.integers(3))]
            scene = scenes.draw_picture(rng, kind, width * scale, height * scale)
        frames = [_resized_with_noise(rng, frame, width, height) for frame in scene.frames]
        if kind == "clip":
            patches, steps = patchify_video(torch.stack(frames)), len(frames) // 2
        else:
            patches, steps = patchify_image(frames[0]), 1
        grid = (steps, height // 14, width // 14)
        if rng.random() < QUESTION_SHARE:
            prompt, answer = questions.draw_question(rng, scene)
        else:
            prompt, answer = questions.caption_prompt(rng, scene), scene.caption
        ids, labels = self._chat(prompt, answer, grid, kind == "clip")
        normalized = normalize(patches, self.mean, self.std)
        return Sample(kind, ids, labels, normalized, grid, _tags(scene, grid, scale))

    def _chat(
        self, prompt: str, answer: str, grid: Grid, is_clip: bool
    ) -> tuple[list[int], list[int]]:
        """Returns (input_ids, labels) of one turn."""
        pad = "<|video_pad|>" if is_clip else "<|image_pad|>"
        visual = f"<|vision_start|>{pad * (grid[0] * grid[1] * grid[2] // 4)}<|vision_end|>"
        opening = (
            "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n"
            f"<|im_start|>user\n{visual}{prompt}<|im_end|>\n<|im_start|>assistant\n"
        )
        prompt_ids = self.tokenizer.encode(opening).ids
        answer_ids = self.tokenizer.encode(f"{answer}<|im_end|>").ids
        return prompt_ids + answer_ids, [-100] * len(prompt_ids) + answer_ids


def _resized_with_noise(
    rng: np.random.Generator, frame: np.ndarray, width: int, height: int
) -> torch.Tensor:
    """Resizes a frame as the processor does, and adds noise like a codec's to half of them.

    Returns uint8 [3, height, width].
    """
    resized = resize(torch.from_numpy(frame.copy()).permute(2, 0, 1), height, width)
    if rng.integers(2):
        return resized
    noise = torch.from_numpy(
        rng.normal(rng.normal(0, 2), rng.uniform(0, 4), (3, height, width)).astype(np.float32)
    )
    return (resized + noise).clamp(0, 255).round().to(torch.uint8)


def _tags(scene: Scene, grid: Grid, scale: int) -> torch.Tensor:
    """Returns the tags of what each visual token covers: float32 [t * h/2 * w/2, len(TAGS)]."""
    t, rows, columns = grid[0], grid[1] // 2, grid[2] // 2
    tags = torch.zeros(t, rows, columns, len(TAGS))
    y, x = np.mgrid[0:rows, 0:columns] * CELL + CELL / 2
    per_step = len(scene.frames) // t
    for scene_object in scene.objects:
        indices = [TAGS.index(tag) for tag in scene_object.tags]
        for step in range(t):
            places = np.array(scene_object.path[step * per_step : (step + 1) * per_step])
            center_x, center_y, radius = places.mean(0) / scale
            if scene_object.word:
                covered = (abs(x - center_x) < radius + 4) & (abs(y - center_y) < CELL * 0.75)
            else:
                covered = np.hypot(x - center_x, y - center_y) < radius + CELL * 0.4
            for row, column in zip(*np.nonzero(covered), strict=True):
                tags[step, row, column, indices] = 1.0
    return tags.flatten(0, 2)


def collate(samples: list[Sample], pad_id: int) -> TrainingBatch:
    """Pads samples to a batch, sorted by grid so that attention runs in few calls."""
    samples = sorted(samples, key=lambda sample: sample.grid)
    length = max(len(sample.input_ids) for sample in samples)
    return TrainingBatch(
        input_ids=torch.tensor(
            [sample.input_ids + [pad_id] * (length - len(sample.input_ids)) for sample in samples]
        ),
        labels=torch.tensor(
            [sample.labels + [-100] * (length - len(sample.labels)) for sample in samples]
        ),
        patches=torch.cat([sample.patches for sample in samples]),
        grids=[sample.grid for sample in samples],
        tags=torch.cat([sample.tags for sample in samples]),
        is_clip=samples[0].kind == "clip",
    )


@dataclass(frozen=True)
class Phase:
    """A phase of the curriculum: the shares of the kinds of scenes from step `start` on."""

    start: int
    shares: dict[Kind, float]


CURRICULUM = (
    Phase(0, {"one": 1.0}),
    Phase(150, {"one": 0.48, "two": 0.24, "clip": 0.28}),
    Phase(2500, {"one": 0.16, "two": 0.28, "three": 0.20, "word": 0.14, "clip": 0.22}),
)


def batches(
    maker: SampleMaker, seed: int, steps: int, size: int, pad_id: int
) -> Iterator[TrainingBatch]:
    """Yields the batches of a whole training; each sample is used in two different batches."""
    rng = np.random.default_rng(seed)
    pools: dict[bool, list[Sample]] = {False: [], True: []}  # of clips: True
    for step in range(steps):
        shares = next(phase.shares for phase in reversed(CURRICULUM) if phase.start <= step)
        is_clip = bool(rng.random() < shares.get("clip", 0.0))
        count = size // 2 if is_clip else size
        pool = pools[is_clip]
        pictures = [kind for kind in shares if kind != "clip"]
        weights = np.array([shares[kind] for kind in pictures])
        weights /= weights.sum()
        new_samples = []
        for _ in range(count // 2):
            kind = "clip" if is_clip else pictures[int(rng.choice(len(pictures), p=weights))]
            new_samples.append(maker.sample(rng, kind))
        reuses = min(count - len(new_samples), len(pool))
        reused = [pool.pop(int(rng.integers(len(pool)))) for _ in range(reuses)]
        new_samples += [
            maker.sample(rng, "clip" if is_clip else pictures[0])
            for _ in range(count - len(new_samples) - len(reused))
        ]
        yield collate(new_samples + reused, pad_id)
        # Samples may be used again from the next batch on.
        pool.extend(new_samples[: count // 2])

"""The workload of the engine comparison: a random checkpoint, fresh pictures and their prompts.

Makes a hub-format folder of a given size, and decoded pictures with prompts from a seed.
"""

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from tests.checkpoints import Shape, write_checkpoint

CELL = 28  # pixels of one visual token
BEGIN, END, VISION_START, VISION_END, IMAGE = 507, 508, 515, 516, 518

_TEXT = {
    "hidden_size": 512,
    "intermediate_size": 1536,
    "num_hidden_layers": 8,
    "num_attention_heads": 8,
    "num_key_value_heads": 2,
    "vocab_size": 8192,
    # A random network with a tied head repeats itself; its tokens would prove little.
    "tie_word_embeddings": False,
    "rope_theta": 1e6,
    "rope_scaling": {"type": "mrope", "mrope_section": [8, 12, 12]},
}
_VISION = {"hidden_size": 512, "depth": 6, "embed_dim": 256, "num_heads": 4}
SIZES = {
    "small": Shape(_TEXT, _VISION),
    "tiny": Shape({"num_hidden_layers": 2, "vocab_size": 8192}, {"depth": 2}),
}


@dataclass(frozen=True)
class Job:
    """One picture, uint8 [height, width, 3], and the ids around its visual tokens.

    new: tokens of the answer.
    """

    picture: npt.NDArray[np.uint8]
    before: list[int]
    after: list[int]
    new: int

    @property
    def visual_tokens(self) -> int:
        height, width = self.picture.shape[:2]
        return height // CELL * (width // CELL)

    @property
    def ids(self) -> list[int]:
        """The prompt with every pad token expanded."""
        return [*self.before, *[IMAGE] * self.visual_tokens, *self.after]


def write_folder(folder: Path, size: str) -> Path:
    """Writes a checkpoint of that size. Its preprocessor files keep the pictures as they are."""
    write_checkpoint(folder, SIZES[size])
    for name in ("preprocessor_config.json", "video_preprocessor_config.json"):
        options = json.loads((folder / name).read_text())
        low, high = 56 * 56, 1024 * 1024
        options |= {"min_pixels": low, "max_pixels": high}
        options["size"] = {"shortest_edge": low, "longest_edge": high}
        (folder / name).write_text(json.dumps(options))
    return folder


def jobs(seed: int, pictures: int, mixed: bool, fixed: int = 48) -> list[Job]:
    """Returns fresh pictures of 224 to 448 pixels a side, with prompts of about 174 tokens.

    mixed: 8 to 88 new tokens instead of `fixed` ones. The instruction is the same for all, as in a
    captioning job. Pictures are smooth noise, so neighbouring patches are alike.
    """
    rng = np.random.default_rng(seed)
    words = np.random.default_rng(7).integers(0, 500, 12).tolist()
    before = [BEGIN, *words[:6], END, BEGIN, VISION_START]
    after = [VISION_END, *words[6:], END, BEGIN]
    found = []
    for _ in range(pictures):
        rows, columns = rng.integers(8, 17, 2)
        coarse = rng.integers(0, 200, (rows, columns, 3), dtype=np.uint8)
        grain = rng.integers(0, 56, (rows * CELL, columns * CELL, 3), dtype=np.uint8)
        picture = coarse.repeat(CELL, axis=0).repeat(CELL, axis=1) + grain
        new = int(rng.integers(8, 89)) if mixed else fixed
        found.append(Job(picture, before, after, new))
    return found

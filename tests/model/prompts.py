"""Random prompts with random media, for the network's own inputs and for the reference's."""

from dataclasses import dataclass

import torch

from mediamill.model.inputs import VisualInput, VisualKind
from mediamill.model.media.patches import normalize

IMAGE, VIDEO, START, END = 518, 519, 515, 516


@dataclass(frozen=True)
class Prompt:
    ids: list[int]
    visuals: tuple[VisualInput, ...]


def visual(generator: torch.Generator, kind: VisualKind, grid: tuple[int, int, int]) -> VisualInput:
    width = 588 if kind == "image" else 1176
    count = grid[0] * grid[1] * grid[2]
    # Smooth patches with some grain: pure noise drives every activation to the same value.
    base = torch.randint(0, 256, (count, 1), generator=generator)
    grain = torch.randint(-40, 40, (count, width), generator=generator)
    return VisualInput(kind, (base + grain).clamp(0, 255).to(torch.uint8), grid)


def prompt(
    seed: int, media: list[tuple[VisualKind, tuple[int, int, int]]], words: int = 6
) -> Prompt:
    """Text, then each medium followed by text."""
    generator = torch.Generator().manual_seed(seed)
    visuals = tuple(visual(generator, kind, grid) for kind, grid in media)

    def text() -> list[int]:
        return torch.randint(0, 500, (words,), generator=generator).tolist()

    ids = text()
    for v in visuals:
        ids += [START, *[IMAGE if v.kind == "image" else VIDEO] * v.tokens, END, *text()]
    return Prompt(ids, visuals)


def pixels(prompts: list[Prompt], kind: VisualKind) -> dict[str, torch.Tensor]:
    """The reference's pixel and grid arguments for one kind of media."""
    media = [v for p in prompts for v in p.visuals if v.kind == kind]
    if not media:
        return {}
    suffix = ("", "image") if kind == "image" else ("_videos", "video")
    return {
        f"pixel_values{suffix[0]}": torch.cat([normalize(v.patches) for v in media]),
        f"{suffix[1]}_grid_thw": torch.tensor([v.grid_thw for v in media]),
    }


def token_types(ids: torch.Tensor) -> torch.Tensor:
    """The reference's mm_token_type_ids: 0 text, 1 picture, 2 video."""
    return (ids == IMAGE).int() + 2 * (ids == VIDEO).int()


# Media of one prompt each; the last ones have more frame pairs than columns, where the rules
# differ.
MEDIA: list[list[tuple[VisualKind, tuple[int, int, int]]]] = [
    [],
    [("image", (1, 6, 6))],
    [("image", (1, 4, 10))],
    [("image", (1, 2, 2)), ("image", (1, 8, 4))],
    [("video", (2, 4, 6))],
    [("image", (1, 6, 4)), ("image", (1, 4, 4)), ("video", (3, 6, 6))],
    [("video", (2, 6, 4)), ("image", (1, 4, 8)), ("video", (1, 4, 4))],
    [("video", (7, 4, 4))],
    [("video", (5, 2, 4)), ("image", (1, 4, 4))],
]

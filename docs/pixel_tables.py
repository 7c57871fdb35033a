"""Computes the tables of docs/pixels.md with the rules of the processor."""

from mediamill.model.media.image_rules import ImageRules

# Of the published Qwen2-VL checkpoints: 28 x 28 pixels are a token, at least 4 and at most 16,384.
_PUBLISHED = ImageRules()
_LIMITS = (None, 1_003_520, 501_760, 200_704, 50_176)
_PICTURES = (
    ("thumbnail", 256, 256),
    ("640 x 480", 480, 640),
    ("1 MP, 1024 x 1024", 1024, 1024),
    ("full HD, 1920 x 1080", 1080, 1920),
    ("12 MP phone, 4032 x 3024", 3024, 4032),
    ("48 MP, 8064 x 6048", 6048, 8064),
)
_FRAMES = ((8, None), (16, None), (32, 501_760), (60, 200_704), (120, 200_704), (768, 50_176))


def picture_table() -> str:
    """Returns visual tokens of pictures, by image.max_pixels."""
    heads = ["no limit of yours", *(f"`{limit}`" for limit in _LIMITS[1:])]
    lines = ["| picture | " + " | ".join(heads) + " |", "| --- |" + " ---: |" * len(_LIMITS)]
    for name, height, width in _PICTURES:
        tokens = [_tokens(height, width, limit) for limit in _LIMITS]
        lines.append(f"| {name} | " + " | ".join(f"{number:,}" for number in tokens) + " |")
    return "\n".join(lines) + "\n"


def frame_table() -> str:
    """Returns visual tokens of videos of 1920 x 1080, by frames and video.max_pixels."""
    lines = [
        "| sampled frames | for example | `video.max_pixels` | tokens a pair | together |",
        "| ---: | --- | ---: | ---: | ---: |",
    ]
    for frames, limit in _FRAMES:
        each = _tokens(1080, 1920, limit)
        shown = "none" if limit is None else f"{limit}"
        seconds = f"{frames / 2:g} s at 2 frames a second"
        total = f"{each * frames // 2:,}"
        lines.append(f"| {frames} | {seconds} | {shown} | {each:,} | {total} |")
    return "\n".join(lines) + "\n"


def _tokens(height: int, width: int, limit: int | None) -> int:
    size = _PUBLISHED.size_of(height, width, limit)
    return _PUBLISHED.tokens_of(size)

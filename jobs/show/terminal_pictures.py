"""Draws small pictures on a terminal: by its own protocol, or with coloured half blocks."""

import base64
import io
from collections.abc import Mapping, Sequence
from typing import Literal

import numpy as np
import numpy.typing as npt
from PIL import Image

Protocol = Literal["kitty", "iterm2", "sixel", "blocks", "blocks256", "none"]
Pixels = npt.NDArray[np.uint8]

_HEIGHT = 160  # pixels of a picture, for terminals that draw pixels
_CHUNK = 4096  # base64 letters of one message to kitty
_ROWS = 10  # lines of half blocks
_COLOURS = 128  # of a sixel picture


def protocol_of(environment: Mapping[str, str], is_terminal: bool) -> Protocol:
    """Returns how the terminal shows pictures, by its environment variables."""
    name, program = environment.get("TERM", ""), environment.get("TERM_PROGRAM", "")
    if not is_terminal or name in ("", "dumb"):
        return "none"
    if not environment.get("TMUX"):  # which passes none of these on
        if "kitty" in name or environment.get("KITTY_WINDOW_ID") or program.lower() == "ghostty":
            return "kitty"
        if program in ("iTerm.app", "WezTerm") or environment.get("LC_TERMINAL") == "iTerm2":
            return "iterm2"
        if name.startswith(("mlterm", "foot", "yaft")) or "sixel" in name:
            return "sixel"
    if environment.get("NO_COLOR"):
        return "none"
    return "blocks" if environment.get("COLORTERM") in ("truecolor", "24bit") else "blocks256"


def draw(frames: Sequence[Pixels], protocol: Protocol, columns: int) -> str:
    """Returns the text that shows frames (uint8 [H, W, 3]) side by side, with a line break.

    columns: width of the terminal in letters.
    """
    if protocol == "none" or not frames:
        return ""
    if protocol in ("blocks", "blocks256"):
        return _blocks(_row(frames, 2 * _ROWS, columns), protocol == "blocks")
    picture = _row(frames, _HEIGHT, columns * 8)
    if protocol == "sixel":
        return f"{_sixel(picture)}\n"
    file = io.BytesIO()
    picture.save(file, "PNG")
    data = base64.b64encode(file.getvalue()).decode("ascii")
    if protocol == "iterm2":
        size = f"size={len(file.getvalue())};height={picture.height}px"
        return f"\x1b]1337;File=inline=1;{size}:{data}\a\n"
    parts = [data[start : start + _CHUNK] for start in range(0, len(data), _CHUNK)]
    messages = [
        f"\x1b_G{'a=T,f=100,' if number == 0 else ''}m={int(number < len(parts) - 1)};{part}\x1b\\"
        for number, part in enumerate(parts)
    ]
    return "".join(messages) + "\n"


def _row(frames: Sequence[Pixels], height: int, width: int) -> Image.Image:
    """Frames of one height in a row, as many as fit."""
    pictures, used = [], 0
    for pixels in frames:
        picture = Image.fromarray(pixels)
        scale = min(height / picture.height, width / picture.width)
        size = max(1, round(picture.width * scale)), max(1, round(picture.height * scale))
        if used + size[0] > width:
            break
        pictures.append(picture.resize(size))
        used += size[0] + 1
    row = Image.new("RGB", (max(1, used - 1), max(p.height for p in pictures)))
    left = 0
    for picture in pictures:
        row.paste(picture, (left, 0))
        left += picture.width + 1
    return row


def _blocks(picture: Image.Image, true_colour: bool) -> str:
    """Two rows of pixels are one line: the upper half block over a background."""
    pixels = np.asarray(picture)
    if len(pixels) % 2:
        pixels = np.concatenate((pixels, pixels[-1:]))
    lines = []
    for upper, lower in zip(pixels[::2].tolist(), pixels[1::2].tolist(), strict=True):
        cells = [
            f"\x1b[38;{_colour(a, true_colour)};48;{_colour(b, true_colour)}m▀"
            for a, b in zip(upper, lower, strict=True)
        ]
        lines.append("".join(cells) + "\x1b[0m\n")
    return "".join(lines)


def _colour(rgb: Sequence[int], true_colour: bool) -> str:
    if true_colour:
        return "2;" + ";".join(map(str, rgb))
    red, green, blue = (round(value / 51) for value in rgb)
    return f"5;{16 + 36 * red + 6 * green + blue}"


def _sixel(picture: Image.Image) -> str:
    """The DEC sixel form: bands of six rows, each colour in turn."""
    reduced = picture.quantize(_COLOURS)
    palette = np.asarray(reduced.getpalette() or [], int).reshape(-1, 3)
    indices = np.asarray(reduced)
    parts = ["\x1bPq", f'"1;1;{reduced.width};{reduced.height}']
    used = np.unique(indices).tolist()
    for colour in used:
        red, green, blue = (palette[colour] * 100 // 255).tolist()
        parts.append(f"#{colour};2;{red};{green};{blue}")
    weights = 1 << np.arange(6)[:, None]
    for top in range(0, reduced.height, 6):
        band = indices[top : top + 6]
        for colour in np.unique(band).tolist():
            bits = ((band == colour) * weights[: len(band)]).sum(axis=0)
            parts.append(f"#{colour}" + "".join(chr(63 + bit) for bit in bits.tolist()) + "$")
        parts.append("-")
    return "".join(parts) + "\x1b\\"

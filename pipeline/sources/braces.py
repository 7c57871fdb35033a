"""Expands braces in the name of a source, as shells and WebDataset do.

shard-{000000..000099}.tar      numbers, with as many digits
{a,b}.jpg                       alternatives, which may be nested
"""

import re
from collections.abc import Iterator

from mediamill.pipeline.storage import storage
from mediamill.schemas.errors import JobError

_RANGE = re.compile(r"(-?\d+)\.\.(-?\d+)(?:\.\.(-?\d+))?", re.ASCII)
MAX_NAMES = 1_000_000


def has_braces(text: str) -> bool:
    """Whether `text` has braces that stand for several names: `{}` and `{a}` are themselves."""
    return _innermost(text) is not None


def expand(text: str) -> list[str]:
    """Returns all names that a text with braces stands for, in their order.

    Raises JobError for more than a million.
    """
    names: list[str] = []
    for name in _expand(text):
        names.append(name)
        if len(names) > MAX_NAMES:
            raise JobError(
                f"{storage.redact(text)}: found braces that stand for more than {MAX_NAMES:,} "
                "names, expected fewer: use a glob"
            )
    return names


def _expand(text: str) -> Iterator[str]:
    match = _innermost(text)
    if match is None:
        yield text
        return
    before, after = text[: match.start()], text[match.end() :]
    for choice in _choices(match[1]):
        yield from _expand(f"{before}{choice}{after}")


def _innermost(text: str) -> re.Match[str] | None:
    """The first pair of braces without others in it that stands for several names."""
    return next((m for m in re.finditer(r"\{([^{}]*)\}", text) if _stands_for_several(m[1])), None)


def _stands_for_several(inside: str) -> bool:
    return "," in inside or _RANGE.fullmatch(inside) is not None


def _choices(inside: str) -> Iterator[str]:
    match = _RANGE.fullmatch(inside)
    if match is None:
        yield from inside.split(",")
        return
    first, last, step = int(match[1]), int(match[2]), abs(int(match[3] or 1)) or 1
    padded = any(part.lstrip("-").startswith("0") and len(part) > 1 for part in match.groups()[:2])
    width = max(len(match[1]), len(match[2])) if padded else 0
    numbers = range(first, last + 1, step) if first <= last else range(first, last - 1, -step)
    yield from (f"{number:0{width}}" if width else str(number) for number in numbers)

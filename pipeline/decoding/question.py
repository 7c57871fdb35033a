"""Turns the media of rows and what is asked about them into one message to a decoding process.

How it answers is not known here.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.decoding.answer import Kind


@dataclass(frozen=True)
class Medium:
    """content: of the file, or where it is. kind: None = told from the bytes.

    start_s, end_s: a window of a video, in seconds.
    """

    content: memoryview | Path
    kind: Kind | None = None
    start_s: float | None = None
    end_s: float | None = None


@dataclass(frozen=True)
class Question:
    """The media of one row and what is asked about them, as JSON: {"messages": a chat}, or
    {"prompt": text, "system": text or null}; None = nothing, and there will be no ids.
    """

    media: Sequence[Medium]
    chat: Mapping[str, Any] | None = None

    @property
    def size(self) -> int:
        """Bytes of the media that are in memory."""
        return sum(one.content.nbytes for one in self.media if not isinstance(one.content, Path))


def message(questions: Sequence[Question], start_s: float) -> tuple[bytes, list[memoryview]]:
    """The header, and the bytes that lie in the shared memory.

    start_s: after so many seconds no further row of these is begun.
    """
    parts: list[memoryview] = []
    rows = [
        {"media": [_medium(one, parts) for one in question.media], "chat": question.chat}
        for question in questions
    ]
    return json.dumps({"rows": rows, "start_s": start_s}).encode(), parts


def _medium(medium: Medium, parts: list[memoryview]) -> dict[str, Any]:
    told: dict[str, Any] = {
        "kind": medium.kind,
        "start_s": medium.start_s,
        "end_s": medium.end_s,
    }
    if isinstance(medium.content, Path):
        told["path"] = str(medium.content)
    else:
        told["bytes"] = medium.content.nbytes
        parts.append(medium.content)
    return told

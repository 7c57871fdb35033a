"""Turns the media of rows and what is asked about them into one message to a decoding process.

How it answers is not known here.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from mediamill.pipeline.decoding.probe import Measure
from mediamill.pipeline.decoding.reply import Kind


@dataclass(frozen=True)
class MediumRequest:
    """content: of the file, or where it is. kind: None = told from the bytes.

    start_s, end_s: a window of a video, in seconds.
    """

    content: memoryview | Path
    kind: Kind | None = None
    start_s: float | None = None
    end_s: float | None = None

    @property
    def size(self) -> int:
        """Bytes that are in memory."""
        return 0 if isinstance(self.content, Path) else self.content.nbytes


@dataclass(frozen=True)
class DecodeRequest:
    """The media of one row and what is asked about them.

    chats: as JSON: {"messages": a chat}, or {"prompt": text, "system": text or null}; of each there
    will be ids. texts: that may follow the prompt; of each there will be ids, too. measure: asks
    for the medium's length and scenes instead of all that.
    """

    media: Sequence[MediumRequest]
    chats: Sequence[Mapping[str, Any]] = ()
    texts: Sequence[str] = ()
    measure: Measure | None = None

    def content(self) -> bytes:
        """A hash of all that decides the answer, 16 bytes. A file is told by its identity."""
        media = [(one.kind, one.start_s, one.end_s, one.size) for one in self.media]
        found = hashlib.blake2b(digest_size=16)
        found.update(json.dumps([list(self.chats), list(self.texts), media]).encode())
        for one in self.media:
            if isinstance(one.content, Path):
                facts = one.content.stat()
                found.update(f"{facts.st_dev}/{facts.st_ino}".encode())
            else:
                found.update(one.content)
        return found.digest()

    @property
    def size(self) -> int:
        """Bytes of the media that are in memory."""
        return sum(one.size for one in self.media)


def message(questions: Sequence[DecodeRequest], start_s: float) -> tuple[bytes, list[memoryview]]:
    """The header, and the bytes that lie in the shared memory.

    start_s: after so many seconds no further row of these is begun.
    """
    parts: list[memoryview] = []
    rows = [
        {
            "media": [_medium(one, parts) for one in question.media],
            "chats": list(question.chats),
            "texts": list(question.texts),
            "measure": None if question.measure is None else asdict(question.measure),
        }
        for question in questions
    ]
    return json.dumps({"rows": rows, "start_s": start_s}).encode(), parts


def _medium(medium: MediumRequest, parts: list[memoryview]) -> dict[str, Any]:
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

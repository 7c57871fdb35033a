"""The request to decode the media of one row, and its form as a message to a decode worker."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from mediamill.model.inputs import VisualKind
from mediamill.pipeline.decoding.probe import ProbeRequest


@dataclass(frozen=True)
class RenderRequest:
    """How a medium is shown again as the model saw it.

    height, width: to which it was resized. frame_indices: of a video's frames.
    visual_tokens: that it had, from which the size of its patches follows.
    max_frames, max_height, max_width: of what is returned.
    """

    height: int
    width: int
    frame_indices: tuple[int, ...]
    visual_tokens: int
    max_frames: int
    max_height: int
    max_width: int


@dataclass(frozen=True)
class MediumRequest:
    """One medium.

    content: the file's bytes, or the path of the file.
    kind: None = detected from the bytes.
    start_s, end_s: a window of a video, in seconds.
    render: only to show the medium, in a pool whose factory is `load_renderer`.
    """

    content: memoryview | Path
    kind: VisualKind | None = None
    start_s: float | None = None
    end_s: float | None = None
    render: RenderRequest | None = None

    @property
    def size(self) -> int:
        """Bytes of the content that are in memory."""
        return 0 if isinstance(self.content, Path) else self.content.nbytes


@dataclass(frozen=True)
class DecodeRequest:
    """The media of one row, and the texts to tokenize with them.

    chats: JSON objects, each {"messages": a chat} or {"prompt": text, "system": text or null}.
    texts: that may follow the prompt. The reply holds token ids of each chat, then of each text.
    shrink: by how much pictures have less area than by the job's rules, and videos fewer frames.
    probe: only probe the medium, which is a single video; decode and tokenize nothing.
    """

    media: Sequence[MediumRequest]
    chats: Sequence[Mapping[str, Any]] = ()
    texts: Sequence[str] = ()
    probe: ProbeRequest | None = None
    shrink: int = 1

    def content_hash(self) -> bytes:
        """A hash of all that decides the reply, 16 bytes. Stands for a file: its inode."""
        media = [(medium.kind, medium.start_s, medium.end_s, medium.size) for medium in self.media]
        digest = hashlib.blake2b(digest_size=16)
        digest.update(json.dumps([list(self.chats), list(self.texts), media, self.shrink]).encode())
        for medium in self.media:
            if isinstance(medium.content, Path):
                status = medium.content.stat()
                digest.update(f"{status.st_dev}/{status.st_ino}".encode())
            else:
                digest.update(medium.content)
        return digest.digest()

    @property
    def size(self) -> int:
        """Bytes of the media that are in memory."""
        return sum(medium.size for medium in self.media)


def encode_requests(
    requests: Sequence[DecodeRequest], start_s: float
) -> tuple[dict[str, Any], list[memoryview]]:
    """Returns the message as JSON, and the contents to write into the shared memory.

    start_s: the worker starts no further row of the message after this many seconds.
    """
    contents: list[memoryview] = []
    rows = [
        {
            "media": [_medium(medium, contents) for medium in request.media],
            "chats": list(request.chats),
            "texts": list(request.texts),
            "probe": None if request.probe is None else asdict(request.probe),
            "shrink": request.shrink,
        }
        for request in requests
    ]
    return {"rows": rows, "start_s": start_s}, contents


def _medium(medium: MediumRequest, contents: list[memoryview]) -> dict[str, Any]:
    window: dict[str, Any] = {"kind": medium.kind, "start_s": medium.start_s, "end_s": medium.end_s}
    if medium.render is not None:
        window["render"] = asdict(medium.render)
    if isinstance(medium.content, Path):
        return {**window, "path": str(medium.content)}
    contents.append(medium.content)
    return {**window, "bytes": medium.content.nbytes}

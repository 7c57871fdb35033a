"""Reads kind, size and duration of a medium from its header, in a decode worker."""

import io
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any, cast

from PIL import Image, UnidentifiedImageError

from mediamill.model.errors import MediaError
from mediamill.model.media.containers import detect_format
from mediamill.model.media.duration import WholeFileNeededError, duration_s
from mediamill.model.media.limits import MediaLimits
from mediamill.model.media.media_file import MediaFile
from mediamill.model.media.video_file import open_video
from mediamill.pipeline.decoding.probe import ProbeRequest, ProbeResult


@dataclass(frozen=True)
class HeaderProber:
    """Probes pictures and videos; `rules` as of a Prober."""

    limits: MediaLimits
    rules: Mapping[str, Any] = field(default_factory=dict)

    def probe(self, data: bytes | Path, request: ProbeRequest) -> ProbeResult:
        """Probes a medium. What its header does not hold is 0. Raises MediaError."""
        content = MediaFile.of(data)
        file_format = detect_format(content)
        height = width = 0
        seconds = 0.0
        if file_format.kind == "image":
            height, width = _picture_size(content, file_format.name)
        else:
            try:
                with open_video(content, file_format, self.limits) as (_, stream):
                    height, width = stream.codec_context.height, stream.codec_context.width
                seconds = duration_s(content, self.limits, request.whole)
            except (MediaError, WholeFileNeededError):
                pass  # the kind is known at least
        return ProbeResult.model_construct(
            duration_s=seconds, kind=file_format.kind, height=height, width=width
        )


def load_header_prober(limits: Mapping[str, Any]) -> HeaderProber:
    """The factory for a DecoderPool. limits: arguments of MediaLimits."""
    Image.init()  # before the workers are forked, which would each load the plugins
    return HeaderProber(MediaLimits(**limits))


def _picture_size(content: MediaFile, name: str) -> tuple[int, int]:
    """(height, width) as stored; zeros if the header does not say. Decodes nothing."""
    with content.open() as handle, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of pictures that are large
        file = cast("IO[bytes]", _Readable(handle))
        try:
            with Image.open(file, formats=[name]) as picture:
                return picture.height, picture.width
        except (
            UnidentifiedImageError, Image.DecompressionBombError, OSError, SyntaxError, ValueError,
            EOFError,
        ):  # fmt: skip
            return 0, 0


class _Readable(io.RawIOBase):
    """A handle as Pillow wants it: `read` without a count reads all, which is never needed."""

    def __init__(self, handle: Any) -> None:
        super().__init__()
        self._handle = handle

    def read(self, count: int = 1024 * 1024) -> bytes:
        data: bytes = self._handle.read(count)
        return data

    def seek(self, offset: int, whence: int = 0) -> int:
        return int(self._handle.seek(offset, whence))

    def tell(self) -> int:
        return int(self._handle.tell())

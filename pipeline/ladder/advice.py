"""Says what would help an error row: one clause after its reason, or nothing."""

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from mediamill.model.urls import MAX_MESSAGE, safe_text
from mediamill.schemas.errors import ErrorCode

# The messages of model/processor.py, model/media/prepared.py and model/media/pixel_budget.py.
_PROMPT = re.compile(
    r"the prompt is (?P<all>\d+) tokens long, (?P<visual>\d+) of them visual; the model takes "
    r"(?P<context>\d+)"
)
_PICTURE = re.compile(
    r"the picture of (?P<width>\d+) x (?P<height>\d+) pixels is (?P<visual>\d+) visual tokens; "
    r"the model takes (?P<context>\d+)"
)
_FRAMES = re.compile(
    r"(?P<frames>\d+) frames of \d+ x \d+ pixels are (?P<visual>\d+) visual tokens; the model "
    r"takes (?P<context>\d+)"
)
_PIXELS = re.compile(r"(?P<subject>.*) is \d+ x \d+ = (?P<pixels>\d+) pixels; the limit is \d+")
_SECONDS = re.compile(r"(?P<seconds>[\d.]+) s of .* to be decoded; the limit is [\d.e+]+ s")
_CONVERTIBLE = re.compile(
    r"the file is a [^;]*(picture|document|drawing|metafile|project|raw file|animation)[^;]*; "
    r"expected|.* in a codec that is not supported|.*, which is not read"
)
_TEXT_SHARE = 0.9  # of the context for media, where the length of the text is not known
_LEAST_FRAMES = 2  # that halving leaves of a video
_MAX_ADVICE = 200  # characters


@dataclass(frozen=True)
class Sizes:
    """The sizes of a prompt that is too long, in tokens.

    visual: of its media. room: that the model has for them.
    picture: (height, width) if it is about one picture alone.
    frames: of a video, if it is about one video alone.
    """

    visual: int
    room: int
    picture: tuple[int, int] | None = None
    frames: int | None = None

    @classmethod
    def parse(cls, message: str) -> "Sizes | None":
        """Reads the sizes in a message; None if it names none, or has no media."""
        if match := _PROMPT.search(message):
            visual = int(match["visual"])
            return cls(visual, int(match["context"]) - int(match["all"]) + visual)
        if match := _PICTURE.search(message):
            size = int(match["height"]), int(match["width"])
            room = int(_TEXT_SHARE * int(match["context"]))
            return cls(int(match["visual"]), room, size)
        if match := _FRAMES.search(message):
            room = int(_TEXT_SHARE * int(match["context"]))
            return cls(int(match["visual"]), room, frames=int(match["frames"]))
        return None

    @property
    def halvings(self) -> int:
        """How often the media have to be halved to fit."""
        return math.ceil(math.log2(self.visual / self.room))


def with_advice(
    code: str,
    message: str,
    receipts: Sequence[Mapping[str, Any]],
    shrunk: int,
    constrained: bool,
    media: int = 1,
) -> str:
    """Returns the message of an error row with what would help it.

    receipts: of its media, as far as known. media: their number.
    shrunk: how often they were halved already.
    constrained: whether answers are held to their schemas.
    """
    advice = _advice(code, message, receipts, shrunk, constrained, media)
    if advice is None or message.endswith(advice):  # windows have the message of their video
        return message
    return f"{safe_text(message, MAX_MESSAGE - _MAX_ADVICE)}; {advice}"


def _advice(
    code: str,
    message: str,
    receipts: Sequence[Mapping[str, Any]],
    shrunk: int,
    constrained: bool,
    media: int,
) -> str | None:
    match code:
        case ErrorCode.CONTEXT_TOO_LONG:
            return _fitting(message, receipts, shrunk, media)
        case ErrorCode.ENGINE_OOM if receipts:
            key = "image.max_pixels" if receipts[0]["type"] == "image" else "video.max_tokens"
            return f"retries.smaller={shrunk + 1} or a lower {key} needs less memory"
        case ErrorCode.FETCH_TIMEOUT:
            return "mediamill retry tries it again; a higher limits.fetch_timeout_s waits longer"
        case ErrorCode.FETCH_FAILED if not message.startswith("data:"):
            return "mediamill retry tries it again"
        case ErrorCode.DECODE_TOO_LARGE:
            return _raised_limit(message)
        case ErrorCode.DECODE_UNSUPPORTED if _CONVERTIBLE.match(message):
            return "converted to JPEG, PNG or MP4, it can be read"
        case ErrorCode.JSON_INVALID if not constrained:
            return "json_answers.constrained=true holds answers to the schema"
        case ErrorCode.POISON:
            condition = "error_code == 'poison'"
            return f'once the cause is mended: mediamill retry OUTPUT --where "{condition}"'
    return None


def _fitting(
    message: str, receipts: Sequence[Mapping[str, Any]], shrunk: int, media: int
) -> str | None:
    """What makes a prompt fit that is too long."""
    sizes = Sizes.parse(message)
    # Of several media, the first that is too large alone says nothing about all of them.
    if sizes is None or (media > 1 and not receipts):
        return None
    if sizes.room < 1 or not sizes.visual:
        return "only a shorter text fits"
    keys = [f"retries.smaller={shrunk + sizes.halvings}"]
    kinds = {receipt["type"] for receipt in receipts}
    frames = sizes.frames
    if kinds == {"video"} and len(receipts) == 1:
        frames = len(receipts[0]["frame_indices"])
    if frames is not None and frames < _LEAST_FRAMES * 2**sizes.halvings:
        keys.clear()
    if sizes.picture is not None:
        area = sizes.picture[0] * sizes.picture[1]
        keys.insert(0, f"image.max_pixels={sizes.room * area // sizes.visual}")
    elif kinds == {"image"}:
        # Each picture gets the same number of visual tokens at most.
        area = sum(receipt["height"] * receipt["width"] for receipt in receipts)
        if room := sizes.room // len(receipts):
            keys.insert(0, f"image.max_pixels={room * area // sizes.visual}")
    elif frames is not None:
        keys.insert(0, f"video.max_tokens={sizes.room}")
    return f"{' or '.join(keys)} would fit it"


def _raised_limit(message: str) -> str | None:
    """The limit of the job that is too low."""
    if match := _PIXELS.search(message):
        kind = "image" if "picture" in match["subject"] else "video"
        return f"limits.max_{kind}_pixels={match['pixels']} would allow it"
    if match := _SECONDS.search(message):
        return f"limits.max_duration_s={math.ceil(float(match['seconds']))} would allow it"
    if message.startswith("no memory to decode"):
        return "a higher limits.decode_bytes would allow it"
    return None

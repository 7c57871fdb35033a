"""Turns chats with their pictures and videos into answers: processor and engine in one.

Messages have the reference's own form (apply_chat_template of transformers). Nothing here knows how
a picture becomes patches or ids become text.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, overload

import numpy as np
import torch
from PIL import Image

from mediamill.model.checkpoint.folder import Folder
from mediamill.model.engine import Completion, Engine, Request
from mediamill.model.errors import MediaError, PromptError
from mediamill.model.families.qwen2_vl.config import MRopeRule
from mediamill.model.inputs import VisualInput, VisualKind
from mediamill.model.media.frame_sampling import VideoRules
from mediamill.model.media.images import read_image
from mediamill.model.media.media_source import SourceRules, data_bytes, read_source
from mediamill.model.processor import ControlStrings, Processor, Receipt
from mediamill.model.sampling import Sampling
from mediamill.model.text.prompt import Message, check_messages, part_kind

# Where a part has its medium, and what else it may say of it.
_PLACES: dict[VisualKind, tuple[str, ...]] = {
    "image": ("image", "path", "url", "image_url", "base64"),
    "video": ("video", "path", "url"),
}
_PIXELS = ("min_pixels", "max_pixels")
_OPTIONS: dict[VisualKind, tuple[str, ...]] = {
    "image": _PIXELS,
    "video": (*_PIXELS, "fps", "num_frames", "frame_rate", "start_s", "end_s"),
}


class ChatError(ValueError):
    """A conversation that cannot be answered. It says which one, and which part of it."""


@dataclass(frozen=True)
class Answer:
    """What the model said to one conversation.

    text: without control tokens, the stop string and blanks around it; "" with an error.
    completion: ids, log-probabilities and the reason for the end; None if the engine was not asked.
    receipts: what the model saw of each medium, in order.
    prompt_ids: the prompt as token ids. error: one sentence, or None.
    """

    text: str
    completion: Completion | None
    receipts: tuple[Receipt, ...] = ()
    prompt_ids: list[int] = field(default_factory=list)
    error: str | None = None


@dataclass(frozen=True)
class Chat:
    """A loaded checkpoint that answers chats; `load` makes one. One caller at a time.

    sources: which media may be read, and how large they may be.
    """

    processor: Processor
    engine: Engine
    sources: SourceRules = field(default_factory=SourceRules)

    @classmethod
    def load(
        cls,
        folder: str | Path | Folder,
        device: str = "auto",
        dtype: str = "auto",
        attention: str = "auto",
        mrope: MRopeRule = "original",
        min_pixels: int | None = None,
        max_pixels: int | None = None,
        video: VideoRules | None = None,
        sources: SourceRules | None = None,
        batch_rows: int | None = None,
    ) -> "Chat":
        """Load a hub-format folder from a path or any fsspec URL; arguments as of Engine.load.

        min_pixels, max_pixels: of pictures and of frames, height * width; None = the checkpoint's
            own. video: which frames are looked at, and limits for frames alone.
        Raises ModelError when the folder cannot be used, ValueError for the other arguments.
        """
        folder = Folder.of(folder)
        frames = VideoRules(min_pixels=min_pixels, max_pixels=max_pixels)
        frames = frames if video is None else video.with_defaults(frames)
        processor = Processor.load(folder, min_pixels, max_pixels, frames)
        engine = Engine.load(folder, device, dtype, batch_rows, attention, mrope)
        return cls(processor, engine, sources or SourceRules())

    @overload
    def answer(
        self,
        messages: Sequence[Message],
        sampling: Sampling | None = None,
        add_vision_id: bool = False,
        video: VideoRules | None = None,
        errors: Literal["raise", "return"] = "raise",
        control_strings: ControlStrings = "refuse",
    ) -> Answer: ...

    @overload
    def answer(
        self,
        messages: Sequence[Sequence[Message]],
        sampling: Sampling | None = None,
        add_vision_id: bool = False,
        video: VideoRules | None = None,
        errors: Literal["raise", "return"] = "raise",
        control_strings: ControlStrings = "refuse",
    ) -> list[Answer]: ...

    def answer(
        self,
        messages: Sequence[Message] | Sequence[Sequence[Message]],
        sampling: Sampling | None = None,
        add_vision_id: bool = False,
        video: VideoRules | None = None,
        errors: Literal["raise", "return"] = "raise",
        control_strings: ControlStrings = "refuse",
    ) -> Answer | list[Answer]:
        """The answer to a conversation, or to each of a list of them, in one call of the engine.

        messages: {"role", "content"}, content a text or parts. A text part is {"type": "text",
            "text"}. A picture is {"type": "image", "image" or "path" or "url": ...} with a path,
            URL, data URL, bytes or a decoded picture (Pillow, array, tensor), {"image_url": {"url":
            ...}} or {"type": "image", "base64": ...}. A video is {"type": "video", "video" or
            "path" or "url": ...} with a path, URL, bytes, or its frames: a list of pictures of any
            of these kinds, or an array or tensor [T, ...].
            Beside it may be min_pixels and max_pixels; for a video fps or num_frames, start_s and
            end_s (seconds of a file), and frame_rate (of a list of frames, which fps needs).
        sampling: None = greedy, 128 tokens at most. video: rules for frames over those of `load`.
        errors: "raise" raises ChatError for the first conversation that cannot be answered, before
            any is; "return" answers the others and gives the sentence in `Answer.error`.
        """
        if errors not in ("raise", "return"):
            raise ValueError(f"errors is {errors!r}, expected raise or return")
        single = bool(messages) and isinstance(messages[0], Mapping)
        chats: list[Any] = [messages] if single else list(messages)
        processor = self.processor
        if video is not None:
            processor = _with_frames(processor, video)
        answers: list[Answer] = []
        requests: list[Request] = []
        for number, chat in enumerate(chats):
            where = "" if single else f"conversation {number}: "
            try:
                visuals, receipts = self._media(chat, processor)
                bare = [_without_media(message) for message in chat]
                ids = processor.build_prompt(bare, visuals, add_vision_id, control_strings)
            except (ChatError, MediaError, PromptError) as error:
                if errors == "raise":
                    raise ChatError(f"{where}{error}") from error
                answers.append(Answer("", None, error=str(error)))
                continue
            answers.append(Answer("", None, receipts, ids))
            requests.append(Request(str(number), ids, visuals, sampling or Sampling()))
        for done in self.engine.generate(requests):
            number = int(done.id)
            if done.error and errors == "raise":
                raise ChatError(f"{'' if single else f'conversation {number}: '}{done.error}")
            text = "" if done.error else self.text(done)
            answers[number] = replace(answers[number], text=text, completion=done, error=done.error)
        return answers[0] if single else answers

    def text(self, completion: Completion) -> str:
        """What a completion says, up to the stop string that ended it."""
        stop = (completion.stop,) if completion.stop else ()
        return self.processor.decode(completion.output_ids, stop)

    def _media(
        self, chat: Sequence[Message], processor: Processor
    ) -> tuple[tuple[VisualInput, ...], tuple[Receipt, ...]]:
        check_messages(chat)
        pairs = []
        for where, kind, part in _media_parts(chat):
            try:
                pairs.append(self._medium(kind, part, processor))
            except (ValueError, TypeError) as error:
                raise ChatError(f"{where}: {error}") from error
        return tuple(visual for visual, _ in pairs), tuple(receipt for _, receipt in pairs)

    def _medium(
        self, kind: VisualKind, part: Message, processor: Processor
    ) -> tuple[VisualInput, Receipt]:
        """The patches of one part's medium. Raises ValueError: what is wrong with it."""
        key, value = _value(kind, part)
        said = {key: part.get(key) for key in _OPTIONS[kind]}
        if kind == "image":
            limits = processor.image_rules.with_limits(said["min_pixels"], said["max_pixels"])
            processor = replace(processor, image_rules=limits)
        else:
            keys = ("fps", "num_frames", *_PIXELS)
            processor = _with_frames(processor, VideoRules(**{key: said[key] for key in keys}))
        if key == "base64":
            value = data_bytes(value, self.sources.max_bytes)
        if isinstance(value, str | Path):
            value = read_source(value, self.sources)
        rate, window = said.get("frame_rate"), (said.get("start_s"), said.get("end_s"))
        if isinstance(value, bytes | bytearray | memoryview):
            if len(value) > self.sources.max_bytes:
                raise ValueError(
                    f"found {len(value)} bytes, expected at most {self.sources.max_bytes}"
                )
            if rate is not None:
                raise ValueError("frame_rate is of a list of frames, and this is a file")
            return processor.prepare_media(bytes(value), kind, *window)
        if kind == "image":
            return processor.prepare_picture(value)
        if window != (None, None):
            raise ValueError("start_s and end_s are of a file, and these are frames")
        if rate is None and said["fps"] is not None:
            raise ValueError("fps needs the frame_rate of these frames, in frames a second")
        if isinstance(value, list | tuple):
            value = [self._frame(one) for one in value]
        return processor.prepare_frames(value, rate)

    def _frame(self, frame: Any) -> Image.Image | np.ndarray | torch.Tensor:
        """One frame of a list, decoded if it is a file."""
        if isinstance(frame, str | Path):
            frame = read_source(frame, self.sources)
        if isinstance(frame, bytes | bytearray | memoryview):
            return read_image(bytes(frame), self.processor.limits).pixels
        return frame  # type: ignore[no-any-return]


def _media_parts(chat: Sequence[Message]) -> Iterator[tuple[str, VisualKind, Message]]:
    """Where it stands, the kind and the part of each medium of a checked chat."""
    for number, message in enumerate(chat):
        if isinstance(message["content"], str):
            continue
        for index, part in enumerate(message["content"]):
            if (kind := part_kind(part)) is not None:
                yield f"messages[{number}].content[{index}]", kind, part


def _without_media(message: Message) -> Message:
    """The message with bare pads: its template has no business with the media themselves."""
    if isinstance(message["content"], str):
        return message
    kinds = [(part_kind(part), part) for part in message["content"]]
    return {**message, "content": [{"type": kind} if kind else part for kind, part in kinds]}


def _value(kind: VisualKind, part: Message) -> tuple[str, Any]:
    """The key that has the medium, and the medium."""
    said = {key for key, value in part.items() if value is not None} - {"type"}
    unknown = sorted(map(str, said - {*_PLACES[kind], *_OPTIONS[kind]}))
    if unknown:
        known = ", ".join((*_PLACES[kind], *_OPTIONS[kind]))
        raise ValueError(f"{unknown[0]:.80} is no key of {_a(kind)}, expected of {known}")
    places = [key for key in _PLACES[kind] if key in said]
    if len(places) != 1:
        raise ValueError(
            f"found {_a(kind)} in {len(places)} places, expected it in one of "
            f"{', '.join(_PLACES[kind])}"
        )
    for name in _OPTIONS[kind]:
        _check_number(name, part.get(name))
    value = part[places[0]]
    if places[0] == "image_url" and isinstance(value, Mapping):
        value = value.get("url")
    if places[0] in ("path", "url", "image_url", "base64") and not isinstance(value, str | Path):
        raise ValueError(f"{places[0]} is {value!r:.80}, expected a text")
    return places[0], value


def _check_number(name: str, value: object) -> None:
    """Raises ValueError unless an option is a number of its kind, or None."""
    whole, zero = name in (*_PIXELS, "num_frames"), name in ("start_s", "end_s")
    if value is None:
        return
    good = isinstance(value, int if whole else int | float) and not isinstance(value, bool)
    if not good or not (value >= 0 if zero else value > 0):  # type: ignore[operator]
        words = f"{'whole ' * whole}number {'of at least' if zero else 'above'} 0"
        raise ValueError(f"{name} is {value!r:.80}, expected a {words}")


def _a(kind: VisualKind) -> str:
    return "a picture" if kind == "image" else "a video"


def _with_frames(processor: Processor, video: VideoRules) -> Processor:
    """The same processor with other rules for frames over its own."""
    return replace(
        processor,
        frame_rules=processor.frame_rules.with_limits(video.min_pixels, video.max_pixels),
        video_rules=video.with_defaults(processor.video_rules),
    )

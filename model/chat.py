"""Answers chats about pictures and videos: the processor and the engine of a checkpoint in one.

Messages have the form of the reference (apply_chat_template of transformers).
"""

from collections.abc import Mapping, Sequence
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

# The keys under which a part may hold its medium, and the options beside it.
_MEDIUM_KEYS: dict[VisualKind, tuple[str, ...]] = {
    "image": ("image", "path", "url", "image_url", "base64"),
    "video": ("video", "path", "url"),
}
_PIXELS = ("min_pixels", "max_pixels")
_OPTIONS: dict[VisualKind, tuple[str, ...]] = {
    "image": _PIXELS,
    "video": (*_PIXELS, "fps", "num_frames", "frame_rate", "start_s", "end_s"),
}


class ChatError(ValueError):
    """A conversation that cannot be answered; the message names it and the faulty part."""


@dataclass(frozen=True)
class Answer:
    """The answer to one conversation.

    text: without control tokens, the stop string and surrounding white space; "" with an error.
    completion: token ids, log-probabilities and finish reason; None if there was no request.
    receipts: what the model saw of each medium, in order. prompt_ids: the prompt as token ids.
    error: one sentence, or None.
    """

    text: str
    completion: Completion | None
    receipts: tuple[Receipt, ...] = ()
    prompt_ids: list[int] = field(default_factory=list)
    error: str | None = None


@dataclass(frozen=True)
class Chat:
    """A loaded checkpoint that answers chats; `load` makes one. It is not thread-safe. Usage:

        chat = Chat.load("hf://Qwen/Qwen2-VL-2B-Instruct")
        picture = {"type": "image", "path": "cat.jpg"}
        question = {"type": "text", "text": "What is this?"}
        print(chat.answer([{"role": "user", "content": [picture, question]}]).text)

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
        """Loads a folder in hub format from a path or any fsspec URL.

        device, dtype, attention, mrope, batch_rows: as for Engine.load.
        min_pixels, max_pixels: limits on height * width of pictures and of frames; None = those of
            the checkpoint. video: which frames are sampled, and limits for frames alone.
        sources: which media may be read; None = all kinds of sources, up to 1 GiB.
        Raises ModelError if the folder cannot be used, and ValueError for the other arguments.
        """
        folder = Folder.of(folder)
        video_rules = VideoRules(min_pixels=min_pixels, max_pixels=max_pixels)
        video_rules = video_rules if video is None else video.with_defaults(video_rules)
        processor = Processor.load(folder, min_pixels, max_pixels, video_rules)
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
        """Answers a conversation, or each of a list of conversations in one call of the engine.

        messages: a list of {"role": ..., "content": ...}, where content is a text or a list of
            parts, or a list of such conversations. The parts are
            - a text: {"type": "text", "text": ...};
            - a picture: {"type": "image"} with "image", "path" or "url" (a path, URL, data URL,
              bytes, or a decoded picture: Pillow, array or tensor) or with "base64"; or
              {"image_url": {"url": ...}};
            - a video: {"type": "video"} with "video", "path" or "url" (a path, URL, bytes, or its
              frames: a list of pictures, or an array or tensor [T, ...]).
            A picture or video may also have "min_pixels" and "max_pixels"; a video "fps" or
            "num_frames"; a video file "start_s" and "end_s", in seconds; a list of frames
            "frame_rate", in frames per second, without which "fps" cannot be used.
        sampling: None = greedy, at most 128 tokens.
        add_vision_id, control_strings: as for Processor.build_prompt.
        video: sampling rules over those of `load`.
        errors: "raise" raises ChatError for the first conversation that cannot be answered, before
            any is answered; "return" answers the others and sets `Answer.error`.
        """
        if errors not in ("raise", "return"):
            raise ValueError(f"errors is {errors!r}, expected raise or return")
        single = bool(messages) and isinstance(messages[0], Mapping)
        chats: list[Any] = [messages] if single else list(messages)
        processor = self.processor
        if video is not None:
            processor = _with_video_rules(processor, video)
        answers: list[Answer] = []
        requests: list[Request] = []
        for number, chat in enumerate(chats):
            where = "" if single else f"conversation {number}: "
            try:
                placeholders, media = self._prepare(chat, processor)
                visuals = tuple(visual for visual, _ in media)
                receipts = tuple(receipt for _, receipt in media)
                ids = processor.build_prompt(placeholders, visuals, add_vision_id, control_strings)
            except (ChatError, MediaError, PromptError) as error:
                if errors == "raise":
                    raise ChatError(f"{where}{error}") from error
                answers.append(Answer("", None, error=str(error)))
                continue
            answers.append(Answer("", None, receipts, ids))
            requests.append(Request(str(number), ids, visuals, sampling or Sampling()))
        for completion in self.engine.generate(requests):
            number, problem = int(completion.id), completion.error
            if problem and errors == "raise":
                raise ChatError(f"{'' if single else f'conversation {number}: '}{problem}")
            text = "" if problem else self.text(completion)
            answer = replace(answers[number], text=text, completion=completion, error=problem)
            answers[number] = answer
        return answers[0] if single else answers

    def text(self, completion: Completion) -> str:
        """Returns the text of a completion, up to the stop string that ended it."""
        stop = (completion.stop,) if completion.stop else ()
        return self.processor.decode(completion.output_ids, stop)

    def _prepare(
        self, chat: Sequence[Message], processor: Processor
    ) -> tuple[list[Message], list[tuple[VisualInput, Receipt]]]:
        """Returns the chat with {"type": kind} in place of each medium, and the prepared media."""
        check_messages(chat)
        messages: list[Message] = []
        media: list[tuple[VisualInput, Receipt]] = []
        for number, message in enumerate(chat):
            content = message["content"]
            if not isinstance(content, str):
                content = list(content)
                for index, part in enumerate(content):
                    if (kind := part_kind(part)) is None:
                        continue
                    try:
                        media.append(self._medium(kind, part, processor))
                    except (ValueError, TypeError) as error:
                        raise ChatError(f"messages[{number}].content[{index}]: {error}") from error
                    content[index] = {"type": kind}
            messages.append({**message, "content": content})
        return messages, media

    def _medium(
        self, kind: VisualKind, part: Message, processor: Processor
    ) -> tuple[VisualInput, Receipt]:
        """Returns the patches and the receipt of a medium. Raises ValueError or TypeError."""
        key, value = _medium_entry(kind, part)
        options = {option: part.get(option) for option in _OPTIONS[kind]}
        if kind == "image":
            rules = processor.image_rules.with_limits(options["min_pixels"], options["max_pixels"])
            processor = replace(processor, image_rules=rules)
        else:
            names = ("fps", "num_frames", *_PIXELS)
            given: dict[str, Any] = {name: options[name] for name in names}
            video = VideoRules(**given)
            processor = _with_video_rules(processor, video)
        if key == "base64":
            value = data_bytes(value, self.sources.max_bytes)
        if isinstance(value, str | Path):
            value = read_source(value, self.sources)
        rate = options.get("frame_rate")
        window = options.get("start_s"), options.get("end_s")
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
        if rate is None and options["fps"] is not None:
            raise ValueError("fps needs the frame_rate of these frames, in frames a second")
        if isinstance(value, list | tuple):
            value = [self._decoded_frame(frame) for frame in value]
        return processor.prepare_frames(value, rate)

    def _decoded_frame(self, frame: Any) -> Image.Image | np.ndarray | torch.Tensor:
        """Returns a frame of a list, decoded if it is a file."""
        if isinstance(frame, str | Path):
            frame = read_source(frame, self.sources)
        if isinstance(frame, bytes | bytearray | memoryview):
            return read_image(bytes(frame), self.processor.limits).pixels
        return frame  # type: ignore[no-any-return]


def _medium_entry(kind: VisualKind, part: Message) -> tuple[str, Any]:
    """Returns (key, medium) of a part. Raises ValueError for unknown and missing keys."""
    medium = "a picture" if kind == "image" else "a video"
    part_keys = {key for key, value in part.items() if value is not None} - {"type"}
    allowed = *_MEDIUM_KEYS[kind], *_OPTIONS[kind]
    unknown = sorted(map(str, part_keys.difference(allowed)))
    if unknown:
        raise ValueError(
            f"{unknown[0]:.80} is no key of {medium}, expected one of {', '.join(allowed)}"
        )
    medium_keys = [key for key in _MEDIUM_KEYS[kind] if key in part_keys]
    if len(medium_keys) != 1:
        raise ValueError(
            f"found {medium} under {len(medium_keys)} keys, expected it under one of "
            f"{', '.join(_MEDIUM_KEYS[kind])}"
        )
    for name in _OPTIONS[kind]:
        _check_number(name, part.get(name))
    key = medium_keys[0]
    value = part[key]
    if key == "image_url" and isinstance(value, Mapping):
        value = value.get("url")
    if key in ("path", "url", "image_url", "base64") and not isinstance(value, str | Path):
        raise ValueError(f"{key} is {value!r:.80}, expected a text")
    return key, value


def _check_number(name: str, value: object) -> None:
    """Raises ValueError unless an option is a number in its range, or None."""
    if value is None:
        return
    is_whole, zero_allowed = name in (*_PIXELS, "num_frames"), name in ("start_s", "end_s")
    is_number = isinstance(value, int if is_whole else int | float) and not isinstance(value, bool)
    if not is_number or not (value >= 0 if zero_allowed else value > 0):  # type: ignore[operator]
        number = "whole number" if is_whole else "number"
        bound = "of at least" if zero_allowed else "above"
        raise ValueError(f"{name} is {value!r:.80}, expected a {number} {bound} 0")


def _with_video_rules(processor: Processor, video: VideoRules) -> Processor:
    """Returns the processor with other rules for videos over its own."""
    return replace(
        processor,
        frame_rules=processor.frame_rules.with_limits(video.min_pixels, video.max_pixels),
        video_rules=video.with_defaults(processor.video_rules),
    )

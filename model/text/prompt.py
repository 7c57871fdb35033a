"""Turns a chat into the text that a checkpoint was trained on, by the checkpoint's own template.

A chat is a list of messages `{"role": ..., "content": ...}`; content is a text, or a list of parts
`{"type": "text", "text": ...}`, `{"type": "image"}`, `{"type": "video"}` (also `image_url`, or the
medium under its own key, as the templates allow). Knows strings only: no ids, no pixels.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any, NoReturn

import jinja2
import jinja2.ext
from jinja2.sandbox import ImmutableSandboxedEnvironment

from mediamill.model.checkpoint.folder import Folder
from mediamill.model.errors import ModelError, PromptError
from mediamill.model.inputs import VisualKind

Message = Mapping[str, Any]

IMAGE_PAD = "<|image_pad|>"
VIDEO_PAD = "<|video_pad|>"


class ChatTemplate:
    """A checkpoint's chat template, in a sandbox: it computes text and can do nothing else.

    variables: what the template may name besides the messages, such as eos_token.
    """

    def __init__(self, source: str, variables: Mapping[str, Any] | None = None) -> None:
        environment = ImmutableSandboxedEnvironment(
            trim_blocks=True, lstrip_blocks=True, extensions=[jinja2.ext.loopcontrols]
        )
        environment.filters["tojson"] = _to_json
        environment.globals["raise_exception"] = _raise
        environment.globals["strftime_now"] = _now
        try:
            self._template = environment.from_string(source)
        except jinja2.TemplateError as error:
            raise ModelError(f"the chat template cannot be read: {error}") from error
        self.source = source
        self._variables = dict(variables or {})

    @classmethod
    def load(cls, folder: str | Path | Folder) -> "ChatTemplate":
        """From the first of chat_template.jinja, chat_template.json and tokenizer_config.json that
        has one; of several with names, the one named default.

        Raises ModelError if none of them holds a template, or it cannot be read.
        """
        folder = Folder.of(folder)
        config = folder.read_json("tokenizer_config.json") or {}
        where, source = _find_source(folder, config)
        if source is None:
            raise ModelError(
                f"{folder}: found no chat template, expected chat_template.jinja, "
                "chat_template.json or chat_template in tokenizer_config.json"
            )
        try:
            return cls(source, _special_tokens(config))
        except ModelError as error:
            raise ModelError(f"{folder.path(where)}: {error}") from error

    def render(
        self,
        messages: Sequence[Message],
        add_generation_prompt: bool = True,
        add_vision_id: bool = False,
    ) -> str:
        """The prompt as text, with one pad string for each picture and video.

        add_generation_prompt: ends with the opening of the assistant's turn. add_vision_id: numbers
        the media ("Picture 1: "). Raises PromptError prompt_invalid if the template refuses.
        """
        try:
            return self._template.render(
                messages=list(messages),
                add_generation_prompt=add_generation_prompt,
                add_vision_id=add_vision_id,
                tools=None,
                documents=None,
                **self._variables,
            )
        except (jinja2.TemplateError, TypeError, ValueError, AttributeError, KeyError) as error:
            raise PromptError(
                "prompt_invalid", f"the chat template cannot render the messages: {error}"
            ) from error


def check_messages(messages: Sequence[Message]) -> None:
    """Raises PromptError prompt_invalid, saying which message is wrong, unless this is a chat."""
    if not isinstance(messages, (list, tuple)) or not messages:
        raise PromptError(
            "prompt_invalid", "messages is empty or no list, expected a list of messages"
        )
    for number, message in enumerate(messages):
        where = f"messages[{number}]"
        if not isinstance(message, Mapping):
            raise PromptError("prompt_invalid", f"{where} is {message!r:.80}, expected an object")
        role = message.get("role")
        if not isinstance(role, str) or not role.isidentifier():
            raise PromptError(
                "prompt_invalid",
                f"{where}.role is {role!r:.80}, expected system, user or assistant",
            )
        content = message.get("content")
        if isinstance(content, str):
            continue
        if not isinstance(content, (list, tuple)):
            raise PromptError(
                "prompt_invalid",
                f"{where}.content is {content!r:.80}, expected a text or a list of parts",
            )
        for index, part in enumerate(content):
            _check_part(f"{where}.content[{index}]", part)


def media_kinds(messages: Sequence[Message]) -> list[VisualKind]:
    """The kinds of the media that a checked chat mentions, in order."""
    kinds = (part_kind(part) for part in _parts(messages))
    return [kind for kind in kinds if kind is not None]


def part_kind(part: Mapping[str, Any]) -> VisualKind | None:
    """What a part of a message shows, or None for a text.

    As the published template decides: a key counts even if its value is null.
    """
    if part.get("type") == "image" or "image" in part or "image_url" in part:
        return "image"
    if part.get("type") == "video" or "video" in part:
        return "video"
    return None


def texts(messages: Sequence[Message]) -> Iterator[str]:
    """All texts of a checked chat, in order."""
    for message in messages:
        if isinstance(message["content"], str):
            yield message["content"]
    for part in _parts(messages):
        if part_kind(part) is None:
            yield part["text"]


def without_texts(messages: Sequence[Message]) -> list[Message]:
    """The same checked chat with one letter for each text: what the template alone adds."""
    bare: list[Message] = []
    for message in messages:
        content: object = "x"
        if not isinstance(message["content"], str):
            kinds = [part_kind(part) for part in message["content"]]
            content = [{"type": kind} if kind else {"type": "text", "text": "x"} for kind in kinds]
        bare.append({"role": message["role"], "content": content})
    return bare


def user_message(
    prompt: str, kinds: Sequence[VisualKind], system: str | None = None
) -> list[Message]:
    """A chat of one turn: the media first, then the text; before it the system text, if any."""
    parts: list[dict[str, Any]] = [{"type": kind} for kind in kinds]
    messages: list[Message] = [
        {"role": "user", "content": [*parts, {"type": "text", "text": prompt}]}
    ]
    if system is not None:
        messages.insert(0, {"role": "system", "content": system})
    return messages


def _parts(messages: Sequence[Message]) -> Iterator[Mapping[str, Any]]:
    for message in messages:
        if not isinstance(message["content"], str):
            yield from message["content"]


def _check_part(where: str, part: object) -> None:
    if not isinstance(part, Mapping):
        raise PromptError("prompt_invalid", f"{where} is {part!r:.80}, expected an object")
    if part_kind(part) is None and not isinstance(part.get("text"), str):
        raise PromptError(
            "prompt_invalid",
            f"{where} has the keys {sorted(map(str, part))}, expected an image, a video or a text",
        )


def _find_source(folder: Folder, tokenizer_config: Mapping[str, Any]) -> tuple[str, str | None]:
    """The file that has the template, and the template."""
    if (content := folder.read("chat_template.jinja")) is not None:
        try:
            return "chat_template.jinja", content.decode("utf-8")
        except UnicodeDecodeError as error:
            where = folder.path("chat_template.jinja")
            raise ModelError(f"{where} is no UTF-8 text: {error}") from None
    places = {
        "chat_template.json": folder.read_json("chat_template.json") or {},
        "tokenizer_config.json": tokenizer_config,
    }
    for name, values in places.items():
        found = values.get("chat_template")
        if isinstance(found, list):  # several named templates
            named = {one.get("name"): one.get("template") for one in found if _is_named(one)}
            found = named.get("default")
        if isinstance(found, str):
            return name, found
    return "", None


def _is_named(template: object) -> bool:
    return isinstance(template, dict) and isinstance(template.get("name"), str)


def _special_tokens(config: Mapping[str, Any]) -> dict[str, str]:
    """bos_token, eos_token, ... as text; the file has each as a string or as an object."""
    tokens = {}
    for key in ("bos_token", "eos_token", "unk_token", "pad_token"):
        value = config.get(key)
        if isinstance(value, dict):
            value = value.get("content")
        if isinstance(value, str):
            tokens[key] = value
    return tokens


def _to_json(value: object, ensure_ascii: bool = False, indent: int | None = None) -> str:
    # jinja's own filter escapes for HTML, which no model was trained on
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent)


def _raise(message: str) -> NoReturn:
    raise jinja2.TemplateError(message)


def _now(form: str) -> str:
    return datetime.now().astimezone().strftime(form)

"""Renders chats with a checkpoint's chat template, and checks their messages.

A chat is a list of messages `{"role": ..., "content": ...}`; content is a text, or a list of parts
`{"type": "text", "text": ...}`, `{"type": "image"}`, `{"type": "video"}` (also `image_url`, or the
medium under its own key, as the templates allow).
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
    """A checkpoint's Jinja template, run in a sandbox, where it can only compute text."""

    def __init__(self, source: str, variables: Mapping[str, Any] | None = None) -> None:
        """variables: values that the template may use, such as eos_token. Raises ModelError."""
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
        """Reads the template of a checkpoint folder.

        The first of chat_template.jinja, chat_template.json and tokenizer_config.json that has one
        counts; of several named ones, default. Raises ModelError for none or a malformed one.
        """
        folder = Folder.of(folder)
        config = folder.read_json("tokenizer_config.json") or {}
        file_name, source = _find_template(folder, config)
        if source is None:
            raise ModelError(
                f"{folder}: found no chat template, expected chat_template.jinja, "
                "chat_template.json or chat_template in tokenizer_config.json"
            )
        try:
            return cls(source, _special_tokens(config))
        except ModelError as error:
            raise ModelError(f"{folder.path(file_name)}: {error}") from error

    def render(
        self,
        messages: Sequence[Message],
        add_generation_prompt: bool = True,
        add_vision_id: bool = False,
    ) -> str:
        """Returns the prompt as text, with one pad string for each picture and video.

        add_generation_prompt: ends with the beginning of the assistant's turn.
        add_vision_id: numbers the media ("Picture 1: ").
        Raises PromptError prompt_invalid if the template cannot render the messages.
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
            raise _invalid(f"the chat template cannot render the messages: {error}") from error


def check_messages(messages: Sequence[Message]) -> None:
    """Raises PromptError prompt_invalid for a malformed chat, naming the message or part."""
    if not isinstance(messages, (list, tuple)) or not messages:
        raise _invalid("messages is empty or no list, expected a list of messages")
    for number, message in enumerate(messages):
        where = f"messages[{number}]"
        if not isinstance(message, Mapping):
            raise _invalid(f"{where} is {message!r:.80}, expected an object")
        role, content = message.get("role"), message.get("content")
        if not isinstance(role, str) or not role.isidentifier():
            raise _invalid(f"{where}.role is {role!r:.80}, expected system, user or assistant")
        if isinstance(content, str):
            _check_text(content, f"{where}.content")
            continue
        if not isinstance(content, (list, tuple)):
            raise _invalid(
                f"{where}.content is {content!r:.80}, expected a text or a list of parts"
            )
        for index, part in enumerate(content):
            location = f"{where}.content[{index}]"
            if not isinstance(part, Mapping):
                raise _invalid(f"{location} is {part!r:.80}, expected an object")
            if part_kind(part) is not None:
                continue
            if not isinstance(part.get("text"), str):
                keys = f"{sorted(map(str, part))}"
                raise _invalid(
                    f"{location} has the keys {keys:.200}, expected an image, a video or a text"
                )
            _check_text(part["text"], f"{location}.text")


def _check_text(text: str, where: str) -> None:
    """Raises PromptError prompt_invalid for a text that has no UTF-8 form."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise _invalid(
            f"{where} holds half of a UTF-16 pair (character {error.start}), expected a text"
        ) from None


def _invalid(message: str) -> PromptError:
    return PromptError("prompt_invalid", message)


def media_kinds(messages: Sequence[Message]) -> list[VisualKind]:
    """Returns the kinds of the media that a checked chat mentions, in order."""
    return [kind for part in _parts(messages) if (kind := part_kind(part)) is not None]


def part_kind(part: Mapping[str, Any]) -> VisualKind | None:
    """Returns the kind of medium of a message's part, or None for a text.

    The rule is that of the published template: a key counts even if its value is null.
    """
    if part.get("type") == "image" or "image" in part or "image_url" in part:
        return "image"
    if part.get("type") == "video" or "video" in part:
        return "video"
    return None


def texts(messages: Sequence[Message]) -> Iterator[str]:
    """Yields all texts of a checked chat: those of the messages first, then those of the parts."""
    for message in messages:
        if isinstance(message["content"], str):
            yield message["content"]
    for part in _parts(messages):
        if part_kind(part) is None:
            yield part["text"]


def replace_texts(messages: Sequence[Message]) -> list[Message]:
    """Returns a checked chat with each text replaced by "x", to see what the template adds."""
    replaced: list[Message] = []
    for message in messages:
        content: object = "x"
        if not isinstance(message["content"], str):
            kinds = [part_kind(part) for part in message["content"]]
            content = [{"type": kind} if kind else {"type": "text", "text": "x"} for kind in kinds]
        replaced.append({"role": message["role"], "content": content})
    return replaced


def user_message(
    prompt: str, kinds: Sequence[VisualKind], system: str | None = None
) -> list[Message]:
    """Returns a chat of one turn: the system text, if any, then the media and the prompt."""
    content = [*({"type": kind} for kind in kinds), {"type": "text", "text": prompt}]
    first: list[Message] = [] if system is None else [{"role": "system", "content": system}]
    return [*first, {"role": "user", "content": content}]


def _parts(messages: Sequence[Message]) -> Iterator[Mapping[str, Any]]:
    for message in messages:
        if not isinstance(message["content"], str):
            yield from message["content"]


def _find_template(folder: Folder, tokenizer_config: Mapping[str, Any]) -> tuple[str, str | None]:
    """Returns (name of the file, template); the template is None if no file has one."""
    if (content := folder.read("chat_template.jinja")) is not None:
        try:
            return "chat_template.jinja", content.decode("utf-8")
        except UnicodeDecodeError as error:
            path = folder.path("chat_template.jinja")
            raise ModelError(f"{path} is no UTF-8 text: {error}") from None
    configs = {
        "chat_template.json": folder.read_json("chat_template.json") or {},
        "tokenizer_config.json": tokenizer_config,
    }
    for name, config in configs.items():
        template = config.get("chat_template")
        if isinstance(template, list):  # several named templates
            entries = [entry for entry in template if isinstance(entry, dict)]
            defaults = [entry for entry in entries if entry.get("name") == "default"]
            template = defaults[-1].get("template") if defaults else None
        if isinstance(template, str):
            return name, template
    return "", None


def _special_tokens(config: Mapping[str, Any]) -> dict[str, str]:
    """Returns bos_token, eos_token, ... as text; the file has each as a string or an object."""
    tokens = {}
    for key in ("bos_token", "eos_token", "unk_token", "pad_token"):
        value = config.get(key)
        if isinstance(value, dict):
            value = value.get("content")
        if isinstance(value, str):
            tokens[key] = value
    return tokens


def _to_json(value: object, ensure_ascii: bool = False, indent: int | None = None) -> str:
    # jinja's own filter escapes for HTML, which no chat template means.
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent)


def _raise(message: str) -> NoReturn:
    raise jinja2.TemplateError(message)


def _now(form: str) -> str:
    return datetime.now().astimezone().strftime(form)

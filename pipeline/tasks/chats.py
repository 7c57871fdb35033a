"""Chooses the prompt or chat of a row: its own, or else the job's."""

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from mediamill.model.text.prompt import part_kind
from mediamill.pipeline.fetching import media_uris
from mediamill.schemas import columns as c
from mediamill.schemas.errors import ErrorCode, JobError, RowError
from mediamill.schemas.job import JobConfig
from mediamill.schemas.manifest import ManifestSchema
from mediamill.schemas.strict_json import parse_strict

# The keys under which a part of a chat may name its medium.
_MEDIUM_KEYS = ("image", "video", "path", "url", "image_url", "video_url", "base64")
_LONG_NAME = 4096  # characters; a path has fewer
_MAX_DEPTH = 64  # of a chat; a published one has about six levels
_JSON_KINDS = {
    "dict": "object",
    "str": "text",
    "int": "number",
    "float": "number",
    "list": "list",
}


def check_prompt(job: JobConfig, manifest: ManifestSchema, where: str) -> None:
    """Raises JobError if neither the job nor the manifest `where` has a prompt."""
    if job.prompt is None and not manifest.has_prompts:
        raise JobError(
            f"prompt: found none in the job, and no column 'prompt' or 'messages' in {where}, "
            "expected one of them"
        )


def row_system(row: Mapping[str, Any], system: str | None) -> str | None:
    """Returns the row's own system message, else the job's."""
    row_value: str | None = row.get(c.SYSTEM)
    return system if row_value is None else row_value


def row_chat(row: Mapping[str, Any], prompt: str | None, system: str | None) -> Mapping[str, Any]:
    """Returns the row's own chat, else a chat of its prompt, else of the job's prompt.

    Raises RowError prompt_invalid for a chat that is not a JSON list, or without any prompt.
    """
    if row.get(c.MESSAGES) is not None:
        return {"messages": _messages(row[c.MESSAGES])}
    if row.get(c.PROMPT) is not None:
        prompt = row[c.PROMPT]
    if prompt is None:
        raise RowError(
            ErrorCode.PROMPT_INVALID,
            "found no prompt in the row and none in the job, expected one",
        )
    return {"prompt": prompt, "system": row_system(row, system)}


def check_media(
    row: Mapping[str, Any],
    chats: Sequence[Mapping[str, Any]],
    uris: Sequence[str | None],
    base: str,
) -> list[Mapping[str, Any]]:
    """Checks that a row's chats ask about the media that the row has; returns the chats.

    A part of a chat stands for the row's medium at the same place, and may name it. Parts that
    hold a whole medium are replaced, in the returned chats, by parts without a name. A row may
    have no media where its own prompt or chat is a text, and `media` is not null.

    uris: of the row's media. base: the folder that relative paths are relative to.
    Raises RowError: media_empty, prompt_invalid.
    """
    checked: list[Mapping[str, Any]] = []
    for chat in chats:
        if "messages" not in chat:
            is_text = row.get(c.PROMPT) is not None and row.get(c.MEDIA) is not None
            if not uris and not is_text:
                raise _no_media("the prompt", row)
            checked.append(chat)
            continue
        named = _named_media(chat["messages"])
        if named and not uris:
            raise _no_media("the chat", row)
        for number, (where, names) in enumerate(named):
            uri = uris[number] if number < len(uris) else None
            for name in names:
                if uri is None or not media_uris.same_medium(name, uri, base):
                    raise _other_medium(where, name, uris, number)
        checked.append({"messages": _without_data(chat["messages"])})
    return checked


def _no_media(what: str, row: Mapping[str, Any]) -> RowError:
    media = "null" if row.get(c.MEDIA) is None else "an empty list"
    return RowError(ErrorCode.MEDIA_EMPTY, f"media: found {media}, but {what} is about media")


def _other_medium(where: str, name: str, uris: Sequence[str | None], number: int) -> RowError:
    if number >= len(uris):
        expected = f"the row has no medium {number + 1}"
    elif (uri := uris[number]) is None:
        expected = f"the row's medium {number + 1} has no name"
    else:
        expected = f"the row's medium {number + 1} is {media_uris.shown(uri)}"
    shown = media_uris.shown(name).encode(errors="replace").decode()  # of lone surrogates
    return RowError(
        ErrorCode.PROMPT_INVALID, f"{where}: found {shown}, expected the row's media: {expected}"
    )


def _named_media(messages: Sequence[Any]) -> list[tuple[str, list[str]]]:
    """Returns where each medium of a chat is, and its names there, in order.

    Passes over what is malformed, which is reported when the chat is rendered.
    Raises RowError, prompt_invalid, for a name that is no text.
    """
    media: list[tuple[str, list[str]]] = []
    for at, message in enumerate(messages):
        content = message.get("content") if isinstance(message, Mapping) else None
        for index, part in enumerate(content if isinstance(content, list) else ()):
            if isinstance(part, Mapping) and part_kind(part) is not None:
                where = f"messages[{at}].content[{index}]"
                media.append((where, [*_names(part, where)]))
    return media


def _names(part: Mapping[str, Any], where: str) -> Iterator[str]:
    for key in _MEDIUM_KEYS:
        value = part.get(key)
        if isinstance(value, Mapping):
            value = value.get("url")
        if value is None or value == "":
            continue
        if not isinstance(value, str):
            kind = _JSON_KINDS.get(type(value).__name__, "value of another kind")
            raise RowError(
                ErrorCode.PROMPT_INVALID, f"{where}.{key}: found a {kind}, expected a path or URL"
            )
        yield f"data:;base64,{value}" if key == "base64" else value


def _without_data(messages: Sequence[Any]) -> list[Any]:
    """Returns the chat without the bytes of media: they would be copied with each message."""
    return [
        {**message, "content": [_without_name(part) for part in message["content"]]}
        if isinstance(message, Mapping) and isinstance(message.get("content"), list)
        else message
        for message in messages
    ]


def _without_name(part: Any) -> Any:
    kind = part_kind(part) if isinstance(part, Mapping) else None
    if kind is None or all(len(name) <= _LONG_NAME for name in _names(part, "")):
        return part
    return {"type": kind}


def _messages(text: str) -> list[Any]:
    try:
        chat = parse_strict(text)
        if "\\u" in text:
            json.dumps(chat, ensure_ascii=False).encode()  # raises for half of a surrogate pair
        if isinstance(chat, list):
            _check_depth(chat, _MAX_DEPTH)
            return chat
        problem = f"a JSON {_JSON_KINDS.get(type(chat).__name__, 'value')}"
    except UnicodeEncodeError:
        problem = "half of a surrogate pair, which is no character"
    except RecursionError:
        problem = f"JSON that is nested more than {_MAX_DEPTH} deep"
    except ValueError as error:
        problem = f"no JSON ({error})"
    message = f"messages: found {problem}, expected a list of messages"
    raise RowError(ErrorCode.PROMPT_INVALID, message.encode(errors="replace").decode())


def _check_depth(value: Any, left: int) -> None:
    """Raises RecursionError for values that are nested too deep to be passed on."""
    if left == 0:
        raise RecursionError
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    for member in inner:
        _check_depth(member, left - 1)

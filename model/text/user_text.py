"""Turns a chat whose texts hold control strings into token ids in which they are plain text.

Only what the template itself writes can become a control token; the result is proved by comparing
its control tokens with those of the same chat without texts. Knows strings and ids, no media.
"""

import re
from collections.abc import Callable, Sequence

from mediamill.model.errors import PromptError
from mediamill.model.text.prompt import ChatTemplate, Message, media_kinds, texts, without_texts
from mediamill.model.text.tokenizer import Tokenizer

_PRIVATE = range(0xF0000, 0xFFFFE)  # code points that Unicode never assigns


def encode_texts_plainly(
    tokenizer: Tokenizer,
    template: ChatTemplate,
    messages: Sequence[Message],
    add_vision_id: bool = False,
) -> list[int]:
    """Token ids of a checked chat, with every control string of its texts as ordinary tokens.

    A control string that several texts, or a text and the template, make together counts as the
    texts'. Raises PromptError prompt_invalid if the template rewrites texts, so that what is theirs
    cannot be told, or if any other control tokens come out than the template alone writes.
    """
    text = template.render(messages, add_vision_id=add_vision_id)
    theirs = _spans_of_texts(text, template, messages, add_vision_id)
    longest_first = sorted(tokenizer.special, key=len, reverse=True)
    control = re.compile("|".join(map(re.escape, longest_first)) or "(?!)")
    ids: list[int] = []
    done = 0
    for match in control.finditer(text):
        start, stop = match.span()
        if any(start < end and first < stop for first, end in theirs):
            ids += tokenizer.encode(text[done:start]) + tokenizer.encode_plain(match[0])
            done = stop
    ids += tokenizer.encode(text[done:])
    bare = template.render(without_texts(messages), add_vision_id=add_vision_id)
    special = set(tokenizer.special.values())
    wanted = [one for one in tokenizer.encode(bare) if one in special]
    if [one for one in ids if one in special] != wanted:
        raise PromptError(
            "prompt_invalid",
            "the texts of the prompt change the control tokens that the chat template writes",
        )
    return ids


def _spans_of_texts(
    text: str, template: ChatTemplate, messages: Sequence[Message], add_vision_id: bool
) -> list[tuple[int, int]]:
    """(start, stop) of what the rendered chat has from the messages' texts."""
    used = set(text).union(*texts(messages))
    free = (chr(code) for code in _PRIVATE if chr(code) not in used)
    opening, closing = next(free), next(free)
    marked = _with_texts(messages, lambda one: f"{opening}{one}{closing}")
    pieces = re.split(
        f"([{opening}{closing}])", template.render(marked, add_vision_id=add_vision_id)
    )
    spans: list[tuple[int, int]] = []
    at, opened = 0, False
    for piece in pieces:
        if piece in (opening, closing):
            if (piece == opening) == opened:
                raise _rewritten()
            opened = not opened
            continue
        if opened and piece:
            spans.append((at, at + len(piece)))
        at += len(piece)
    if opened or "".join(one for one in pieces if one not in (opening, closing)) != text:
        raise _rewritten()
    return spans


def _with_texts(messages: Sequence[Message], change: Callable[[str], str]) -> list[Message]:
    """The same checked chat with each text changed."""
    changed: list[Message] = []
    for message in messages:
        content = message["content"]
        if isinstance(content, str):
            changed.append({**message, "content": change(content)})
            continue
        parts = [
            part
            if media_kinds([{"role": "user", "content": [part]}])
            else {**part, "text": change(part["text"])}
            for part in content
        ]
        changed.append({**message, "content": parts})
    return changed


def _rewritten() -> PromptError:
    return PromptError(
        "prompt_invalid",
        "the chat template rewrites the texts of the messages, so that control strings in them "
        "cannot be told from its own: control_strings has to be 'refuse'",
    )

"""Encodes chats so that only the chat template, and no text of a user, writes control tokens.

A control string such as "<|im_end|>" in a text is either refused or encoded as ordinary text. Both
functions verify the result against the same chat with its texts replaced.
"""

import itertools
import re
from collections.abc import Callable, Sequence

from mediamill.model.errors import PromptError
from mediamill.model.text.prompt import ChatTemplate, Message, part_kind, replace_texts, texts
from mediamill.model.text.tokenizer import Tokenizer

_PRIVATE_USE = range(0xF0000, 0xFFFFE)  # code points that Unicode never assigns


def encode_refusing(
    tokenizer: Tokenizer,
    template: ChatTemplate,
    messages: Sequence[Message],
    add_vision_id: bool = False,
) -> list[int]:
    """Returns the token ids of a checked chat.

    Raises PromptError prompt_invalid if a text holds a control string, or if several texts make one
    together.
    """
    rendered = template.render(messages, add_vision_id=add_vision_id)
    for message_text in texts(messages):
        if control_strings := tokenizer.control_tokens_in(message_text):
            raise PromptError(
                "prompt_invalid",
                f"a text of the prompt holds the control string {control_strings[0]}, which only "
                "the chat template may write",
            )
    template_only = template.render(replace_texts(messages), add_vision_id=add_vision_id)
    for control_string in tokenizer.special:
        if rendered.count(control_string) != template_only.count(control_string):
            raise PromptError(
                "prompt_invalid",
                f"the texts of the prompt together make the control string {control_string}, which "
                "only the chat template may write",
            )
    return tokenizer.encode(rendered)


def encode_plainly(
    tokenizer: Tokenizer,
    template: ChatTemplate,
    messages: Sequence[Message],
    add_vision_id: bool = False,
) -> list[int]:
    """Returns the token ids of a checked chat, with control strings in texts as ordinary tokens.

    A control string that is made partly of a text counts as the text's.
    Raises PromptError prompt_invalid if the template rewrites texts, so that they cannot be told
    from its own, or if the control tokens are not those that the template alone writes.
    """
    rendered = template.render(messages, add_vision_id=add_vision_id)
    text_spans = _text_spans(rendered, template, messages, add_vision_id)
    longest_first = sorted(tokenizer.special, key=len, reverse=True)
    control_string = re.compile("|".join(map(re.escape, longest_first)) or "(?!)")
    ids: list[int] = []
    encoded = 0  # characters
    for match in control_string.finditer(rendered):
        start, stop = match.span()
        if any(start < span_stop and span_start < stop for span_start, span_stop in text_spans):
            ids += tokenizer.encode(rendered[encoded:start]) + tokenizer.encode_plain(match[0])
            encoded = stop
    ids += tokenizer.encode(rendered[encoded:])
    template_only = template.render(replace_texts(messages), add_vision_id=add_vision_id)
    control_ids = set(tokenizer.special.values())
    expected = [token for token in tokenizer.encode(template_only) if token in control_ids]
    if [token for token in ids if token in control_ids] != expected:
        raise PromptError(
            "prompt_invalid",
            "the texts of the prompt change the control tokens that the chat template writes",
        )
    return ids


def _text_spans(
    rendered: str, template: ChatTemplate, messages: Sequence[Message], add_vision_id: bool
) -> list[tuple[int, int]]:
    """Returns (start, stop) in the rendered chat of each part that comes from a text.

    The chat is rendered once more with a mark, an unused character, before and behind each text.
    """
    used = set(rendered).union(*texts(messages))
    unused = (chr(code) for code in _PRIVATE_USE if chr(code) not in used)
    opening, closing = next(unused), next(unused)
    with_marks = _with_texts(messages, lambda text: f"{opening}{text}{closing}")
    marked = template.render(with_marks, add_vision_id=add_vision_id)
    # The even parts are the template's or a text's; the odd ones are the marks between them.
    parts = re.split(f"([{opening}{closing}])", marked)
    marks, between = parts[1::2], parts[::2]
    pairs = len(marks) // 2
    if marks != [opening, closing] * pairs or "".join(between) != rendered:
        raise PromptError(
            "prompt_invalid",
            "the chat template rewrites the texts of the messages, so that control strings in "
            "them cannot be told from its own: control_strings has to be 'refuse'",
        )
    stops = list(itertools.accumulate(map(len, between)))
    return [span for span in zip(stops[:-1:2], stops[1::2], strict=True) if span[0] < span[1]]


def _with_texts(messages: Sequence[Message], change: Callable[[str], str]) -> list[Message]:
    """Returns a checked chat with `change` applied to each text."""
    changed: list[Message] = []
    for message in messages:
        content = message["content"]
        if isinstance(content, str):
            content = change(content)
        else:
            content = [
                part if part_kind(part) else {**part, "text": change(part["text"])}
                for part in content
            ]
        changed.append({**message, "content": content})
    return changed

"""Writes the prompt of a row as the model was given it, from the checkpoint's chat template."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from mediamill.model.checkpoint.folder import Folder
from mediamill.model.errors import ModelError, PromptError
from mediamill.model.inputs import VisualKind
from mediamill.model.text.prompt import IMAGE_PAD, VIDEO_PAD, ChatTemplate, user_message
from mediamill.pipeline.checkpoint.checkpoint_hash import place_of
from mediamill.pipeline.inspect.answers import AnswerLayout
from mediamill.schemas import columns as c
from mediamill.schemas.errors import JobError


def prompts_of(
    row: Mapping[str, Any], layout: AnswerLayout, parts: Mapping[str, Any], model: str
) -> list[tuple[str, str]]:
    """Returns the prompts of a row, by the name of the question, each as text.

    Pads of a medium are written once, with their number. Without the checkpoint, or where a text is
    refused, the plain prompt comes instead, with the reason.
    model: the folder of the checkpoint, as the row has it.
    """
    own = row.get(c.PROMPT) is not None or row.get(c.MESSAGES) is not None
    if not parts and not own:  # an output without a log
        return []
    try:
        place = place_of(model)
        template = ChatTemplate.load(Folder.of(place.path if place.is_local else place.url))
    except (ModelError, JobError, OSError) as error:
        return [(a.name, f"{_plain(row, a.prompt)}\n({error})") for a in layout.answers]
    prompts = []
    for answer in layout.answers:
        try:
            text = template.render(_messages(row, answer.prompt, parts.get("system")))
            prompts.append((answer.name, _with_counts(text, row)))
        except (PromptError, ValueError) as error:
            prompts.append((answer.name, f"{_plain(row, answer.prompt)}\n({error})"))
    return prompts


def _messages(row: Mapping[str, Any], prompt: str | None, system: str | None) -> Sequence[Any]:
    if row.get(c.MESSAGES) is not None:
        messages: Sequence[Any] = json.loads(row[c.MESSAGES])
        return messages
    own = row.get(c.PROMPT)
    text = (prompt or "") if own is None else own
    kinds: list[VisualKind] = [
        "video" if receipt["type"] == "video" else "image" for receipt in row.get(c.RECEIPT) or ()
    ]
    return user_message(text, kinds, row.get(c.SYSTEM) or system)


def _plain(row: Mapping[str, Any], prompt: str | None) -> str:
    return str(row.get(c.MESSAGES) or row.get(c.PROMPT) or prompt or "")


def _with_counts(text: str, row: Mapping[str, Any]) -> str:
    """Writes the number of tokens behind each pad, in the order of the media."""
    for pad, kind in ((IMAGE_PAD, "image"), (VIDEO_PAD, "video")):
        receipts = [r for r in row.get(c.RECEIPT) or () if r["type"] == kind]
        first, *rest = text.split(pad)
        pieces = [first]
        for number, piece in enumerate(rest):
            tokens = receipts[number]["visual_tokens"] if number < len(receipts) else 1
            pieces.append(f"{pad} × {tokens}{piece}")
        text = "".join(pieces)
    return text

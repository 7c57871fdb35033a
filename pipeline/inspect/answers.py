"""Knows the columns of an output's answers: one text, several, JSON fields, scores or vectors."""

import base64
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from mediamill.pipeline.inspect.output import Output
from mediamill.schemas import columns as c

_PLAIN = (c.FINISH_REASON, c.MEAN_LOGPROB, c.PROMPT_TOKENS, c.OUTPUT_TOKENS)
_OTHERS = (c.SCORES, c.PROBABILITY, c.EMBEDDING, c.DUPLICATE_OF, c.CONTENT_HASH)
_WINDOW = ("video_id", "window", "start_s", "end_s")


@dataclass(frozen=True)
class AnswerColumns:
    """The columns of one prompt's answer. name: of the prompt; empty if there is only one.

    fields: columns of a JSON answer, by the names of its properties.
    """

    name: str
    prompt: str | None
    text: str | None
    finish_reason: str | None
    mean_logprob: str | None
    fields: Mapping[str, str]


@dataclass(frozen=True)
class AnswerLayout:
    """What kind of job made an output, and where its answers are."""

    job: str
    answers: tuple[AnswerColumns, ...]
    user: tuple[str, ...]  # columns of the manifest that the job does not read

    @property
    def texts(self) -> tuple[str, ...]:
        """The columns with texts."""
        return tuple(answer.text for answer in self.answers if answer.text is not None)


def answer_layout(output: Output) -> AnswerLayout:
    """Returns the layout of an output: by its log, or by its columns if it has none."""
    return layout_of(output.schema.names, output.header)


def layout_of(names: list[str], header: Mapping[str, Any] | None) -> AnswerLayout:
    """Returns the layout of a result with these columns. header: of its log; None without one."""
    parts: Mapping[str, Any] = (header or {}).get("parts", {})
    job = parts.get("job") or _guess(names)
    manifest = _manifest_names(header)
    known = {*c.RESULT_COLUMNS, *c.MANIFEST_COLUMNS, *_OTHERS, *_WINDOW}
    own = [name for name in names if name not in known and name not in manifest]
    prompts: Mapping[str, Any] = parts.get("prompts") or {}
    if not header:
        own = []  # without a log, columns of the user and of JSON answers look alike
    answers = [
        AnswerColumns(
            name,
            _prompt_text(prompt),
            name if name in names else None,
            _present(f"{name}_{c.FINISH_REASON}", names),
            _present(f"{name}_{c.MEAN_LOGPROB}", names),
            _fields(own, f"{name}_", prompts),
        )
        for name, prompt in prompts.items()
    ]
    if not answers:
        plain = AnswerColumns(
            "",
            parts.get("prompt"),
            _present(c.TEXT, names),
            _present(c.FINISH_REASON, names),
            _present(c.MEAN_LOGPROB, names),
            {name: name for name in own},
        )
        answers = [plain]
    user = tuple(name for name in names if name in manifest and name not in c.MANIFEST_COLUMNS)
    if not manifest:
        user = tuple(name for name in names if name not in known)
    return AnswerLayout(job, tuple(answers), user)


def _fields(own: list[str], prefix: str, prompts: Mapping[str, Any]) -> dict[str, str]:
    """The columns of a prompt's JSON answer, by property."""
    longer = [f"{name}_" for name in prompts if f"{name}_".startswith(prefix) and name != prefix]
    longer = [other for other in longer if len(other) > len(prefix)]
    plain = {f"{prefix}{name}" for name in (*_PLAIN, c.STATUS, c.ERROR_CODE, c.ERROR_MESSAGE)}
    return {
        name.removeprefix(prefix): name
        for name in own
        if name.startswith(prefix) and name not in plain and not name.startswith(tuple(longer))
    }


def _present(name: str, names: list[str]) -> str | None:
    return name if name in names else None


def _prompt_text(prompt: Any) -> str | None:
    if isinstance(prompt, Mapping):
        prompt = prompt.get("prompt")
    return prompt if isinstance(prompt, str) else None


def _guess(names: list[str]) -> str:
    if c.EMBEDDING in names:
        return "embed"
    if c.SCORES in names:
        return "score"
    return "annotate" if "video_id" in names else "caption"


def _manifest_names(header: Mapping[str, Any] | None) -> set[str]:
    text = (header or {}).get("manifest_schema")
    if not text:
        return set()
    try:
        return set(pa.ipc.read_schema(pa.py_buffer(base64.b64decode(text))).names)
    except (ValueError, pa.ArrowException):
        return set()

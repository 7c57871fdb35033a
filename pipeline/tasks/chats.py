"""Chooses the prompt or chat of a row: its own, or else the job's."""

import json
from collections.abc import Mapping
from typing import Any

from mediamill.schemas import columns as c
from mediamill.schemas.errors import ErrorCode, JobError, RowError
from mediamill.schemas.job import JobConfig
from mediamill.schemas.manifest import ManifestSchema


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


def _messages(text: str) -> list[Any]:
    try:
        chat = json.loads(text)
        if "\\u" in text:
            json.dumps(chat, ensure_ascii=False).encode()  # raises for half of a surrogate pair
        if isinstance(chat, list):
            return chat
        problem = f"a JSON {type(chat).__name__}"
    except UnicodeEncodeError:
        problem = "half of a surrogate pair, which is no character"
    except (ValueError, RecursionError) as error:
        problem = f"no JSON ({error})"
    message = f"messages: found {problem}, expected a list of messages"
    raise RowError(ErrorCode.PROMPT_INVALID, message)

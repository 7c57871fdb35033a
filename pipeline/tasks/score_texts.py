"""Turns a row and the job's word on scores into the texts to score, or into the row's error.

Tokens are not known here.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mediamill.model.errors import ModelError
from mediamill.model.text.tokenizer import Tokenizer
from mediamill.pipeline.storage.storage import Place
from mediamill.schemas.errors import ErrorCode, JobError, RowError
from mediamill.schemas.job_tasks import ScoreConfig
from mediamill.schemas.task import Task

END_OF_TURN = "<|im_end|>"


def check_texts(task: Task, checkpoint: Place) -> None:
    """Whether the checkpoint's tokenizer can take what the job says of scores. Raises JobError."""
    if task.kind != "score":
        return
    try:
        tokenizer = Tokenizer.load(Path(checkpoint.path) if checkpoint.is_local else checkpoint.url)
    except ModelError as error:
        raise JobError(str(error)) from error
    if task.score.end_token and END_OF_TURN not in tokenizer.special:
        raise JobError(
            f"score.end_token: found true, and the checkpoint has no token {END_OF_TURN}, which "
            "would end an answer: expected false"
        )
    for number, text in enumerate(task.score.texts or (), start=1):
        if found := tokenizer.control_tokens_in(text):
            raise JobError(
                f"score.texts: found the control string {found[0]} in text {number}, which only "
                "the chat template may write"
            )


def texts_to_score(row: Mapping[str, Any], config: ScoreConfig) -> Sequence[str]:
    """The job's texts, else the row's own: one, or a list. Raises RowError prompt_invalid."""
    if config.texts is not None:
        return config.texts
    found = row[config.column or ""]
    texts = [found] if isinstance(found, str) else found
    what = "null" if texts is None else "an empty list" if not texts else None
    for number, text in enumerate(texts or (), start=1):
        if not text:
            where = f" as text {number} of {len(texts)}" if texts is found else ""
            what = f"{'null' if text is None else 'an empty text'}{where}"
            break
    if what is not None:
        raise RowError(
            ErrorCode.PROMPT_INVALID,
            f"{config.column} (score.column): found {what}, expected a text or a list of texts",
        )
    return list(texts)

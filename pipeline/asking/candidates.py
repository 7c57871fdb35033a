"""Turns a row and the job's word on scores into the texts to score, or into the row's error.

Tokens are not known here.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from schemas.errors import ErrorCode, RowError
from schemas.job_tasks import ScoreConfig


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

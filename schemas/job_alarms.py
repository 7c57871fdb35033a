"""Defines the keys that stop a job early whose answers are bad; see schemas/job_config.py.

The kinds are those of pipeline/quality/findings.py.
"""

from typing import Annotated, Literal, Self, get_args

from pydantic import model_validator

from mediamill.schemas.job_types import Count, Expected, OptionalShare, Strict, key

Language = Literal[
    "ar", "de", "el", "en", "es", "fr", "he", "hi", "id", "it", "ja", "ko", "nl", "pl", "pt", "ru",
    "sv", "th", "tr", "vi", "zh",
]  # fmt: skip
LANGUAGES: tuple[str, ...] = get_args(Language)


class Alarms(Strict):
    """Shares of answers of a run above which the job stops; null = never."""

    cut_off: OptionalShare = key(None, "answers that end at generation.max_new_tokens")
    loop: OptionalShare = key(None, "answers that repeat themselves again and again")
    refusal: OptionalShare = key(None, "answers that say that the model cannot or will not answer")
    thinking: OptionalShare = key(None, "answers in which the model thinks aloud")
    preamble: OptionalShare = key(None, "answers that begin like: Here is a caption")
    empty: OptionalShare = key(None, "answers without a letter or a digit")
    language: OptionalShare = key(None, "answers in another language than alarms.expect_language")
    not_finite: OptionalShare = key(None, "answers of a model whose numbers overflow")
    repeated: OptionalShare = key(None, "answers that are the same, but for case and digits")
    expect_language: Annotated[Language | None, Expected(f"{', '.join(LANGUAGES)}, or null")] = key(
        None, "language that answers should have; null = any"
    )
    rows: Count = key(200, "answers of a run before an alarm applies")

    @model_validator(mode="after")
    def _complete(self) -> Self:
        if self.language is not None and self.expect_language is None:
            raise ValueError("found language without expect_language, expected both")
        return self

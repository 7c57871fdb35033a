"""Defines the keys of further tries of a row in the same run; see schemas/job_config.py."""

from typing import Annotated

from pydantic import Field

from mediamill.schemas.job_types import Expected, NonNegative, Positive, Strict, key

_Tries = Annotated[int, Field(ge=0, le=10), Expected("a whole number from 0 to 10")]


class Retries(Strict):
    """Further tries of a row in the same run, by what went wrong; 0 = none."""

    fetch: _Tries = key(1, "of rows whose media could not be fetched for a time, at the end")
    after_s: NonNegative = key(
        30.0, "seconds that a pass over the rows must last for fetch to add another one"
    )
    smaller: _Tries = key(
        0,
        "of rows beyond the context or memory, each with half the pixels of pictures and half the "
        "frames of videos",
        added_later=True,
    )
    again: _Tries = key(
        0, "of text that is cut off or repeats itself again and again", added_later=True
    )
    temperature: NonNegative = key(0.7, "generation.temperature of retries.again", added_later=True)
    repetition_penalty: Positive = key(
        1.1, "generation.repetition_penalty of retries.again", added_later=True
    )

"""Decides which further tries a row has left, by what went wrong."""

from collections.abc import Mapping
from dataclasses import dataclass

import pyarrow as pa

from mediamill.pipeline.ladder.advice import Sizes
from mediamill.pipeline.ladder.attempts import (
    Attempts,
    Ordinal,
    codes_of,
    next_attempt,
    row_ordinals,
)
from mediamill.schemas import columns as c
from mediamill.schemas.errors import ErrorCode
from mediamill.schemas.job_retries import Retries

_LATER = {ErrorCode.FETCH_TIMEOUT.value, ErrorCode.FETCH_FAILED.value}
_SMALLER = {
    ErrorCode.CONTEXT_TOO_LONG.value,
    ErrorCode.ENGINE_OOM.value,
    ErrorCode.DECODE_TOO_LARGE.value,
}


def shrink(attempts: Attempts | None) -> int:
    """Returns by how much the media of the next attempt are smaller than the job asks for."""
    return 1 << sum(code in _SMALLER for code in codes_of(attempts))


def shrinking_helps(code: str, message: str) -> bool:
    """Returns whether smaller media may help a row that could not be prepared."""
    if code == ErrorCode.CONTEXT_TOO_LONG.value:
        sizes = Sizes.parse(message)
        return sizes is not None and sizes.room > 0
    # Limits on media as they are stored do not depend on the size that the model sees.
    is_memory = "limits.decode_bytes" in message or message.startswith("no memory to decode")
    return code == ErrorCode.DECODE_TOO_LARGE.value and is_memory


def smaller_attempt(attempts: Attempts | None, code: str, message: str) -> Attempts:
    """Returns the attempts after one with half the pixels and frames has begun."""
    attempts = next_attempt(attempts, code, message)
    if code in _SMALLER:
        attempts[-1]["changed"] = f"1/{shrink(attempts)} of the pixels, or frames"
    return attempts


@dataclass(frozen=True)
class Ladder:
    """The tries that need another pass over the rows. retries: of the job."""

    retries: Retries

    def deferred(self, table: pa.Table) -> list[int]:
        """Returns the positions of the rows of a table of `parsed_schema` that have a try left."""
        positions = []
        rows = (table[name].to_pylist() for name in (c.ERROR_CODE, c.ERROR_MESSAGE))
        split = table[c.SPLIT_CODE].to_pylist() if c.SPLIT_CODE in table.column_names else None
        for number, (code, message) in enumerate(zip(*rows, strict=True)):
            if split is not None and split[number] is not None:
                continue  # only another split of the video can help
            if code in _LATER and not message.startswith("data:"):
                tries, codes = self.retries.fetch, _LATER
            elif code == ErrorCode.ENGINE_OOM and table[c.VISUAL_TOKENS][number].as_py():
                tries, codes = self.retries.smaller, _SMALLER
            else:
                continue
            attempts = table[c.ATTEMPT_HISTORY][number].as_py()
            if sum(earlier in codes for earlier in codes_of(attempts)) < tries:
                positions.append(number)
        return positions

    def pays(self, table: pa.Table, pass_s: float) -> bool:
        """Returns whether another pass for these rows is worth its start.

        pass_s: how long the pass took in which they failed, in seconds.
        """
        has_oom = ErrorCode.ENGINE_OOM.value in table[c.ERROR_CODE].to_pylist()
        return has_oom or pass_s >= self.retries.after_s


def next_attempts(table: pa.Table) -> Mapping[Ordinal, Attempts]:
    """Returns the attempts of deferred rows, with the next one begun."""
    names = (c.ATTEMPT_HISTORY, c.ERROR_CODE, c.ERROR_MESSAGE)
    values = zip(*(table[name].to_pylist() for name in names), strict=True)
    return {
        row: smaller_attempt(attempts, code, message)
        for row, (attempts, code, message) in zip(row_ordinals(table), values, strict=True)
    }

"""The errors of a row (with a code that the result stores) and of a job (a sentence).

JobError (ValueError)   the job cannot start: bad configuration, manifest, model or output
RowError (Exception)    one row cannot be answered: it becomes an error row, the job goes on
"""

from enum import StrEnum


class ErrorCode(StrEnum):
    """The closed list of the result's `error_code`. Names are stable: users filter on them."""

    FETCH_NOT_FOUND = "fetch_not_found"  # no such file or object
    FETCH_DENIED = "fetch_denied"  # no permission, or a scheme or host that is not allowed
    FETCH_TIMEOUT = "fetch_timeout"
    FETCH_TOO_LARGE = "fetch_too_large"  # more bytes than limits.max_bytes
    FETCH_FAILED = "fetch_failed"  # any other failure to read, after retries
    DECODE_CORRUPT = "decode_corrupt"  # a known format, broken or truncated
    DECODE_UNSUPPORTED = "decode_unsupported"  # not a picture or a video that can be read
    DECODE_TOO_LARGE = "decode_too_large"  # more pixels, frames or seconds than limits allows
    DECODE_TIMEOUT = "decode_timeout"  # took longer than limits.decode_timeout_s
    DECODE_CRASHED = "decode_crashed"  # crashed the process that decoded it
    MEDIA_EMPTY = "media_empty"  # no bytes, no frames or no visual tokens
    PROMPT_INVALID = "prompt_invalid"
    CONTEXT_TOO_LONG = "context_too_long"
    ENGINE_OOM = "engine_oom"
    ENGINE_FAILED = "engine_failed"
    PARSE_INVALID = "parse_invalid"
    JSON_INVALID = "json_invalid"  # an answer that does not fit json_schema
    POISON = "poison"  # crashed the processes that worked on it, also when it was processed alone


# Codes of rows that fail again as long as neither their media nor a key of the job changes.
FAILS_AGAIN = frozenset(
    {
        ErrorCode.FETCH_TOO_LARGE,
        ErrorCode.DECODE_CORRUPT,
        ErrorCode.DECODE_UNSUPPORTED,
        ErrorCode.DECODE_TOO_LARGE,
        ErrorCode.MEDIA_EMPTY,
        ErrorCode.PROMPT_INVALID,
        ErrorCode.CONTEXT_TOO_LONG,
        ErrorCode.PARSE_INVALID,
        ErrorCode.JSON_INVALID,
        ErrorCode.POISON,
    }
)


class RowError(Exception):
    """One row cannot be answered. `code` and `message` are written to its result row."""

    def __init__(self, code: ErrorCode, message: str) -> None:
        super().__init__(message)
        self.code = code
        self.message = message

    # By default an exception whose __init__ takes two arguments cannot be unpickled.
    def __reduce__(self) -> tuple[type["RowError"], tuple[ErrorCode, str]]:
        return (RowError, (self.code, self.message))


class JobError(ValueError):
    """The job cannot start. The message has one line, a sentence, for each mistake.

    Line breaks in a sentence are of a name in it, and are written as escapes.
    """

    def __init__(self, *sentences: str) -> None:
        lines = [r"\n".join(sentence.strip().splitlines()) for sentence in sentences]
        super().__init__("\n".join(lines))
        self.sentences = tuple(lines)

    def __reduce__(self) -> tuple[type["JobError"], tuple[str, ...]]:
        return (type(self), self.sentences)

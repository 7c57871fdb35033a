"""The errors of a checkpoint, of media and of a prompt.

`code` is a short stable name that a caller may store.
"""

from typing import Any, Generic, Literal, TypeVar

MediaCode = Literal["decode_corrupt", "decode_unsupported", "decode_too_large", "media_empty"]
PromptCode = Literal["prompt_invalid", "context_too_long"]
Code = TypeVar("Code", bound=str)


class ModelError(ValueError):
    """A checkpoint folder, its configuration or its weights cannot be used."""


class _CodedError(ValueError, Generic[Code]):
    def __init__(self, code: Code, message: str) -> None:
        super().__init__(message)
        self.code: Code = code

    def __reduce__(self) -> tuple[Any, ...]:
        return (type(self), (self.code, str(self)))


class MediaError(_CodedError[MediaCode]):
    """A picture or a video cannot be decoded or has no frames."""


class PromptError(_CodedError[PromptCode]):
    """A prompt cannot be tokenized, or is longer than the model's context."""

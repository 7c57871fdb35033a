"""The errors of a checkpoint, of media and of a prompt.

`code` is a short stable name that a caller may store.
"""

from typing import Literal

MediaCode = Literal["decode_corrupt", "decode_unsupported", "decode_too_large", "media_empty"]
PromptCode = Literal["prompt_invalid", "context_too_long"]


class ModelError(ValueError):
    """A checkpoint folder, its configuration or its weights cannot be used."""


class MediaError(ValueError):
    """A picture or a video cannot be decoded or has no frames."""

    def __init__(self, code: MediaCode, message: str) -> None:
        super().__init__(message)
        self.code: MediaCode = code

    def __reduce__(self) -> tuple[type["MediaError"], tuple[MediaCode, str]]:
        return (MediaError, (self.code, str(self)))


class PromptError(ValueError):
    """A prompt cannot be tokenized, or is longer than the model's context."""

    def __init__(self, code: PromptCode, message: str) -> None:
        super().__init__(message)
        self.code: PromptCode = code

    def __reduce__(self) -> tuple[type["PromptError"], tuple[PromptCode, str]]:
        return (PromptError, (self.code, str(self)))

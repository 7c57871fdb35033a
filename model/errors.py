"""What can be wrong with a checkpoint, with media and with a prompt.

These errors know nothing of rows or jobs; `code` is a short stable name that a caller may store.
"""

from typing import Literal

MediaCode = Literal["decode_corrupt", "decode_unsupported", "decode_too_large", "media_empty"]
PromptCode = Literal["prompt_invalid", "context_too_long"]


class ModelError(ValueError):
    """A checkpoint folder, its configuration or its weights cannot be used."""


class MediaError(ValueError):
    """A picture or a video cannot be turned into patches."""

    def __init__(self, code: MediaCode, message: str) -> None:
        super().__init__(message)
        self.code: MediaCode = code

    def __reduce__(self) -> tuple[type["MediaError"], tuple[MediaCode, str]]:
        return (MediaError, (self.code, str(self)))


class PromptError(ValueError):
    """A prompt cannot be turned into token ids that the model accepts."""

    def __init__(self, code: PromptCode, message: str) -> None:
        super().__init__(message)
        self.code: PromptCode = code

    def __reduce__(self) -> tuple[type["PromptError"], tuple[PromptCode, str]]:
        return (PromptError, (self.code, str(self)))

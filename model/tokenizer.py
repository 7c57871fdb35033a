"""Turns text into token ids and token ids into text, with the vocabulary of a checkpoint folder.

Knows which strings are control tokens; chats, pictures and videos are none of its business.
"""

from collections.abc import Sequence
from pathlib import Path

import tokenizers

from model.errors import ModelError


class Tokenizer:
    """A checkpoint's tokenizer.json.

    special: the control tokens' strings and their ids. A text that holds such a string is encoded
    to the control token, as in the reference: the caller keeps user text free of them.
    """

    def __init__(self, inner: tokenizers.Tokenizer) -> None:
        inner.no_truncation()
        inner.no_padding()
        self._inner = inner
        added = inner.get_added_tokens_decoder()
        self.special: dict[str, int] = {
            token.content: index for index, token in added.items() if token.special
        }

    @classmethod
    def load(cls, folder: str | Path) -> "Tokenizer":
        """Reads tokenizer.json. ModelError if it is missing or cannot be used."""
        path = Path(folder) / "tokenizer.json"
        if not path.is_file():
            raise ModelError(f"{folder}: found no tokenizer.json, expected one in a model folder")
        try:
            inner = tokenizers.Tokenizer.from_file(str(path))
        except Exception as error:  # the library raises this bare class for whatever is wrong
            raise ModelError(f"{path}: is no tokenizer that can be read: {error}") from error
        return cls(inner)

    def encode(self, text: str) -> list[int]:
        """Token ids of a text; nothing is added at its ends."""
        ids: list[int] = self._inner.encode(text, add_special_tokens=False).ids
        return ids

    def decode(self, ids: Sequence[int], skip_special_tokens: bool = True) -> str:
        """Text of token ids. Ids that the vocabulary does not have give nothing."""
        text: str = self._inner.decode(list(ids), skip_special_tokens=skip_special_tokens)
        return text

    def control_tokens_in(self, text: str) -> list[str]:
        """The control strings that a text holds, each once."""
        return [token for token in self.special if token in text]

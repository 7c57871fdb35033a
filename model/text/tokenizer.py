"""Turns text into token ids and token ids into text, with the vocabulary of a checkpoint folder.

Knows which strings are control tokens; chats, pictures and videos are none of its business.
"""

import functools
from collections.abc import Sequence
from pathlib import Path

import tokenizers

from mediamill.model.checkpoint.folder import Folder
from mediamill.model.errors import ModelError


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
        self._added = {index: token.content for index, token in added.items()}

    @classmethod
    def load(cls, folder: str | Path | Folder) -> "Tokenizer":
        """Reads tokenizer.json. ModelError if it is missing or cannot be used."""
        folder = Folder.of(folder)
        content = folder.read("tokenizer.json")
        if content is None:
            raise ModelError(f"{folder}: found no tokenizer.json, expected one in a model folder")
        try:
            inner = tokenizers.Tokenizer.from_buffer(content)
        except Exception as error:  # the library raises this bare class for whatever is wrong
            path = folder.path("tokenizer.json")
            raise ModelError(f"{path}: is no tokenizer that can be read: {error}") from error
        return cls(inner)

    def encode(self, text: str) -> list[int]:
        """Token ids of a text; nothing is added at its ends."""
        ids: list[int] = self._inner.encode(text, add_special_tokens=False).ids
        return ids

    def encode_plain(self, text: str) -> list[int]:
        """As `encode`, but control strings are ordinary text: no control token comes out."""
        ids: list[int] = self._plain.encode(text, add_special_tokens=False).ids
        return ids

    def encode_exactly(self, text: str) -> list[int]:
        """As `encode_plain`, but without normalisation: the tokens' bytes are the text's."""
        ids: list[int] = self._exact.encode(text, add_special_tokens=False).ids
        return ids

    @functools.cached_property
    def _exact(self) -> tokenizers.Tokenizer:
        exact = tokenizers.Tokenizer.from_str(self._inner.to_str())
        exact.encode_special_tokens = True
        exact.normalizer = None
        return exact

    @functools.cached_property
    def _plain(self) -> tokenizers.Tokenizer:
        plain = tokenizers.Tokenizer.from_str(self._inner.to_str())
        plain.encode_special_tokens = True
        return plain

    def decode(self, ids: Sequence[int], skip_special_tokens: bool = True) -> str:
        """Text of token ids. Ids that the vocabulary does not have give nothing."""
        text: str = self._inner.decode(list(ids), skip_special_tokens=skip_special_tokens)
        return text

    def control_tokens_in(self, text: str) -> list[str]:
        """The control strings that a text holds, each once."""
        return [token for token in self.special if token in text]

    def token_bytes(self, index: int) -> bytes:
        """The bytes that a token adds to a text, control tokens included; nothing for an id that
        the vocabulary does not have. They may begin or end inside a letter.

        Raises ModelError if the vocabulary is not one of bytes.
        """
        if index in self._added:
            return self._added[index].encode()
        token = self._inner.id_to_token(index)
        if token is None:
            return b""
        if not isinstance(self._inner.decoder, tokenizers.decoders.ByteLevel):
            raise ModelError(
                f"tokenizer.json has the decoder {self._inner.decoder}, expected ByteLevel"
            )
        letters = _byte_letters()
        try:
            return bytes(letters[letter] for letter in token)
        except KeyError as error:
            raise ModelError(
                f"tokenizer.json: token {index} holds {error.args[0]!r}, which stands for no byte"
            ) from None


@functools.cache
def _byte_letters() -> dict[str, int]:
    """The byte that each letter of a byte-level vocabulary stands for.

    Printable bytes stand for themselves; the others were numbered upwards from 256 (A. Radford et
    al., "Language models are unsupervised multitask learners", 2019, section 2.2, and its code).
    """
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    letters = {chr(byte): byte for byte in printable}
    return letters | {chr(256 + number): byte for number, byte in enumerate(others)}

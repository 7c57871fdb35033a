"""The tokenizer of a checkpoint folder: text to token ids, and token ids to text or bytes."""

import functools
from collections.abc import Sequence
from pathlib import Path

import tokenizers

from mediamill.model.checkpoint.folder import Folder
from mediamill.model.errors import ModelError


class Tokenizer:
    """A checkpoint's tokenizer.json.

    special: the strings of the control tokens and their ids. `encode` turns such a string in a text
        into the control token, as the reference does, so callers check the text of users first.
    """

    def __init__(self, inner: tokenizers.Tokenizer) -> None:
        inner.no_truncation()
        inner.no_padding()
        self._inner = inner
        added = inner.get_added_tokens_decoder()
        self._added: dict[int, str] = {index: token.content for index, token in added.items()}
        self.special = {self._added[index]: index for index in added if added[index].special}

    @classmethod
    def load(cls, folder: str | Path | Folder) -> "Tokenizer":
        """Reads tokenizer.json. Raises ModelError if it is missing or cannot be used."""
        folder = Folder.of(folder)
        content = folder.read("tokenizer.json")
        if content is None:
            raise ModelError(f"{folder}: found no tokenizer.json, expected one in a model folder")
        try:
            inner = tokenizers.Tokenizer.from_buffer(content)
        except Exception as error:  # the library raises no narrower class
            path = folder.path("tokenizer.json")
            raise ModelError(f"{path}: is no tokenizer that can be read: {error}") from error
        return cls(inner)

    @functools.cached_property
    def longest(self) -> int:
        """The most characters of a text that one token stands for, or a few more."""
        composed = 4  # characters that normalization may make one of
        return composed * max(map(len, self._inner.get_vocab()), default=1)

    def encode(self, text: str) -> list[int]:
        """Returns the token ids of a text; no tokens are added at its ends."""
        return list(self._inner.encode(text, add_special_tokens=False).ids)

    def encode_plain(self, text: str) -> list[int]:
        """As `encode`, but with control strings as ordinary text."""
        return list(self._plain.encode(text, add_special_tokens=False).ids)

    def encode_exactly(self, text: str) -> list[int]:
        """As `encode_plain`, but without normalization: the bytes of the tokens are the text's."""
        return list(self._exact.encode(text, add_special_tokens=False).ids)

    @functools.cached_property
    def _plain(self) -> tokenizers.Tokenizer:
        plain = tokenizers.Tokenizer.from_str(self._inner.to_str())
        plain.encode_special_tokens = True
        return plain

    @functools.cached_property
    def _exact(self) -> tokenizers.Tokenizer:
        exact = tokenizers.Tokenizer.from_str(self._inner.to_str())
        exact.encode_special_tokens, exact.normalizer = True, None
        return exact

    def decode(self, ids: Sequence[int], skip_special_tokens: bool = True) -> str:
        """Returns the text of token ids; ids outside the vocabulary are ignored."""
        return str(self._inner.decode(list(ids), skip_special_tokens=skip_special_tokens))

    def control_tokens_in(self, text: str) -> list[str]:
        """Returns the control strings in a text, each once."""
        return [token for token in self.special if token in text]

    def token_bytes(self, index: int) -> bytes:
        """Returns the bytes that a token adds to a text; none for an id outside the vocabulary.

        They may begin or end inside a UTF-8 character. Control tokens give their strings.
        Raises ModelError if the vocabulary is not byte-level.
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
        byte_of = _bytes_by_character()
        try:
            return bytes(byte_of[character] for character in token)
        except KeyError as error:
            raise ModelError(
                f"tokenizer.json: token {index} holds {error.args[0]!r}, which stands for no byte"
            ) from None


@functools.cache
def _bytes_by_character() -> dict[str, int]:
    """Returns the byte for which each character of a byte-level vocabulary stands.

    Printable bytes stand for themselves; the others are numbered from 256 on. Source: A. Radford et
    al., "Language models are unsupervised multitask learners", 2019, section 2.2, and
    bytes_to_unicode in its code.
    """
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    unprintable = [byte for byte in range(256) if byte not in printable]
    characters = {chr(byte): byte for byte in printable}
    return characters | {chr(256 + number): byte for number, byte in enumerate(unprintable)}

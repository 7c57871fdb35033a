"""Constrains outputs to a JSON schema: computes which tokens may come next.

The grammars are those of llguidance: a derivative-based lexer and an Earley parser over the bytes
of tokens. It was chosen because it needs no other package and no compilation ahead: with the
published vocabulary of 151,936 tokens a schema is ready in 2 ms and a bitmask in 30 µs, where a
finite automaton over all tokens (outlines-core) took 16 s and 490 MB for one schema; xgrammar
depends on transformers. Schemas that it does not support are refused.
"""

import functools
import json
from collections.abc import Sequence
from dataclasses import dataclass

import llguidance
import numpy as np
import numpy.typing as npt

from mediamill.model.text.tokenizer import Tokenizer

# The layout of json.dumps, which is common in training texts. Fixed, because a model that may write
# white space between the parts may write it without end.
_LAYOUT = {
    "item_separator": ", ",
    "key_separator": ": ",
    "whitespace_flexible": False,
    "whitespace_pattern": None,
    "coerce_one_of": False,
    "lenient": False,
}
# A lexer keeps every state that it has met, so a schema is compiled again after so many outputs.
_MAX_OUTPUTS = 1024
_MAX_SCHEMAS = 64
_MAX_ERROR_LENGTH = 300


def schema_problem(schema: str) -> str | None:
    """Returns why outputs cannot be constrained to a JSON schema (its text), or None."""
    try:
        grammar = _grammar(schema)
    except ValueError as error:
        return f"is no JSON object: {error}"
    failed, messages = llguidance.LLMatcher.validate_grammar_with_warnings(grammar)
    return _shorten(messages[0]) if failed else None


class Grammars:
    """The grammars of one tokenizer.

    Control tokens and the letter U+007F are never part of an output. Where a schema leaves no
    choice, the tokens are those that the tokenizer itself gives for the text.
    """

    def __init__(self, tokenizer: Tokenizer, vocabulary: int) -> None:
        """vocabulary: number of logits, which may exceed the number of tokens.

        Raises ModelError if the tokenizer is not a byte-level one.
        """
        self.vocabulary = vocabulary
        # An extra token stands for the end, because each request has its own end tokens.
        inner = llguidance.TokenizerWrapper(_TokenBytes(tokenizer, vocabulary))
        slices = llguidance.LLTokenizer.json_slices()
        self._tokenizer = llguidance.LLTokenizer(inner, vocabulary + 1, slices=slices)
        self._schemas = functools.lru_cache(_MAX_SCHEMAS)(
            lambda schema: _CompiledSchema(self._compile(schema))
        )

    def matcher(self, schema: str) -> "Matcher":
        """Returns a matcher for a new output. Raises ValueError for a schema that `schema_problem`
        refuses.
        """
        compiled = self._schemas(schema)
        compiled.outputs += 1
        if compiled.outputs > _MAX_OUTPUTS:
            compiled.matcher, compiled.outputs = self._compile(schema), 1
        return Matcher(compiled.matcher.deep_copy())

    def _compile(self, schema: str) -> llguidance.LLMatcher:
        matcher = llguidance.LLMatcher(self._tokenizer, _grammar(schema), log_level=0)
        if matcher.is_error():
            raise ValueError(_shorten(matcher.get_error()))
        return matcher


@dataclass
class _CompiledSchema:
    """A compiled schema, and the number of outputs that have used it."""

    matcher: llguidance.LLMatcher
    outputs: int = 0


class Matcher:
    """The state of one output in its grammar.

    complete: the output is complete, and nothing may follow.
    problem: why the parser stopped: one of its limits, or a token that is not allowed.
    """

    def __init__(self, inner: llguidance.LLMatcher) -> None:
        self.inner = inner
        self.complete = False
        self.problem: str | None = None

    def advance(self, token: int) -> None:
        """Appends a token, which is not an end token, to the output."""
        self.inner.consume_token(token)
        self.record_error()
        self.complete = self.problem is None and self.inner.is_stopped()

    def record_error(self) -> None:
        """Sets `problem` if the parser failed, in `advance` or while it computed a bitmask."""
        if self.inner.is_error():
            self.problem = _shorten(self.inner.get_error())


class BitmaskFiller:
    """Computes the token bitmasks of batches.

    words: int32 words of the bitmask of a row.
    """

    def __init__(self, vocabulary: int, threads: int) -> None:
        """vocabulary: number of logits. threads: how many compute bitmasks at once."""
        self.words = vocabulary // 32 + 1  # one bit more, for the end
        self._vocabulary = vocabulary
        self._executor = llguidance.LLExecutor(threads) if threads > 1 else None

    def fill(
        self,
        bitmask: npt.NDArray[np.int32],
        matchers: Sequence[Matcher | None],
        end_tokens: Sequence[Sequence[int]],
    ) -> None:
        """Sets bit t % 32 of bitmask[row, t // 32] to whether token t may come next in that row.

        bitmask: int32 [B, words], contiguous.
        matchers: None for a row that may continue with any token.
        end_tokens: of each row; they are allowed where the output may end.
        """
        rows = [(m.inner, row) for row, m in enumerate(matchers) if m is not None]
        address, size = bitmask.ctypes.data, self.words * 4
        if self._executor is not None and len(rows) > 1:
            self._executor.unsafe_compute_mask_ptr(rows, address, size, len(bitmask))
        else:
            for inner, row in rows:
                inner.unsafe_compute_mask_ptr(address + row * size, size)
        end_word, end_bit = divmod(self._vocabulary, 32)
        for row, matcher in enumerate(matchers):
            if matcher is None:
                bitmask[row] = -1
            elif bitmask[row, end_word] >> end_bit & 1:
                matcher.record_error()
                words = bitmask[row].view(np.uint32)
                for token in end_tokens[row]:
                    words[token // 32] |= np.uint32(1 << token % 32)


class _TokenBytes:
    """A tokenizer in the form that llguidance expects: the bytes of each token, and an encoder."""

    def __init__(self, tokenizer: Tokenizer, vocabulary: int) -> None:
        control = set(tokenizer.special.values())
        self.tokens = [
            b"" if token in control else tokenizer.token_bytes(token) for token in range(vocabulary)
        ]
        self.tokens.append(b"<end>")
        self.eos_token_id = vocabulary
        self.bos_token_id = None
        self.special_token_ids = [vocabulary]
        self._tokenizer = tokenizer

    def __call__(self, text: bytes | str) -> list[int]:
        return self._tokenizer.encode_exactly(text if isinstance(text, str) else text.decode())


def _grammar(schema: str) -> str:
    """Raises ValueError if the schema is not a JSON object."""
    if not isinstance(json.loads(schema), dict):
        raise ValueError(f"found {schema[:40]}, expected an object")
    return llguidance.LLMatcher.grammar_from_json_schema(schema, overrides=_LAYOUT)  # type: ignore[arg-type]


def _shorten(message: str) -> str:
    """Returns an error as one line, without the parser state and the grammar that follow it."""
    return " ".join(message.partition("\n<")[0].split())[:_MAX_ERROR_LENGTH]

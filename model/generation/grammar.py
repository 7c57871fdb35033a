"""Turns a JSON schema and what an answer has said so far into the tokens that may come next.

The grammars are llguidance's: a lexer of derivatives and an Earley parser over the bytes of tokens.
It was chosen because it needs no other package and no compilation ahead: with the published
vocabulary of 151,936 tokens a schema is ready in 2 ms and a mask in 30 µs, where a finite automaton
over all tokens (outlines-core) took 16 s and 490 MB for one schema; xgrammar depends on
transformers. What it cannot express it refuses. It does not know logits, rows or batches.
"""

import functools
import json
from collections.abc import Sequence

import llguidance
import numpy as np
import numpy.typing as npt

from mediamill.model.text.tokenizer import Tokenizer

# The layout of json.dumps, which is how published texts write short JSON. Fixed, because a network
# that may write blanks between the parts may write them for ever.
_LAYOUT = {
    "item_separator": ", ",
    "key_separator": ": ",
    "whitespace_flexible": False,
    "whitespace_pattern": None,
    "coerce_one_of": False,
    "lenient": False,
}
# A parser's lexer remembers every state it has met; one that is begun anew bounds that.
_COPIES = 1024
_SCHEMAS = 64
_LONGEST = 300  # characters of an error


def schema_problem(schema: str) -> str | None:
    """Why answers cannot be held to a JSON schema (its text), or None."""
    try:
        grammar = _grammar(schema)
    except ValueError as error:
        return f"is no JSON object: {error}"
    failed, sentences = llguidance.LLMatcher.validate_grammar_with_warnings(grammar)
    return _sentence(sentences[0]) if failed else None


class Grammars:
    """The grammars of one tokenizer. vocabulary: logits of the network, which may be more than the
    tokenizer has tokens.

    Control tokens are never part of an answer, nor is the letter U+007F. Where a schema leaves no
    choice, tokens are those into which the tokenizer itself divides the text.
    """

    def __init__(self, tokenizer: Tokenizer, vocabulary: int) -> None:
        """Raises ModelError if the vocabulary is not one of bytes."""
        self.vocabulary = vocabulary
        # A token of its own stands for the end: which tokens end an answer is each request's.
        inner = llguidance.TokenizerWrapper(_Bytes(tokenizer, vocabulary))
        slices = llguidance.LLTokenizer.json_slices()
        self._tokenizer = llguidance.LLTokenizer(inner, vocabulary + 1, slices=slices)
        self._begun = functools.lru_cache(_SCHEMAS)(self._begin)

    def matcher(self, schema: str) -> "Matcher":
        """At the beginning of an answer. Raises ValueError for a schema that `schema_problem`
        refuses.
        """
        begun = self._begun(schema)
        begun.copies += 1
        if begun.copies > _COPIES:
            begun.matcher, begun.copies = self._compile(schema), 1
        return Matcher(begun.matcher.deep_copy())

    def _begin(self, schema: str) -> "_Begun":
        return _Begun(self._compile(schema))

    def _compile(self, schema: str) -> llguidance.LLMatcher:
        matcher = llguidance.LLMatcher(self._tokenizer, _grammar(schema), log_level=0)
        if matcher.is_error():
            raise ValueError(_sentence(matcher.get_error()))
        return matcher


class _Begun:
    """A compiled schema, and how many answers were begun from it."""

    def __init__(self, matcher: llguidance.LLMatcher) -> None:
        self.matcher = matcher
        self.copies = 0


class Matcher:
    """Where one answer stands in its grammar.

    complete: it is whole, and nothing may follow. problem: why it can be followed no further: a
    bound of the parser, or a token that was not allowed.
    """

    def __init__(self, inner: llguidance.LLMatcher) -> None:
        self.inner = inner
        self.complete = False
        self.problem: str | None = None

    def advance(self, token: int) -> None:
        """The answer goes on with this token, which is no end token."""
        self.inner.consume_token(token)
        if self.inner.is_error():
            self.problem = _sentence(self.inner.get_error())
        self.complete = self.problem is None and self.inner.is_stopped()

    def fail(self) -> None:
        """Take note of what the parser ran into when it was asked for a mask."""
        if self.problem is None and self.inner.is_error():
            self.problem = _sentence(self.inner.get_error())


class Masks:
    """The masks of a batch. threads: that may work on them at once."""

    def __init__(self, vocabulary: int, threads: int) -> None:
        self.words = vocabulary // 32 + 1  # one bit more, for the end
        self._vocabulary = vocabulary
        self._executor = llguidance.LLExecutor(threads) if threads > 1 else None

    def fill(
        self,
        masks: npt.NDArray[np.int32],
        matchers: Sequence[Matcher | None],
        ends: Sequence[Sequence[int]],
    ) -> None:
        """Bit t % 32 of masks[row, t // 32] := whether token t may come next in that row.

        masks: int32 [B, words], contiguous. matchers: None where all may come. ends: the end tokens
        of each row that may be chosen now; they are allowed where the answer is whole.
        """
        rows = [(one.inner, row) for row, one in enumerate(matchers) if one is not None]
        place, size = masks.ctypes.data, self.words * 4
        if self._executor is not None and len(rows) > 1:
            self._executor.unsafe_compute_mask_ptr(rows, place, size, len(masks))
        else:
            for inner, row in rows:
                inner.unsafe_compute_mask_ptr(place + row * size, size)
        end_word, end_bit = divmod(self._vocabulary, 32)
        for row, one in enumerate(matchers):
            if one is None:
                masks[row] = -1
            elif masks[row, end_word] >> end_bit & 1:
                one.fail()
                bits = masks[row].view(np.uint32)
                for token in ends[row]:
                    bits[token // 32] |= np.uint32(1 << token % 32)


class _Bytes:
    """A tokenizer as llguidance wants it: the bytes of each token, and a way to divide text."""

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
        whole = text if isinstance(text, str) else text.decode()
        return self._tokenizer.encode_exactly(whole)


def _grammar(schema: str) -> str:
    """Raises ValueError where the schema is no JSON object."""
    given = json.loads(schema)
    if not isinstance(given, dict):
        raise ValueError(f"found {schema[:40]}, expected an object")
    return llguidance.LLMatcher.grammar_from_json_schema(schema, overrides=_LAYOUT)  # type: ignore[arg-type]


def _sentence(sentence: str) -> str:
    """Of an error, in one line without the parser's state and the grammar, which follow it."""
    return " ".join(sentence.partition("\n<")[0].split())[:_LONGEST]

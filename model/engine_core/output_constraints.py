"""Turns what a rule asks of the words of an answer into what keeps it: stop strings and grammars.

Both need the checkpoint's tokenizer, which is loaded by the first request that asks for it. It does
not know rows.
"""

from collections.abc import Callable

from mediamill.model.errors import ModelError
from mediamill.model.generation.grammar import Grammars, Matcher
from mediamill.model.sampling import GenerationRule
from mediamill.model.text.tokenizer import Tokenizer


class OutputConstraints:
    """tokenizer: None until it is needed. vocabulary: logits of the network."""

    def __init__(self, load_tokenizer: Callable[[], Tokenizer] | None, vocabulary: int) -> None:
        self.tokenizer: Tokenizer | None = None
        self._load = load_tokenizer
        self._vocabulary = vocabulary
        self._grammars: Grammars | None = None

    def problem(self, rule: GenerationRule) -> str | None:
        """Why the rule cannot be followed, or None. After it `tokenizer` and `matcher` are there
        for what the rule has.
        """
        for wish, needed in (
            ("stop strings", bool(rule.stop)),
            ("a JSON schema", rule.json_schema is not None),
        ):
            if not needed:
                continue
            try:
                if self.tokenizer is None:
                    if self._load is None:
                        return f"the request has {wish}, and the engine has no tokenizer"
                    tokenizer = self._load()
                    tokenizer.token_bytes(0)
                    self.tokenizer = tokenizer
                if rule.json_schema is not None and self._grammars is None:
                    self._grammars = Grammars(self.tokenizer, self._vocabulary)
            except ModelError as error:
                return f"the request has {wish}, and {error}"
        try:
            self.matcher(rule)
        except ValueError as error:
            return f"json_schema: answers cannot be held to it: {error}"
        return None

    def matcher(self, rule: GenerationRule) -> Matcher | None:
        """Of a new answer; None for a rule without a schema."""
        if rule.json_schema is None:
            return None
        assert self._grammars is not None, "made by `problem`"
        return self._grammars.matcher(rule.json_schema)

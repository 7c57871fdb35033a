"""Builds the stop-string and JSON-grammar constraints of a request.

Both need the checkpoint's tokenizer, which the first request with a constraint loads.
"""

from collections.abc import Callable

from mediamill.model.errors import ModelError
from mediamill.model.generation.grammar import Grammars, Matcher
from mediamill.model.sampling import GenerationRule
from mediamill.model.text.tokenizer import Tokenizer


class OutputConstraints:
    """The constraints of one engine's requests.

    tokenizer: None until it is needed.
    """

    def __init__(self, load_tokenizer: Callable[[], Tokenizer] | None, vocabulary: int) -> None:
        """vocabulary: number of logits. load_tokenizer: None refuses all constraints."""
        self.tokenizer: Tokenizer | None = None
        self._load = load_tokenizer
        self._vocabulary = vocabulary
        self._grammars: Grammars | None = None

    def problem(self, rule: GenerationRule) -> str | None:
        """Returns why the rule cannot be followed, or None. Loads the tokenizer and compiles the
        grammar that the rule needs; call it before `tokenizer` and `matcher`.
        """
        if not rule.stop and rule.json_schema is None:
            return None
        constraint = "stop strings" if rule.stop else "a JSON schema"
        try:
            if self.tokenizer is None:
                if self._load is None:
                    return f"the request has {constraint}, and the engine has no tokenizer"
                tokenizer = self._load()
                tokenizer.token_bytes(0)  # raises ModelError if tokens have no bytes
                self.tokenizer = tokenizer
            if rule.json_schema is not None and self._grammars is None:
                self._grammars = Grammars(self.tokenizer, self._vocabulary)
        except ModelError as error:
            return f"the request has {constraint}, and {error}"
        try:
            self.matcher(rule)
        except ValueError as error:
            return f"json_schema: answers cannot be held to it: {error}"
        return None

    def matcher(self, rule: GenerationRule) -> Matcher | None:
        """Returns the matcher of a new output; None for a rule without a schema."""
        if rule.json_schema is None:
            return None
        assert self._grammars is not None, "made by `problem`"
        return self._grammars.matcher(rule.json_schema)

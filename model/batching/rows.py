"""A request on its way through the engine: what it needs, and what it has said so far.

Turns tokens, one after the other, into a completion. It does not know other rows or the network.
"""

from collections.abc import Sequence

import torch

from model.batching.room import Room
from model.generation.stopping import StopFinder
from model.requests import Completion, Request
from model.sampling import GenerationRule
from model.text.tokenizer import Tokenizer


class Row:
    """One request.

    context: tokens that the model takes, prompt and answer together: the positions beyond were not
        trained. tokenizer: needed only when the rule has stop strings.
    positions: int64 [3, prompt tokens] on the host. following: of the first token after the prompt.
    pads: for each medium the index of its first pad token. names: of the full pages of the prompt.
    room: what it holds of the cache while it runs. tries: times that memory ran out with this
        request alone in hand.
    """

    def __init__(
        self,
        request: Request,
        rule: GenerationRule,
        context: int,
        tokenizer: Tokenizer | None,
        positions: torch.Tensor,
        following: int,
    ) -> None:
        self.request = request
        self.rule = rule
        self.prompt = list(request.input_ids)
        self.budget = min(rule.max_new_tokens, context - len(self.prompt))
        self.positions = positions
        self.following = following
        self.pads: list[int] = []
        self.names: list[bytes] = []
        self.room: Room | None = None
        self.tries = 0
        self.output: list[int] = []
        self.stop: str | None = None
        self._finder = StopFinder(rule.stop) if rule.stop else None
        self._tokenizer = tokenizer
        self._logprobs: list[float] = []
        self._top: list[list[tuple[int, float]]] = []

    @property
    def generates(self) -> bool:
        return self.request.mode == "generate"

    @property
    def needed(self) -> int:
        """Tokens of the cache: of prompt and answer; to score, of the prompt, for others to share;
        to embed, none.
        """
        if self.request.mode == "embed":
            return 0
        return len(self.prompt) + (self.budget if self.generates else 0)

    @property
    def work(self) -> int:
        """Tokens that a prefill computes, of all that nothing is known of."""
        return len(self.prompt) + sum(len(one) for one in self.request.continuations)

    @property
    def patches(self) -> int:
        return sum(len(visual.patches) for visual in self.request.visuals)

    @property
    def filled(self) -> int:
        """Tokens in the cache once the last one is there."""
        return len(self.prompt) + len(self.output)

    def append(self, token: int, logprob: float, top: Sequence[tuple[int, float]]) -> None:
        """Take the next token. top: the likeliest tokens, at least as many as the rule reports."""
        self.output.append(token)
        self._logprobs.append(logprob)
        if self.rule.logprobs:
            self._top.append(list(top[: self.rule.logprobs]))
        if self._finder is not None and self._tokenizer is not None:
            self.stop = self._finder.add(self._tokenizer.token_bytes(token))
        if self.room is not None:
            self.room.used = self.filled

    @property
    def finished(self) -> bool:
        return self._stopped or len(self.output) >= self.budget

    @property
    def _stopped(self) -> bool:
        return self.stop is not None or self.output[-1] in self.rule.eos_token_ids

    def completion(self, cancelled: bool = False) -> Completion:
        """The answer, once the row has finished or been cancelled."""
        said = self._logprobs
        reason = "cancelled" if cancelled else "stop" if self._stopped else "length"
        return Completion(
            self.request.id,
            self.output,
            reason,  # type: ignore[arg-type]
            len(self.prompt),
            self.request.visual_tokens,
            sum(said) / len(said) if said else 0.0,
            stop=self.stop,
            logprobs=said,
            top_logprobs=self._top,
        )

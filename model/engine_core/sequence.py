"""A request on its way through the engine: what it needs, and what it has said so far.

Turns tokens, one after the other, into a completion. It does not know other rows or the network.
"""

from collections.abc import Hashable, Sequence

import torch

from mediamill.model.engine_core.allocation import Allocation
from mediamill.model.generation.grammar import Matcher
from mediamill.model.generation.stopping import StopFinder
from mediamill.model.requests import Completion, Request, Score
from mediamill.model.sampling import GenerationRule
from mediamill.model.text.tokenizer import Tokenizer


class Row:
    """One request.

    context: tokens that the model takes, prompt and answer together: the positions beyond were not
        trained. tokenizer: needed only when the rule has stop strings. matcher: only
        when it has a JSON schema; it follows the output.
    positions: int64 [3, prompt tokens] on the host. following: of the first token after the prompt.
    pads: for each medium the index of its first pad token. names: of the full pages of the prompt.
    room: what it holds of the cache while it runs. tries: times that memory ran out with this
        request alone in hand.
    leader: a row of the same prefill whose prompt begins with the same `leader.head` tokens, which
        are computed there. head: 0 when nobody follows.
    scores: of its first continuations. part: those that its next prefill takes.
    """

    def __init__(
        self,
        request: Request,
        rule: GenerationRule,
        context: int,
        tokenizer: Tokenizer | None,
        positions: torch.Tensor,
        following: int,
        matcher: Matcher | None = None,
    ) -> None:
        self.request = request
        self.rule = rule
        self.prompt = list(request.input_ids)
        self.budget = min(rule.max_new_tokens, context - len(self.prompt))
        self.positions = positions
        self.following = following
        self.pads: list[int] = []
        self.names: list[bytes] = []
        self.room: Allocation | None = None
        self.leader: Row | None = None
        self.head = 0
        self.tries = 0
        self.scores: list[Score] = []
        self.part: Sequence[Sequence[int]] = ()
        self.embedding: list[float] | None = None
        self.output: list[int] = []
        self.stop: str | None = None
        self._finder = StopFinder(rule.stop) if rule.stop else None
        self._tokenizer = tokenizer
        self.matcher = matcher
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
        """Tokens that its next prefill computes, of all that nothing is known of."""
        if self.request.skips_language:
            return 0
        return len(self.prompt) + sum(len(one) for one in self.part)

    @property
    def spared(self) -> int:
        """Tokens of its prompt that its prefill need not compute, since others have."""
        if self.leader is not None:
            return self.leader.head
        return 0 if self.room is None else self.room.reused

    def common(self, other: "Row") -> int:
        """Tokens that both prompts begin with, at most all but the last of each: what follows from
        that one's hidden state is each row's own.
        """
        most = min(len(self.prompt), len(other.prompt)) - 1
        pairs = zip(self.prompt[:most], other.prompt, strict=False)
        same = next((i for i, (a, b) in enumerate(pairs) if a != b), most)
        for pad, mine, its in zip(self.pads, self.media_keys, other.media_keys, strict=False):
            if pad < same and mine != its:
                return pad
        return same

    def take_part(self, tokens: int) -> None:
        """Choose the continuations of its next prefill: as many as have so few tokens in sum, at
        least one; just one where memory ran out.
        """
        left = self.request.continuations[len(self.scores) :]
        count = total = 0
        for one in left:
            total += len(one)
            if count and (total > tokens or self.tries):
                break
            count += 1
        self.part = left[:count]

    @property
    def measured(self) -> bool:
        """Whether all its continuations are scored."""
        return len(self.scores) == len(self.request.continuations)

    @property
    def pooled(self) -> Sequence[int] | None:
        """Indices of the prompt's tokens whose hidden states the row's embedding is made of; None
        for a row that has none.
        """
        if self.request.mode != "embed":
            return None
        if self.request.pool == "visual_tokens":
            media = zip(self.pads, self.request.visuals, strict=True)
            return [i for pad, visual in media for i in range(pad, pad + visual.tokens)]
        return range(0 if self.request.pool == "mean" else len(self.prompt) - 1, len(self.prompt))

    @property
    def media_keys(self) -> list[Hashable]:
        """For each medium what it shares with those that have equal visual tokens."""
        names, visuals = self.request.media_names, self.request.visuals
        given = names or [id(visual.patches) for visual in visuals]
        return [
            (name, visual.kind, visual.grid_thw)
            for name, visual in zip(given, visuals, strict=True)
        ]

    @property
    def patches(self) -> int:
        return sum(len(visual.patches) for visual in self.request.visuals)

    def patches_from(self, token: int) -> int:
        """Patches of the media that begin at this token of the prompt or after it."""
        media = zip(self.pads, self.request.visuals, strict=True)
        return sum(len(visual.patches) for pad, visual in media if pad >= token)

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
        if self.matcher is not None and token not in self.rule.eos_token_ids:
            self.matcher.advance(token)
        if self.room is not None:
            self.room.used = self.filled

    @property
    def finished(self) -> bool:
        return self._stopped or len(self.output) >= self.budget

    @property
    def _stopped(self) -> bool:
        if self.matcher is not None and (self.matcher.complete or self.matcher.problem):
            return True
        return self.stop is not None or self.output[-1] in self.rule.eos_token_ids

    def completion(self, cancelled: bool = False) -> Completion:
        """The answer, once the row has finished or been cancelled."""
        said = self._logprobs
        problem = self.matcher.problem if self.matcher is not None else None
        reason = "cancelled"
        if not cancelled:
            reason = "length" if self.generates else "done"
            reason = "stop" if self.generates and self._stopped else reason
            reason = "error" if problem else reason
        return Completion(
            self.request.id,
            self.output,
            reason,  # type: ignore[arg-type]
            len(self.prompt),
            self.request.visual_tokens,
            sum(said) / len(said) if said else 0.0,
            f"json_schema: the answer cannot be held to it: {problem}" if problem else None,
            stop=self.stop,
            logprobs=said,
            top_logprobs=self._top,
            scores=self.scores,
            embedding=self.embedding,
        )

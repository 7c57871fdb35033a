"""The engine's state of one request: its prompt, its output, and its part of the KV cache."""

from collections import abc

import torch

from mediamill.model.engine_core.allocation import Allocation
from mediamill.model.generation.grammar import Matcher
from mediamill.model.generation.loops import LoopFinder
from mediamill.model.generation.stopping import StopFinder
from mediamill.model.requests import Completion, FinishReason, Request, Score
from mediamill.model.sampling import GenerationRule
from mediamill.model.text.tokenizer import Tokenizer


class Sequence:
    """One request.

    positions: int64 [3, prompt tokens] on the host.
    next_position: the position of the first token after the prompt.
    media_starts: for each medium the index of its first pad token.
    block_hashes: hashes of the full pages of the prompt; empty where prefixes are not shared.
    allocation: its part of the KV cache, while it runs.
    oom_count: how often memory ran out in a step that held this sequence alone.
    scores: scores of its first continuations.
    """

    def __init__(
        self,
        request: Request,
        rule: GenerationRule,
        context: int,
        tokenizer: Tokenizer | None,
        positions: torch.Tensor,
        next_position: int,
        matcher: Matcher | None = None,
    ) -> None:
        """Makes the state of a request that has not begun.

        context: the model's context length; bounds prompt and output together.
        tokenizer: needed only when the rule has stop strings.
        matcher: needed only when the rule has a JSON schema; it follows the output.
        """
        self.request = request
        self.rule = rule
        self.prompt = list(request.input_ids)
        self.max_output_tokens = min(rule.max_new_tokens, context - len(self.prompt))
        self.positions = positions
        self.next_position = next_position
        self.media_starts: list[int] = []
        self.block_hashes: list[bytes] = []
        self.allocation: Allocation | None = None
        self.oom_count = 0
        self.scores: list[Score] = []
        self.embedding: list[float] | None = None
        self.output: list[int] = []
        self.stop_string: str | None = None
        self._stop_finder = StopFinder(rule.stop) if rule.stop else None
        self._loop_finder = LoopFinder() if rule.stop_loops else None
        self._loops = False
        self._tokenizer = tokenizer
        self.matcher = matcher
        self._logprobs: list[float] = []
        self._top_logprobs: list[list[tuple[int, float]]] = []

    @property
    def generates(self) -> bool:
        return self.request.mode == "generate"

    @property
    def cache_tokens(self) -> int:
        """Tokens to reserve in the KV cache: prompt and output to generate; the prompt to score, so
        that others can share it; none to embed.
        """
        if self.request.mode == "embed":
            return 0
        return len(self.prompt) + (self.max_output_tokens if self.generates else 0)

    @property
    def reused(self) -> int:
        """Prompt tokens that were cached when the sequence was admitted."""
        return self.allocation.reused if self.allocation else 0

    def common_prefix(self, other: "Sequence") -> int:
        """Returns how many tokens both prompts begin with, at most all but the last of each: each
        sequence needs the hidden state of its own last token.
        """
        limit = min(len(self.prompt), len(other.prompt)) - 1
        pairs = zip(self.prompt[:limit], other.prompt, strict=False)
        common = next((i for i, (a, b) in enumerate(pairs) if a != b), limit)
        media = zip(self.media_starts, self.media_keys, other.media_keys, strict=False)
        for start, key, other_key in media:
            if start < common and key != other_key:
                return start
        return common

    def next_continuations(self, tokens: int) -> abc.Sequence[abc.Sequence[int]]:
        """Returns the continuations to score in the next prefill: as many as have at most `tokens`
        tokens together, but at least one; exactly one after memory ran out.
        """
        remaining = self.request.continuations[len(self.scores) :]
        count = total = 0
        for continuation in remaining:
            total += len(continuation)
            if count and (total > tokens or self.oom_count):
                break
            count += 1
        return remaining[:count]

    @property
    def all_scored(self) -> bool:
        """Whether all its continuations are scored."""
        return len(self.scores) == len(self.request.continuations)

    @property
    def pooled_tokens(self) -> abc.Sequence[int] | None:
        """Indices of the prompt tokens whose hidden states the embedding is pooled from; None for a
        request without an embedding.
        """
        if self.request.mode != "embed":
            return None
        if self.request.pool == "visual_tokens":
            media = zip(self.media_starts, self.request.visuals, strict=True)
            return [i for start, visual in media for i in range(start, start + visual.tokens)]
        return range(0 if self.request.pool == "mean" else len(self.prompt) - 1, len(self.prompt))

    @property
    def media_keys(self) -> list[abc.Hashable]:
        """For each medium a key; media with equal keys have equal visual tokens."""
        visuals = self.request.visuals
        names = self.request.media_names or [id(visual.patches) for visual in visuals]
        pairs = zip(names, visuals, strict=True)
        return [(name, visual.kind, visual.grid_thw) for name, visual in pairs]

    @property
    def patches(self) -> int:
        """Patches of all its media."""
        return sum(len(visual.patches) for visual in self.request.visuals)

    def patches_from(self, token: int) -> int:
        """Returns the patches of the media that begin at this token of the prompt or later."""
        media = zip(self.media_starts, self.request.visuals, strict=True)
        return sum(len(visual.patches) for start, visual in media if start >= token)

    @property
    def num_tokens(self) -> int:
        """Tokens of prompt and output."""
        return len(self.prompt) + len(self.output)

    def append(self, token: int, logprob: float, top: abc.Sequence[tuple[int, float]]) -> None:
        """Appends an output token. top: at least as many of the likeliest as the rule reports."""
        self.output.append(token)
        self._logprobs.append(logprob)
        if self.rule.logprobs:
            self._top_logprobs.append(list(top[: self.rule.logprobs]))
        if self._stop_finder is not None and self._tokenizer is not None:
            self.stop_string = self._stop_finder.add(self._tokenizer.token_bytes(token))
        if self._loop_finder is not None:
            self._loops = self._loop_finder.add(token)
        if self.matcher is not None and token not in self.rule.eos_token_ids:
            self.matcher.advance(token)
        if self.allocation is not None:
            self.allocation.used = self.num_tokens

    @property
    def finished(self) -> bool:
        return self._stopped or self._loops or len(self.output) >= self.max_output_tokens

    @property
    def _stopped(self) -> bool:
        if self.matcher is not None and (self.matcher.complete or self.matcher.problem):
            return True
        return self.stop_string is not None or self.output[-1] in self.rule.eos_token_ids

    def completion(self, cancelled: bool = False) -> Completion:
        """Returns the completion of a finished or cancelled sequence."""
        logprobs = self._logprobs
        problem = self.matcher.problem if self.matcher is not None else None
        reason: FinishReason
        if cancelled:
            reason = "cancelled"
        elif problem:
            reason = "error"
        elif not self.generates:
            reason = "done"
        else:
            reason = "stop" if self._stopped else "loop" if self._loops else "length"
        return Completion(
            self.request.id,
            self.output,
            reason,
            len(self.prompt),
            self.request.visual_tokens,
            sum(logprobs) / len(logprobs) if logprobs else 0.0,
            f"json_schema: the answer cannot be held to it: {problem}" if problem else None,
            stop=self.stop_string,
            logprobs=logprobs,
            top_logprobs=self._top_logprobs,
            scores=self.scores,
            embedding=self.embedding,
        )

"""Samples the next token of each row of a batch of logits, each row by its own rule.

There is no device synchronization: all decisions follow from the rules, on the host.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from mediamill.model.generation.filters import (
    LIST,
    apply_token_bitmask,
    drop_below_min_p,
    forbid,
    keep_top,
    keep_top_k,
    penalize_repetition,
)
from mediamill.model.generation.seeds import uniform
from mediamill.model.sampling import GenerationRule


@dataclass(frozen=True)
class Choice:
    """The tokens of one step.

    tokens: int64 [B].
    logprobs: float32 [B], natural, of the tokens under the softmax of the unprocessed logits.
    top_ids, top_logprobs: int64 and float32 [B, n], the n likeliest tokens and their logprobs; n is
        the largest number that a rule asks for. None if no rule asks for any.
    """

    tokens: torch.Tensor
    logprobs: torch.Tensor
    top_ids: torch.Tensor | None = None
    top_logprobs: torch.Tensor | None = None


class Chooser:
    """The sampler of a batch.

    rules: of each row. steps: int64 [B], the number of tokens that were chosen for each row.
    seen: bool [B, V], the tokens of prompt and output; None if no rule has a repetition penalty.

    The order is the reference's: repetition penalty, min_new_tokens, token bitmask; then for rows
    that sample: temperature, top_k, top_p, min_p, softmax, and one draw by the row's seed and step.
    """

    def __init__(
        self,
        rules: Sequence[GenerationRule],
        prompts: Sequence[Sequence[int]],
        vocabulary: int,
        device: torch.device,
    ) -> None:
        """prompts: for each row the ids so far. vocabulary: number of logits; ids and end tokens
        beyond it are ignored, since they cannot be chosen.
        """
        self.rules = list(rules)
        self.vocabulary = vocabulary
        self.steps = torch.zeros(len(rules), dtype=torch.long, device=device)
        self.seen: torch.Tensor | None = None
        if any(rule.repetition_penalty != 1.0 for rule in rules):
            seen = torch.zeros(len(rules), vocabulary, dtype=torch.bool)
            for row, ids in enumerate(prompts):
                seen[row, [i for i in set(ids) if i < vocabulary]] = True
            self.seen = seen.to(device)
        self._steps_with_minimum = max((rule.min_new_tokens for rule in rules), default=0)
        self._build_tensors(device)

    def _build_tensors(self, device: torch.device) -> None:
        """Builds the rules as tensors, and groups the sampling rows by the filters they need."""
        rules = self.rules
        self._penalty = torch.tensor([[rule.repetition_penalty] for rule in rules], device=device)
        ends = [[i for i in rule.eos_token_ids if i < self.vocabulary] for rule in rules]
        width = max((len(tokens) for tokens in ends), default=0)
        # A row with fewer end tokens repeats its first. A row without any has 0, which is never
        # forbidden, because its min_new_tokens becomes 0 below.
        padded = [tokens + (tokens[:1] or [0]) * (width - len(tokens)) for tokens in ends]
        self._ends = torch.tensor(padded, dtype=torch.long, device=device).view(len(rules), width)
        pairs = zip(rules, ends, strict=True)
        minimums = [rule.min_new_tokens if tokens else 0 for rule, tokens in pairs]
        self._min_new_tokens = torch.tensor(minimums, device=device)
        self._top_logprobs = max((rule.logprobs for rule in rules), default=0)
        groups: dict[tuple[bool, bool], list[int]] = {}
        for row, rule in enumerate(rules):
            if rule.draws:
                # A row's group depends on its own rule alone, and so does its result.
                small_k = 0 < rule.top_k <= LIST
                groups.setdefault((small_k, rule.top_p < 1 or rule.top_k > LIST), []).append(row)
        self._groups = [
            _SamplingGroup([rules[row] for row in rows], rows, len(rows) == len(rules), device)
            for rows in groups.values()
        ]

    def choose(self, logits: torch.Tensor, bitmask: torch.Tensor | None = None) -> Choice:
        """Returns the next token of each row from logits [B, V] of any float dtype.

        bitmask: the tokens that may be chosen, int32 [B, words], see `apply_token_bitmask`; None:
        all.
        """
        logits = logits.float()
        logprobs = logits.log_softmax(dim=-1)
        logits = self._process(logits)
        if bitmask is not None:
            logits = apply_token_bitmask(logits, bitmask)
        if len(self._groups) == 1 and self._groups[0].is_whole:
            tokens = self._groups[0].draw(logits, self.steps)
        else:
            tokens = logits.argmax(dim=-1)
            for group in self._groups:
                tokens[group.rows] = group.draw(logits[group.rows], self.steps[group.rows])
        self.steps = self.steps + 1
        self._steps_with_minimum -= 1
        if self.seen is not None:
            self.seen.scatter_(1, tokens[:, None], True)
        chosen = logprobs.gather(1, tokens[:, None])[:, 0]
        if not self._top_logprobs:
            return Choice(tokens, chosen)
        top = logprobs.topk(min(self._top_logprobs, self.vocabulary), dim=-1)
        return Choice(tokens, chosen, top.indices, top.values)

    def _process(self, logits: torch.Tensor) -> torch.Tensor:
        """Applies the repetition penalty and min_new_tokens, which hold for greedy rows too."""
        if self.seen is not None:
            logits = penalize_repetition(logits, self.seen, self._penalty)
        if self._steps_with_minimum > 0 and self._ends.shape[1]:
            early = (self.steps < self._min_new_tokens)[:, None].expand_as(self._ends)
            logits = forbid(logits, self._ends, early)
        return logits

    def select(self, rows: Sequence[int]) -> None:
        """Keeps only these rows, in this order."""
        index = torch.tensor(rows, device=self.steps.device)
        self.rules = [self.rules[row] for row in rows]
        self.steps = self.steps[index]
        self.seen = None if self.seen is None else self.seen[index]
        self._build_tensors(self.steps.device)

    def join(self, other: "Chooser") -> None:
        """Appends the rows of another chooser."""
        if self.seen is not None or other.seen is not None:
            self.seen = torch.cat([self._seen_or_zeros(), other._seen_or_zeros()])
        self.rules += other.rules
        self.steps = torch.cat([self.steps, other.steps])
        self._steps_with_minimum = max(self._steps_with_minimum, other._steps_with_minimum)
        self._build_tensors(self.steps.device)

    def _seen_or_zeros(self) -> torch.Tensor:
        """Returns `seen`; zeros if no row has a penalty."""
        if self.seen is not None:
            return self.seen
        shape = (len(self.rules), self.vocabulary)
        return torch.zeros(shape, dtype=torch.bool, device=self.steps.device)


class _SamplingGroup:
    """Rows that sample with the same filters.

    rows: their indices in the batch. is_whole: they are the whole batch.
    """

    def __init__(
        self, rules: Sequence[GenerationRule], rows: list[int], is_whole: bool, device: torch.device
    ) -> None:
        self.is_whole = is_whole
        self.rows = torch.tensor(rows, device=device)
        self.temperature = torch.tensor([[rule.temperature] for rule in rules], device=device)
        self.top_k = torch.tensor([rule.top_k for rule in rules], device=device)
        # float64, so that 1 - p is rounded to float32 once, as in the reference.
        self.top_p = torch.tensor([rule.top_p for rule in rules], dtype=torch.float64).to(device)
        self.min_p = torch.tensor([rule.min_p for rule in rules], device=device)
        self.seeds = torch.tensor([rule.seed for rule in rules], device=device)
        counts = [rule.top_k for rule in rules]
        self.small_k = min(counts) > 0 and max(counts) <= LIST
        self.largest_k = max(counts)
        self.uses_top_p = any(rule.top_p < 1 for rule in rules)
        self.uses_min_p = any(rule.min_p > 0 for rule in rules)

    def probabilities(self, logits: torch.Tensor) -> torch.Tensor:
        """Returns the probabilities [B, V] to sample from; 0 for tokens that are filtered out."""
        logits = logits / self.temperature
        if self.small_k and not self.uses_top_p:
            logits = keep_top_k(logits, self.top_k, self.largest_k)
        elif self.small_k:
            logits = keep_top(logits, self.top_k, self.top_p, self.largest_k)
        elif self.uses_top_p or self.largest_k > LIST:
            logits = keep_top(logits, self.top_k, self.top_p, logits.shape[1])
        probabilities = logits.softmax(dim=-1)
        if self.uses_min_p:
            probabilities = drop_below_min_p(probabilities, self.min_p)
        return probabilities

    def draw(self, logits: torch.Tensor, steps: torch.Tensor) -> torch.Tensor:
        """Samples one token of each row: the inverse of the cumulative distribution, in the order
        of ids, at the row's random number.
        """
        probabilities = self.probabilities(logits)
        sums = probabilities.cumsum(dim=-1, dtype=torch.float64)
        total = sums[:, -1:]
        point = uniform(self.seeds, steps)[:, None] * total
        # Below the total even after rounding, so that no token of probability 0 is chosen.
        point = point.minimum(total.nextafter(torch.zeros_like(total)))
        tokens = torch.searchsorted(sums, point, right=True)[:, 0]
        return tokens.clamp(max=logits.shape[1] - 1)

"""Turns the logits of a batch into the next token of each row, each row by its own rule.

Knows what a row has said so far as a set of ids and a count, and nothing of the network. It never
waits for the device: what has to be decided beforehand is decided from the rules, on the host.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from mediamill.model.generation.filters import (
    LIST,
    drop_below_min_p,
    forbid,
    keep_allowed,
    keep_top,
    keep_top_k,
    penalise_repetition,
)
from mediamill.model.generation.seeds import uniform
from mediamill.model.sampling import GenerationRule


@dataclass(frozen=True)
class Choice:
    """One step. tokens: int64 [B]. logprobs: float32 [B], natural, of the tokens under the softmax
    of the network's own logits, before penalty, temperature and filters.

    top_ids, top_logprobs: int64 and float32 [B, n], the n likeliest by the same measure; n is the
        most that any row asks for. None when no row asks.
    """

    tokens: torch.Tensor
    logprobs: torch.Tensor
    top_ids: torch.Tensor | None = None
    top_logprobs: torch.Tensor | None = None


class Chooser:
    """The rules of a batch of rows, and what they have seen.

    The order is the reference's: repetition penalty, min_new_tokens, what a grammar allows; then
    for rows that draw temperature, top_k, top_p, min_p, softmax, and one draw by the row's seed and
    step.
    """

    def __init__(
        self,
        rules: Sequence[GenerationRule],
        prompts: Sequence[Sequence[int]],
        vocabulary: int,
        device: torch.device,
    ) -> None:
        """prompts: the ids before the answers; ids and end tokens beyond the vocabulary are never
        chosen, and so need no care.
        """
        self.rules = list(rules)
        self.vocabulary = vocabulary
        self.steps = torch.zeros(len(rules), dtype=torch.long, device=device)
        self.seen: torch.Tensor | None = None
        if any(rule.repetition_penalty != 1.0 for rule in rules):
            self.seen = _seen(prompts, vocabulary, device)
        self._minimum = max((rule.min_new_tokens for rule in rules), default=0)
        self._place(device)

    def _place(self, device: torch.device) -> None:
        """The rules as tensors, and the rows that draw in groups that need the same work."""
        rules = self.rules
        self._penalty = torch.tensor([[rule.repetition_penalty] for rule in rules], device=device)
        ends = [[i for i in rule.eos_token_ids if i < self.vocabulary] for rule in rules]
        width = max((len(one) for one in ends), default=0)
        # A row with fewer end tokens repeats its first; a row with none names 0, and never minds.
        self._ends = torch.tensor(
            [one + (one[:1] or [0]) * (width - len(one)) for one in ends],
            dtype=torch.long,
            device=device,
        ).view(len(rules), width)
        self._needed = torch.tensor(
            [rule.min_new_tokens if one else 0 for rule, one in zip(rules, ends, strict=True)],
            device=device,
        )
        self._alternatives = max((rule.logprobs for rule in rules), default=0)
        groups: dict[tuple[bool, bool], list[int]] = {}
        for row, rule in enumerate(rules):
            if rule.draws:
                # A row's group follows from its own rule alone, so its result does too.
                few = 0 < rule.top_k <= LIST
                groups.setdefault((few, rule.top_p < 1 or rule.top_k > LIST), []).append(row)
        self._groups = [
            _Group([rules[row] for row in rows], rows, len(rows) == len(rules), device)
            for rows in groups.values()
        ]

    def choose(self, logits: torch.Tensor, allowed: torch.Tensor | None = None) -> Choice:
        """The next token of each row from logits [B, V] of any float dtype.

        allowed: which tokens may be chosen, int32 [B, words] as of `keep_allowed`; None: all.
        """
        logits = logits.float()
        raw = logits.log_softmax(dim=-1)
        logits = self._processed(logits)
        if allowed is not None:
            logits = keep_allowed(logits, allowed)
        if len(self._groups) == 1 and self._groups[0].whole:
            tokens = self._groups[0].draw(logits, self.steps)
        else:
            tokens = logits.argmax(dim=-1)
            for group in self._groups:
                tokens[group.rows] = group.draw(logits[group.rows], self.steps[group.rows])
        self.steps = self.steps + 1
        self._minimum -= 1
        if self.seen is not None:
            self.seen.scatter_(1, tokens[:, None], True)
        chosen = raw.gather(1, tokens[:, None])[:, 0]
        if not self._alternatives:
            return Choice(tokens, chosen)
        top = raw.topk(min(self._alternatives, self.vocabulary), dim=-1)
        return Choice(tokens, chosen, top.indices, top.values)

    def distribution(self, logits: torch.Tensor) -> torch.Tensor:
        """What `choose` would draw from: float32 [B, V], not summing to 1 where min_p leaves tokens
        out. A greedy row has 1 at its token.
        """
        logits = self._processed(logits.float())
        result = torch.zeros_like(logits).scatter_(1, logits.argmax(-1, keepdim=True), 1.0)
        for group in self._groups:
            result[group.rows] = group.probabilities(logits[group.rows])
        return result

    def _processed(self, logits: torch.Tensor) -> torch.Tensor:
        """Logits after what holds for greedy rows too."""
        if self.seen is not None:
            logits = penalise_repetition(logits, self.seen, self._penalty)
        if self._minimum > 0 and self._ends.shape[1]:
            early = (self.steps < self._needed)[:, None].expand_as(self._ends)
            logits = forbid(logits, self._ends, early)
        return logits

    def keep(self, rows: Sequence[int]) -> None:
        """Keep only these rows, in this order."""
        index = torch.tensor(rows, device=self.steps.device)
        self.rules = [self.rules[row] for row in rows]
        self.steps = self.steps[index]
        self.seen = None if self.seen is None else self.seen[index]
        self._place(self.steps.device)

    def join(self, other: "Chooser") -> None:
        """Add the rows of `other` after these."""
        if self.seen is not None or other.seen is not None:
            self.seen = torch.cat([self._all_seen(), other._all_seen()])
        self.rules += other.rules
        self.steps = torch.cat([self.steps, other.steps])
        self._minimum = max(self._minimum, other._minimum)
        self._place(self.steps.device)

    def _all_seen(self) -> torch.Tensor:
        """What the rows have seen; for rows without a penalty, which keep no account, nothing."""
        if self.seen is not None:
            return self.seen
        shape = (len(self.rules), self.vocabulary)
        return torch.zeros(shape, dtype=torch.bool, device=self.steps.device)


class _Group:
    """Rows that draw their tokens and need the same work. rows: their numbers; whole: they are the
    batch.
    """

    def __init__(
        self, rules: Sequence[GenerationRule], rows: list[int], whole: bool, device: torch.device
    ) -> None:
        self.whole = whole
        self.rows = torch.tensor(rows, device=device)
        self.temperature = torch.tensor([[rule.temperature] for rule in rules], device=device)
        self.top_k = torch.tensor([rule.top_k for rule in rules], device=device)
        # float64, so that 1 - p is rounded to float32 once, as in the reference.
        self.top_p = torch.tensor([rule.top_p for rule in rules], dtype=torch.float64).to(device)
        self.min_p = torch.tensor([rule.min_p for rule in rules], device=device)
        self.seeds = torch.tensor([rule.seed for rule in rules], device=device)
        counts = [rule.top_k for rule in rules]
        self.few = min(counts) > 0 and max(counts) <= LIST
        self.longest = max(counts)
        self.nucleus = any(rule.top_p < 1 for rule in rules)
        self.floor = any(rule.min_p > 0 for rule in rules)

    def probabilities(self, logits: torch.Tensor) -> torch.Tensor:
        """Logits [B, V] -> the share of each token in the draw, 0 for those left out."""
        logits = logits / self.temperature
        if self.few and not self.nucleus:
            logits = keep_top_k(logits, self.top_k, self.longest)
        elif self.few:
            logits = keep_top(logits, self.top_k, self.top_p, self.longest)
        elif self.nucleus or self.longest > LIST:
            logits = keep_top(logits, self.top_k, self.top_p, logits.shape[1])
        probabilities = logits.softmax(dim=-1)
        if self.floor:
            probabilities = drop_below_min_p(probabilities, self.min_p)
        return probabilities

    def draw(self, logits: torch.Tensor, steps: torch.Tensor) -> torch.Tensor:
        """One token of each row: the inverse of the cumulative distribution, in the order of ids,
        at the row's random number.
        """
        probabilities = self.probabilities(logits)
        sums = probabilities.cumsum(dim=-1, dtype=torch.float64)
        total = sums[:, -1:]
        wanted = uniform(self.seeds, steps)[:, None] * total
        # Below the total even after rounding: a token of probability 0 is never reached.
        wanted = wanted.minimum(total.nextafter(torch.zeros_like(total)))
        tokens = torch.searchsorted(sums, wanted, right=True)[:, 0]
        return tokens.clamp(max=logits.shape[1] - 1)


def _seen(prompts: Sequence[Sequence[int]], vocabulary: int, device: torch.device) -> torch.Tensor:
    """The ids of each prompt: bool [B, vocabulary]."""
    seen = torch.zeros(len(prompts), vocabulary, dtype=torch.bool)
    for row, ids in enumerate(prompts):
        seen[row, [i for i in set(ids) if i < vocabulary]] = True
    return seen.to(device)

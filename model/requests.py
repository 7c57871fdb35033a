"""What an engine is asked and what it answers, and a request on its way from one to the other.

Knows token ids and rules of generation; how tokens are made is the engine's.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

from model.inputs import VisualInput
from model.sampling import GenerationRule, Sampling
from model.stopping import StopFinder
from model.tokenizer import Tokenizer

FinishReason = Literal["stop", "length", "error"]


@dataclass(frozen=True)
class Request:
    """One prompt. input_ids: token ids with every pad token expanded; visuals: its media, in prompt
    order.
    """

    id: str
    input_ids: Sequence[int]
    visuals: tuple[VisualInput, ...] = ()
    sampling: Sampling = field(default_factory=Sampling)

    @property
    def visual_tokens(self) -> int:
        return sum(visual.tokens for visual in self.visuals)


@dataclass(frozen=True)
class Completion:
    """What became of a request.

    output_ids: generated ids, the end token or the last token of a stop string included.
    mean_logprob: mean of logprobs.
    error: one sentence when finish_reason is "error", else None.
    stop: the stop string that ended the answer, or None.
    logprobs: natural log-probability of each generated token under the network's own logits
        (float32), before repetition penalty, temperature and filters.
    top_logprobs: with `Sampling.logprobs` n above 0, for each generated token the n likeliest
        tokens and their log-probabilities by the same measure, the likeliest first.
    """

    id: str
    output_ids: list[int]
    finish_reason: FinishReason
    prompt_tokens: int
    visual_tokens: int
    mean_logprob: float
    error: str | None = None
    stop: str | None = None
    logprobs: list[float] = field(default_factory=list)
    top_logprobs: list[list[tuple[int, float]]] = field(default_factory=list)


def failed(request: Request, problem: str) -> Completion:
    """The answer to a request that cannot be answered."""
    prompt_tokens = len(request.input_ids)
    return Completion(request.id, [], "error", prompt_tokens, request.visual_tokens, 0.0, problem)


class Row:
    """A request in the running batch, with what it has generated so far.

    context: tokens that the model takes, prompt and answer together: the positions beyond were not
        trained. tokenizer: needed only when the rule has stop strings.
    """

    def __init__(
        self, request: Request, rule: GenerationRule, context: int, tokenizer: Tokenizer | None
    ) -> None:
        self.request = request
        self.rule = rule
        self.budget = min(rule.max_new_tokens, context - len(request.input_ids))
        self.output: list[int] = []
        self.stop: str | None = None
        self._finder = StopFinder(rule.stop) if rule.stop else None
        self._tokenizer = tokenizer
        self._logprobs: list[float] = []
        self._top: list[list[tuple[int, float]]] = []

    def append(self, token: int, logprob: float, top: Sequence[tuple[int, float]]) -> None:
        """Take the next token. top: the likeliest tokens, at least as many as the rule reports."""
        self.output.append(token)
        self._logprobs.append(logprob)
        if self.rule.logprobs:
            self._top.append(list(top[: self.rule.logprobs]))
        if self._finder is not None and self._tokenizer is not None:
            self.stop = self._finder.add(self._tokenizer.token_bytes(token))

    @property
    def finished(self) -> bool:
        return self._stopped or len(self.output) >= self.budget

    @property
    def _stopped(self) -> bool:
        return self.stop is not None or self.output[-1] in self.rule.eos_token_ids

    def completion(self) -> Completion:
        """The answer, once the row has finished."""
        return Completion(
            self.request.id,
            self.output,
            "stop" if self._stopped else "length",
            len(self.request.input_ids),
            self.request.visual_tokens,
            sum(self._logprobs) / len(self._logprobs),
            stop=self.stop,
            logprobs=self._logprobs,
            top_logprobs=self._top,
        )

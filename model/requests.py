"""What an engine is asked and what it answers.

Knows token ids and rules of generation; how tokens are made is the engine's.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

from mediamill.model.inputs import VisualInput
from mediamill.model.sampling import Sampling

FinishReason = Literal["stop", "length", "done", "cancelled", "error"]
Mode = Literal["generate", "score", "embed"]
Pooling = Literal["last", "mean", "visual_tokens", "vision_tower"]


@dataclass(frozen=True)
class Request:
    """One prompt. input_ids: token ids with every pad token expanded; visuals: its media, in prompt
    order.

    mode: "generate" an answer; "score": the log-probabilities of given `continuations`; "embed":
        one vector of the prompt or of its media. `sampling` counts for "generate" alone.
    continuations: lists of token ids, each of which is taken to follow the prompt.
    pool: what an embedding is made of. Of the final hidden states, after the last norm: "last": the
        last token's; "mean": the mean over all tokens; "visual_tokens": over the visual tokens
        alone. "vision_tower": the mean over the visual tokens as the vision tower gives them; the
        language model is not run then, and the prompt may be longer than its context.
    normalize: embeddings are scaled to length 1.
    media_names: what each medium is called, for sharing the work on a common beginning among
        requests: equal names promise equal patches and grids. None: media are alike when their
        patches are the very same tensor.
    """

    id: str
    input_ids: Sequence[int]
    visuals: tuple[VisualInput, ...] = ()
    sampling: Sampling = field(default_factory=Sampling)
    mode: Mode = "generate"
    continuations: Sequence[Sequence[int]] = ()
    pool: Pooling = "last"
    normalize: bool = False
    media_names: tuple[str, ...] | None = None

    @property
    def visual_tokens(self) -> int:
        return sum(visual.tokens for visual in self.visuals)

    @property
    def skips_language(self) -> bool:
        """Whether the vision tower alone can answer."""
        return self.mode == "embed" and self.pool == "vision_tower"


@dataclass(frozen=True)
class Score:
    """One continuation. logprobs: natural log-probability of each of its tokens, given all before
    it, under the network's own logits (float32); total: their sum.
    """

    total: float
    logprobs: list[float]


@dataclass(frozen=True)
class Completion:
    """What became of a request.

    output_ids: generated ids, the end token or the last token of a stop string included; what was
        there so far when it was cancelled.
    finish_reason: "stop": an end token or a stop string; "length": max_new_tokens or the end of the
        context; "done": scored or embedded; "cancelled"; "error".
    mean_logprob: mean of logprobs.
    error: one sentence when finish_reason is "error", else None. out_of_memory: it is memory that
        was missing.
    stop: the stop string that ended the answer, or None.
    logprobs: natural log-probability of each generated token under the network's own logits
        (float32), before repetition penalty, temperature and filters.
    top_logprobs: with `Sampling.logprobs` n above 0, for each generated token the n likeliest
        tokens and their log-probabilities by the same measure, the likeliest first.
    scores: of the continuations, in order, of a request to score; of a cancelled one, the first of
        them. embedding: `hidden_size` numbers, pooled in float32, of a request to embed.
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
    scores: list[Score] = field(default_factory=list)
    embedding: list[float] | None = None
    out_of_memory: bool = False


def failed(request: Request, problem: str, out_of_memory: bool = False) -> Completion:
    """The answer to a request that cannot be answered."""
    return Completion(
        request.id,
        [],
        "error",
        len(request.input_ids),
        request.visual_tokens,
        0.0,
        problem,
        out_of_memory=out_of_memory,
    )

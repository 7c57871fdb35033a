"""The requests and completions of an engine."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

from mediamill.model.inputs import VisualInput
from mediamill.model.sampling import Sampling

FinishReason = Literal["stop", "length", "loop", "done", "cancelled", "error"]
Mode = Literal["generate", "score", "embed"]
Pooling = Literal["last", "mean", "visual_tokens", "vision_tower"]


@dataclass(frozen=True)
class Request:
    """One prompt.

    input_ids: token ids, with a pad token for each visual token.
    visuals: its media, in prompt order.
    sampling: used in mode "generate" only.
    mode: "generate": an output; "score": the log-probabilities of given `continuations`; "embed":
        one vector of the prompt or of its media.
    continuations: lists of token ids, each of which follows the prompt.
    pool: what an embedding is pooled from. Final hidden states, after the last norm: "last": the
        last token's; "mean": the mean over all tokens; "visual_tokens": the mean over the visual
        tokens. "vision_tower": the mean over the visual tokens that the vision tower makes; the
        language model is not run then, and the prompt may be longer than its context.
    normalize: scale the embedding to length 1.
    media_names: a name for each medium, for sharing prefixes among requests: media of equal names
        must have equal patches and grids. None: media are equal if their patches are the same
        tensor object.
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
        """Whether the vision tower alone answers the request."""
        return self.mode == "embed" and self.pool == "vision_tower"


@dataclass(frozen=True)
class Score:
    """The score of one continuation.

    logprobs: natural log-probability of each of its tokens given all before it, under the
        unprocessed logits (float32).
    total: their sum.
    """

    total: float
    logprobs: list[float]


@dataclass(frozen=True)
class Completion:
    """The result of a request.

    output_ids: generated ids, including the end token or the last token of a stop string; those so
        far if it was cancelled.
    finish_reason: "stop": an end token or a stop string; "length": max_new_tokens or the end of the
        context; "loop": the output repeated itself, with `Sampling.stop_loops`; "done": scored or
        embedded; "cancelled"; "error".
    mean_logprob: mean of logprobs.
    error: one sentence if finish_reason is "error", else None.
    out_of_memory: the error is a lack of memory.
    stop: the stop string that ended the output, or None.
    logprobs: natural log-probability of each generated token under the unprocessed logits
        (float32), before repetition penalty, temperature and filters.
    top_logprobs: if `Sampling.logprobs` is n > 0, for each generated token the n likeliest tokens
        and their log-probabilities, the likeliest first.
    scores: of the continuations, in order; of the first ones if it was cancelled.
    embedding: `hidden_size` numbers, pooled in float32.
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
    """Returns the completion of a request that cannot be answered."""
    prompt_tokens, visual_tokens = len(request.input_ids), request.visual_tokens
    return Completion(
        request.id,
        [],
        "error",
        prompt_tokens,
        visual_tokens,
        0.0,
        problem,
        out_of_memory=out_of_memory,
    )

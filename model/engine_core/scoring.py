"""Computes log-probabilities of given tokens, and embeddings, from final hidden states."""

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F

from mediamill.model.engine_core.model_runner import PrefillOutput
from mediamill.model.engine_core.scheduler import ScheduledPrefill
from mediamill.model.families.qwen2_vl.model import Qwen2VL
from mediamill.model.requests import Score

# Tokens whose logits exist at once: the vocabulary is wide.
_CHUNK = 256


def score_and_pool(
    scheduled: ScheduledPrefill, output: PrefillOutput, model: Qwen2VL
) -> list[tuple[int, list[Score], list[float] | None]]:
    """Returns, for each sequence of a prefill that does not generate: its index, the scores of its
    scheduled continuations, and its embedding.
    """
    embeddings: dict[int, list[float] | None] = {}
    rows: list[int] = []
    targets: list[int] = []
    for i, seq in enumerate(scheduled.sequences):
        if seq.generates:
            continue
        embeddings[i] = None
        if seq.request.mode == "embed":
            hidden = output.visual.get(i)
            if hidden is None:
                pooled = output.rows[i, None]
                hidden = output.hidden[pooled.start : pooled.stop]
            embeddings[i] = mean_pool(hidden, seq.request.normalize)
        for k, tokens in enumerate(scheduled.continuations[i]):
            # The prompt's last token predicts the first target, each token the one after it.
            inputs = [*output.rows[i, None], *output.rows.get((i, k), ())]
            rows += inputs[: len(tokens)]
            targets += tokens
    logprobs = iter(token_logprobs(output.hidden, rows, targets, model.logits))
    results = []
    for i, embedding in embeddings.items():
        of_tokens = [[next(logprobs) for _ in tokens] for tokens in scheduled.continuations[i]]
        results.append((i, [Score(sum(values), values) for values in of_tokens], embedding))
    return results


def token_logprobs(
    hidden: torch.Tensor,
    rows: Sequence[int],
    targets: Sequence[int],
    logits: Callable[[torch.Tensor], torch.Tensor],
) -> list[float]:
    """Returns the natural log-probability (float32) of each target given its hidden state.

    hidden: [n, hidden]. rows: for each target the row of its hidden state. logits: the model's
    output head.
    """
    logprobs = []
    target_ids = torch.tensor(targets, dtype=torch.long).to(hidden.device)
    index = torch.tensor(rows, dtype=torch.long).to(hidden.device)
    for start in range(0, len(targets), _CHUNK):
        chunk = slice(start, start + _CHUNK)
        scores = logits(hidden[index[chunk]]).float()
        target_scores = scores.gather(1, target_ids[chunk, None])[:, 0]
        logprobs.append(target_scores - scores.logsumexp(dim=-1))
    return torch.cat(logprobs).tolist() if logprobs else []


def mean_pool(hidden: torch.Tensor, normalize: bool) -> list[float]:
    """Returns the mean of [n, hidden] in float32, scaled to length 1 if `normalize`; n >= 1."""
    mean = hidden.float().mean(dim=0)
    return (F.normalize(mean, dim=0) if normalize else mean).tolist()

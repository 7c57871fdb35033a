"""Turns final hidden states into log-probabilities of given tokens, and into embeddings.

It does not know where the hidden states come from.
"""

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F

from mediamill.model.engine_core.model_runner import Prefilled
from mediamill.model.engine_core.sequence import Row
from mediamill.model.families.qwen2_vl.model import Qwen2VL
from mediamill.model.requests import Score

# Rows of logits that exist at once: the vocabulary is wide.
_ROWS = 256


def measure(
    rows: Sequence[Row], prefilled: Prefilled, model: Qwen2VL
) -> list[tuple[Row, list[Score], list[float] | None]]:
    """The rows of a prefill that do not generate, with the scores of their part and their
    embedding.
    """
    found: list[tuple[Row, list[Score], list[float] | None]] = []
    places: list[int] = []
    targets: list[int] = []
    for number, row in enumerate(rows):
        if row.generates:
            continue
        vector = None
        if row.request.mode == "embed":
            own = prefilled.visual.get(number)
            if own is None:
                place = prefilled.places[number, None]
                own = prefilled.hidden[place.start : place.stop]
            vector = pooled(own, row.request.normalize)
        for k, tokens in enumerate(row.part):
            # The first token follows from the prompt's last, the others from the one before.
            before = [*prefilled.places[number, None], *prefilled.places.get((number, k), ())]
            places += before[: len(tokens)]
            targets += tokens
        found.append((row, [], vector))
    logprobs = iter(token_logprobs(prefilled.hidden, places, targets, model.logits))
    for row, scores, _ in found:
        for tokens in row.part:
            each = [next(logprobs) for _ in tokens]
            scores.append(Score(sum(each), each))
    return found


def token_logprobs(
    hidden: torch.Tensor,
    places: Sequence[int],
    targets: Sequence[int],
    logits: Callable[[torch.Tensor], torch.Tensor],
) -> list[float]:
    """Natural log-probability (float32) of each target under the logits of its hidden state.

    hidden: [n, hidden]. places: for each target the row of its hidden state. logits: the network's
    head.
    """
    found = []
    wanted = torch.tensor(targets, dtype=torch.long).to(hidden.device)
    index = torch.tensor(places, dtype=torch.long).to(hidden.device)
    for start in range(0, len(targets), _ROWS):
        rows = slice(start, start + _ROWS)
        scores = logits(hidden[index[rows]]).float()
        found.append(scores.gather(1, wanted[rows, None])[:, 0] - scores.logsumexp(dim=-1))
    return torch.cat(found).tolist() if found else []


def pooled(rows: torch.Tensor, normalize: bool) -> list[float]:
    """The mean of [n, hidden], in float32; n is at least 1. normalize: scaled to length 1."""
    mean = rows.float().mean(dim=0)
    return (F.normalize(mean, dim=0) if normalize else mean).tolist()

"""Turns final hidden states into log-probabilities of given tokens, and into embeddings.

It does not know where the hidden states come from.
"""

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F

from model.requests import Embedding

# Rows of logits that exist at once: the vocabulary is wide.
_ROWS = 256


def token_logprobs(
    hidden: torch.Tensor, targets: Sequence[int], logits: Callable[[torch.Tensor], torch.Tensor]
) -> list[float]:
    """Natural log-probability (float32) of each target under the logits of its hidden state.

    hidden: [n, hidden]. logits: the network's head.
    """
    found = []
    wanted = torch.tensor(targets, dtype=torch.long).to(hidden.device)
    for start in range(0, len(targets), _ROWS):
        ids = wanted[start : start + _ROWS]
        scores = logits(hidden[start : start + _ROWS]).float()
        found.append(scores.gather(1, ids[:, None])[:, 0] - scores.logsumexp(dim=-1))
    return torch.cat(found).tolist() if found else []


def embedding(hidden: torch.Tensor, visual: Sequence[bool], normalize: bool) -> Embedding:
    """Pooled hidden states [n, hidden] of one prompt. visual: which tokens are visual tokens."""
    wide = hidden.float()
    mask = torch.tensor(visual).to(hidden.device)

    def pooled(rows: torch.Tensor) -> list[float] | None:
        if not len(rows):
            return None
        mean = rows.mean(dim=0)
        return (F.normalize(mean, dim=0) if normalize else mean).tolist()

    last = pooled(wide[-1:])
    assert last is not None, "a prompt has tokens"
    return Embedding(last, pooled(wide[~mask]), pooled(wide[mask]))

"""Filters logits and probabilities by repetition penalty, token bitmask, top_k, top_p and min_p.

The rules and their order are the reference's. A row's result depends only on its own logits and
parameters, and there is no device synchronization.
"""

import torch

# Up to this k, the likeliest tokens are found without sorting the vocabulary.
LIST = 128


def penalize_repetition(
    logits: torch.Tensor, seen: torch.Tensor, penalty: torch.Tensor
) -> torch.Tensor:
    """Returns logits with the tokens seen so far made less likely (arXiv 1909.05858, section 4.1).

    logits: float32 [B, V]; seen: bool [B, V], prompt ids included; penalty: float32 [B, 1], 1 for
        none.
    """
    return torch.where(seen, torch.where(logits < 0, logits * penalty, logits / penalty), logits)


def forbid(logits: torch.Tensor, tokens: torch.Tensor, forbidden: torch.Tensor) -> torch.Tensor:
    """Returns logits [B, V] with `tokens` (int64 [B, E]) at minus infinity where `forbidden` (bool
    [B, E]). A token that is twice in a row must be forbidden both times.
    """
    values = logits.gather(1, tokens).masked_fill(forbidden, float("-inf"))
    return logits.scatter(1, tokens, values)


def apply_token_bitmask(logits: torch.Tensor, bitmask: torch.Tensor) -> torch.Tensor:
    """Returns logits [B, V] with minus infinity at the tokens whose bit is 0.

    bitmask: int32 [B, words] on the same device; bit t % 32 of word t // 32 is of token t.
    """
    shifts = torch.arange(8, dtype=torch.uint8, device=logits.device)
    bits = (bitmask.view(torch.uint8)[:, :, None] >> shifts) & 1
    return logits.masked_fill(bits.flatten(1)[:, : logits.shape[1]] == 0, float("-inf"))


def keep_top(
    logits: torch.Tensor, top_k: torch.Tensor, top_p: torch.Tensor, largest_k: int
) -> torch.Tensor:
    """Returns logits with minus infinity outside the k likeliest tokens, and then outside the
    nucleus.

    top_k keeps all tokens that are at least as likely as the k-th, so its ties too. top_p (arXiv
    1904.09751, section 3.1) removes tokens in ascending order while the sum of their probabilities
    is at most 1 - p, but not the last one. Among equal logits the lower ids are removed first.

    logits: float32 [B, V].
    top_k: int64 [B], 0 for none.
    top_p: float64 [B], 1 for none.
    largest_k: the largest of top_k, or V if any of them is 0. Up to `LIST` no sort is needed.
    """
    vocabulary = logits.shape[1]
    if largest_k <= LIST:
        return _keep_top_from_list(logits, top_k, top_p, min(largest_k, vocabulary))
    ascending, order = logits.sort(dim=-1, stable=True)
    k = torch.where(top_k == 0, vocabulary, top_k.clamp(max=vocabulary))[:, None]
    kth = ascending.gather(1, vocabulary - k)
    ascending = ascending.masked_fill(ascending < kth, float("-inf"))
    # Rounded to float32 only once.
    sums = ascending.softmax(-1).cumsum(-1, dtype=torch.float64).float()
    removed = sums <= _tail_mass(top_p)
    removed[:, -1] = False
    removed |= ascending == float("-inf")
    return logits.masked_fill(torch.zeros_like(removed).scatter(1, order, removed), float("-inf"))


def keep_top_k(logits: torch.Tensor, top_k: torch.Tensor, largest_k: int) -> torch.Tensor:
    """As `keep_top`, but cheaper, for rows without top_p and with a top_k of at least 1."""
    values = logits.topk(min(largest_k, logits.shape[1]), dim=-1).values
    kth = values.gather(1, top_k.clamp(max=values.shape[1])[:, None] - 1)
    return logits.masked_fill(logits < kth, float("-inf"))


def drop_below_min_p(probabilities: torch.Tensor, min_p: torch.Tensor) -> torch.Tensor:
    """Returns probabilities [B, V] with 0 for tokens below min_p (float32 [B]) times the row's
    largest (arXiv 2407.01082). They are not normalized again.
    """
    threshold = min_p[:, None] * probabilities.amax(dim=-1, keepdim=True)
    return probabilities.masked_fill(probabilities < threshold, 0.0)


def _keep_top_from_list(
    logits: torch.Tensor, top_k: torch.Tensor, top_p: torch.Tensor, length: int
) -> torch.Tensor:
    """`keep_top` computed from a list of the `length` largest logits.

    Ties with the k-th largest that are not in the list are only counted: they are the least likely
    of the tokens that top_k keeps, and all alike.
    """
    listed = logits.topk(length, dim=-1).values
    k = torch.where(top_k == 0, length, top_k.clamp(max=length))[:, None]
    kth = listed.gather(1, k - 1)
    inside = torch.arange(length, device=logits.device) < k
    listed = listed.masked_fill(~inside, float("-inf"))
    tied = logits == kth
    extra = tied.sum(-1, keepdim=True) - (listed == kth).sum(-1, keepdim=True)

    top = listed[:, :1]
    weights = (listed - top).exp()
    total = weights.sum(-1, keepdim=True, dtype=torch.float64)
    total = (total + extra * (kth - top).exp().double()).float()
    each = ((kth - top).exp() / total).double()
    ascending = (weights / total).flip(-1).cumsum(-1, dtype=torch.float64)
    ascending = (ascending + extra * each).float()
    tail = _tail_mass(top_p)
    removed = (ascending <= tail) & inside.flip(-1)
    removed[:, -1] = False
    # How many of the extra ties are removed: the largest j with j * each <= tail, with an allowance
    # for the rounding of float32.
    extra_removed = (tail.double() / each * (1 + 2.0**-24)).floor().nan_to_num(0.0)
    extra_removed = extra_removed.clamp(min=0).minimum(extra.double()).long()

    ascending_values = listed.flip(-1)
    # The rest of the list begins with `cutoff`. Entries equal to it may be removed already.
    first = (length - k) + removed.sum(-1, keepdim=True)
    smallest = ascending_values.gather(1, first.clamp(max=length - 1))
    cutoff = torch.where(extra_removed < extra, kth, smallest)
    count = (removed & (ascending_values == cutoff)).sum(-1, keepdim=True)
    count = torch.where(cutoff == kth, count + extra_removed, count)
    ties = logits == cutoff
    removed_ties = ties & (ties.cumsum(-1, dtype=torch.int32) <= count)
    return logits.masked_fill((logits < cutoff) | removed_ties, float("-inf"))


def _tail_mass(top_p: torch.Tensor) -> torch.Tensor:
    """Returns 1 - p, float32 [B, 1]; below 0 for p = 1, which removes nothing."""
    return torch.where(top_p < 1, 1 - top_p, -1.0).float()[:, None]

"""Turns logits into logits or probabilities that leave out unlikely tokens, each row by its own
rule.

The rules and their order are the reference's. A row's result depends on nothing but its own logits
and parameters, and no call waits for the device.
"""

import torch

# Up to so many, the likeliest tokens are found without sorting the vocabulary.
LIST = 128


def penalise_repetition(
    logits: torch.Tensor, seen: torch.Tensor, penalty: torch.Tensor
) -> torch.Tensor:
    """Logits with every token already seen made less likely (arXiv 1909.05858, section 4.1).

    logits: float32 [B, V]; seen: bool [B, V], prompt ids included; penalty: float32 [B, 1], 1 for
        none.
    """
    return torch.where(seen, torch.where(logits < 0, logits * penalty, logits / penalty), logits)


def forbid(logits: torch.Tensor, tokens: torch.Tensor, forbidden: torch.Tensor) -> torch.Tensor:
    """Logits [B, V] with `tokens` (int64 [B, E]) at minus infinity where `forbidden` (bool [B, E]).

    A token that is named twice in a row has to be forbidden both times.
    """
    values = logits.gather(1, tokens).masked_fill(forbidden, float("-inf"))
    return logits.scatter(1, tokens, values)


def keep_allowed(logits: torch.Tensor, allowed: torch.Tensor) -> torch.Tensor:
    """Logits [B, V] with minus infinity at the tokens whose bit is 0.

    allowed: int32 [B, words] on the same device; bit t % 32 of word t // 32 is of token t.
    """
    places = torch.arange(8, dtype=torch.uint8, device=logits.device)
    bits = (allowed.view(torch.uint8)[:, :, None] >> places) & 1
    return logits.masked_fill(bits.flatten(1)[:, : logits.shape[1]] == 0, float("-inf"))


def keep_top(
    logits: torch.Tensor, top_k: torch.Tensor, top_p: torch.Tensor, longest: int
) -> torch.Tensor:
    """Logits with minus infinity outside the k likeliest and then outside the nucleus.

    Kept of a row by top_k: all that are at least the k-th largest, so ties with it too. By top_p
    (arXiv 1904.09751, section 3.1): in ascending order, tokens leave while their sum of
    probabilities is at most 1 - p; the last one stays. Among equal logits the lower ids leave
    first.

    logits: float32 [B, V]; top_k: int64 [B], 0 for none; top_p: float64 [B], 1 for none; longest:
        the largest of top_k, or V if any of them is 0. Up to `LIST` it saves the sort of the rows.
    """
    vocabulary = logits.shape[1]
    if longest <= LIST:
        return _keep_listed(logits, top_k, top_p, min(longest, vocabulary))
    ascending, order = logits.sort(dim=-1, stable=True)
    k = torch.where(top_k == 0, vocabulary, top_k.clamp(max=vocabulary))[:, None]
    least = ascending.gather(1, vocabulary - k)
    ascending = ascending.masked_fill(ascending < least, float("-inf"))
    leaves = _ascending_probabilities(ascending).le(_beyond(top_p))
    leaves[:, -1] = False
    leaves |= ascending == float("-inf")
    return logits.masked_fill(torch.zeros_like(leaves).scatter(1, order, leaves), float("-inf"))


def keep_top_k(logits: torch.Tensor, top_k: torch.Tensor, longest: int) -> torch.Tensor:
    """`keep_top` with top_p 1 for all rows, and top_k of at least 1: cheaper."""
    values = logits.topk(min(longest, logits.shape[1]), dim=-1).values
    least = values.gather(1, top_k.clamp(max=values.shape[1])[:, None] - 1)
    return logits.masked_fill(logits < least, float("-inf"))


def drop_below_min_p(probabilities: torch.Tensor, min_p: torch.Tensor) -> torch.Tensor:
    """Probabilities [B, V] with 0 for tokens below min_p (float32 [B]) times the row's largest, not
    normalised again (arXiv 2407.01082).
    """
    least = min_p[:, None] * probabilities.amax(dim=-1, keepdim=True)
    return probabilities.masked_fill(probabilities < least, 0.0)


def _keep_listed(
    logits: torch.Tensor, top_k: torch.Tensor, top_p: torch.Tensor, length: int
) -> torch.Tensor:
    """`keep_top` from the list of the `length` largest alone.

    Ties with the k-th largest that the list has no room for are counted, not listed: they are the
    least likely of what is kept, and all alike.
    """
    listed = logits.topk(length, dim=-1).values
    k = torch.where(top_k == 0, length, top_k.clamp(max=length))[:, None]
    least = listed.gather(1, k - 1)
    inside = torch.arange(length, device=logits.device) < k
    listed = listed.masked_fill(~inside, float("-inf"))
    tied = logits == least
    extra = tied.sum(-1, keepdim=True) - (listed == least).sum(-1, keepdim=True)

    top = listed[:, :1]
    weights = (listed - top).exp()
    total = weights.sum(-1, keepdim=True, dtype=torch.float64)
    total = (total + extra * (least - top).exp().double()).float()
    each = ((least - top).exp() / total).double()
    ascending = (weights / total).flip(-1).cumsum(-1, dtype=torch.float64)
    ascending = (ascending + extra * each).float()
    beyond = _beyond(top_p)
    leaves = (ascending <= beyond) & inside.flip(-1)
    leaves[:, -1] = False
    # How many of the extra ones leave: the largest j with j * each <= beyond, float32's rounding
    # allowed for.
    gone = (beyond.double() / each * (1 + 2.0**-24)).floor().nan_to_num(0.0)
    gone = gone.clamp(min=0).minimum(extra.double()).long()

    ascending_values = listed.flip(-1)
    # What is left of the list begins with `cut`; entries equal to it that left come off its ties.
    first = (length - k) + leaves.sum(-1, keepdim=True)
    some_extra_stay = gone < extra
    cut = torch.where(
        some_extra_stay, least, ascending_values.gather(1, first.clamp(max=length - 1))
    )
    left = (leaves & (ascending_values == cut)).sum(-1, keepdim=True)
    left = torch.where(cut == least, left + gone, left)
    rank = (logits == cut).cumsum(-1, dtype=torch.int32)
    return logits.masked_fill((logits < cut) | ((logits == cut) & (rank <= left)), float("-inf"))


def _ascending_probabilities(ascending: torch.Tensor) -> torch.Tensor:
    """Running sums of the softmax, rounded to float32 only once."""
    return ascending.softmax(-1).cumsum(-1, dtype=torch.float64).float()


def _beyond(top_p: torch.Tensor) -> torch.Tensor:
    """1 - p, float32 [B, 1]; below 0 for p = 1, where nothing is to leave."""
    return torch.where(top_p < 1, 1 - top_p, -1.0).float()[:, None]

"""Puts visual tokens into the places that pad tokens hold among embeddings.

It does not know where the tokens come from.
"""

import torch


def placed(
    x: torch.Tensor, mask: torch.Tensor, tokens: torch.Tensor | None, token_id: int
) -> torch.Tensor:
    """Embeddings x [T, hidden] with `tokens` [n, hidden] where mask [T] is true, in order.

    Raises ValueError when their number differs from that of the places. token_id: for the message.
    """
    found, given = int(mask.sum()), 0 if tokens is None else len(tokens)
    if found != given:
        raise ValueError(
            f"the ids hold {found} pad tokens of id {token_id}, but {given} visual tokens were "
            "given"
        )
    return x if tokens is None else x.masked_scatter(mask[:, None], tokens.to(x.dtype))


def pads_among(x: torch.Tensor, pad: torch.Tensor) -> torch.Tensor:
    """Which embeddings x [T, hidden] are those of a pad token, [hidden]: bool [T]."""
    return (x == pad).all(dim=-1)

"""Visual tokens in place of pad tokens among the embeddings of a prompt."""

import torch


def scatter_visual_tokens(
    x: torch.Tensor, mask: torch.Tensor, tokens: torch.Tensor | None, token_id: int
) -> torch.Tensor:
    """Returns embeddings x [T, hidden] with `tokens` [n, hidden] where mask [T] is true, in order.

    token_id: of the pad token, for the message.
    Raises ValueError when the number of tokens differs from that of the places.
    """
    places, given = int(mask.sum()), 0 if tokens is None else len(tokens)
    if places != given:
        raise ValueError(
            f"the ids hold {places} pad tokens of id {token_id}, but {given} visual tokens were "
            "given"
        )
    return x if tokens is None else x.masked_scatter(mask[:, None], tokens.to(x.dtype))


def is_pad_embedding(x: torch.Tensor, pad: torch.Tensor) -> torch.Tensor:
    """Which embeddings x [T, hidden] equal the pad token's embedding [hidden]: bool [T]."""
    return (x == pad).all(dim=-1)

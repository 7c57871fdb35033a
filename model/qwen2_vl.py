"""Qwen2-VL: the vision tower and the decoder joined, and the forward pass with labels.

Turns token ids and normalised patches into hidden states, logits and a loss. It does not know
pictures, strings or sampling.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import nn

from model.attention import Attend, AttentionName, PackedCausal
from model.config import Qwen2VLConfig
from model.decoder import Decoder
from model.rope import Grid, mrope_positions
from model.vision import VisionTower


@dataclass(frozen=True)
class Output:
    """logits: [B, S, vocabulary]. loss: mean cross entropy over the labelled tokens, or None."""

    logits: torch.Tensor
    loss: torch.Tensor | None


class Qwen2VL(nn.Module):
    """The network. Parameter names are those of the hub checkpoints."""

    def __init__(self, config: Qwen2VLConfig) -> None:
        super().__init__()
        self.config = config
        self.visual = VisionTower(config.vision)
        self.model = Decoder(config.text)
        self.lm_head = nn.Linear(config.text.hidden_size, config.text.vocab_size, bias=False)
        self.tie()

    def tie(self) -> None:
        """Share the head with the embedding where the config says so; anew after a move."""
        if self.config.text.tie_word_embeddings:
            self.lm_head.weight = self.model.embed_tokens.weight

    @property
    def dtype(self) -> torch.dtype:
        return self.model.embed_tokens.weight.dtype

    @property
    def device(self) -> torch.device:
        return self.model.embed_tokens.weight.device

    def embed(
        self,
        input_ids: torch.Tensor,
        image_tokens: torch.Tensor | None = None,
        video_tokens: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Token embeddings [T, hidden] of packed ids [T], pad tokens replaced by visual tokens in
        order.

        image_tokens, video_tokens: outputs of the vision tower. Raises ValueError when their number
            differs from that of the pad tokens, so that no picture is ever dropped unseen.
        """
        x = self.model.embed_tokens(input_ids)
        for token_id, tokens in (
            (self.config.image_token_id, image_tokens),
            (self.config.video_token_id, video_tokens),
        ):
            mask = input_ids == token_id
            found, given = int(mask.sum()), 0 if tokens is None else len(tokens)
            if found != given:
                raise ValueError(
                    f"the ids hold {found} pad tokens of id {token_id}, but {given} visual "
                    "tokens were given"
                )
            if tokens is not None:
                x = x.masked_scatter(mask[:, None], tokens.to(x.dtype))
        return x  # type: ignore[no-any-return]

    def hidden_states(
        self, embeddings: torch.Tensor, positions: torch.Tensor, attend: Attend
    ) -> torch.Tensor:
        """Packed embeddings [T, hidden] and positions [3, T] -> final hidden states [T, hidden]."""
        return self.model(embeddings, positions, attend)  # type: ignore[no-any-return]

    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """Hidden states [..., hidden] -> logits [..., vocabulary] in the model's dtype."""
        return self.lm_head(hidden)  # type: ignore[no-any-return]

    def forward(
        self,
        input_ids: torch.Tensor,
        *,
        pixel_values: torch.Tensor | None = None,
        image_grid_thw: Sequence[Grid] = (),
        pixel_values_videos: torch.Tensor | None = None,
        video_grid_thw: Sequence[Grid] = (),
        labels: torch.Tensor | None = None,
        attention: AttentionName = "sdpa",
    ) -> Output:
        """One pass over a batch of prompts, padded on the right to a common length.

        input_ids: int64 [B, S]. Right padding needs no mask: no real token can see it, and labels
            leave it out.
        pixel_values, pixel_values_videos: normalised patches [N, C*T*ph*pw], media in the order of
            the prompts.
        image_grid_thw, video_grid_thw: their grids.
        labels: int64 [B, S], -100 where no loss is wanted; the token at i is predicted from those
            before i.
        """
        batch, length = input_ids.shape
        images = (
            None if pixel_values is None else self.visual(pixel_values, image_grid_thw, attention)
        )
        videos = (
            None
            if pixel_values_videos is None
            else self.visual(pixel_values_videos, video_grid_thw, attention)
        )
        embeddings = self.embed(input_ids.flatten(), images, videos)
        positions = self.positions(input_ids, image_grid_thw, video_grid_thw)
        hidden = self.hidden_states(
            embeddings, positions, PackedCausal([length] * batch, attention)
        )
        logits = self.logits(hidden).view(batch, length, -1)
        loss = None
        if labels is not None:
            loss = F.cross_entropy(
                logits[:, :-1].flatten(0, 1).float(), labels[:, 1:].flatten(), ignore_index=-100
            )
        return Output(logits, loss)

    def positions(
        self, input_ids: torch.Tensor, image_grids: Sequence[Grid], video_grids: Sequence[Grid]
    ) -> torch.Tensor:
        """M-RoPE positions of a batch of prompts [B, S], packed: int64 [3, B*S]."""
        images, videos = iter(image_grids), iter(video_grids)
        image_id, video_id = self.config.image_token_id, self.config.video_token_id
        packed = []
        for ids in input_ids.tolist():
            grids = prompt_grids(ids, images, videos, image_id, video_id)
            packed.append(mrope_positions(ids, grids, (image_id, video_id), self.config.mrope)[0])
        return torch.cat(packed, dim=1).to(input_ids.device)


def prompt_grids(
    ids: Sequence[int], images: Iterator[Grid], videos: Iterator[Grid], image_id: int, video_id: int
) -> list[Grid]:
    """The grids that belong to one prompt, taken from two streams in the order in which the prompt
    shows them.
    """
    grids: list[Grid] = []
    remaining = 0
    for token in ids:
        if token not in (image_id, video_id):
            continue
        if remaining == 0:
            grids.append(next(images if token == image_id else videos))
            t, h, w = grids[-1]
            remaining = t * h * w // 4
        remaining -= 1
    return grids

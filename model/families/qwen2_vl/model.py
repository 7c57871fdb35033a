"""Qwen2-VL: the vision tower and the decoder, and the forward passes over padded batches.

Token ids and normalized patches go in, and hidden states, logits and a loss come out.
"""

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import nn

from mediamill.model.families.qwen2_vl.config import Qwen2VLConfig
from mediamill.model.families.qwen2_vl.positions import prompt_positions
from mediamill.model.families.qwen2_vl.vision import VisionTower
from mediamill.model.layers.attention import AttentionBackend
from mediamill.model.layers.cache import KeyValueCache
from mediamill.model.layers.collectives import SINGLE_RANK, Collectives
from mediamill.model.layers.decoder import Decoder
from mediamill.model.layers.outputs import Output, TextOutput
from mediamill.model.layers.padded import causal_loss, run_decoder
from mediamill.model.layers.padding import packing_for, select_logits
from mediamill.model.layers.positions import rope_deltas, text_positions
from mediamill.model.layers.rope import Grid, grid_list
from mediamill.model.layers.shards import WHOLE, Shard
from mediamill.model.layers.visual_tokens import is_pad_embedding, scatter_visual_tokens

__all__ = ["Output", "Qwen2VL", "TextOutput"]

Grids = torch.Tensor | Sequence[Grid]


class Qwen2VL(nn.Module):
    """The network. Parameter names are those of the hub checkpoints."""

    def __init__(
        self, config: Qwen2VLConfig, shard: Shard = WHOLE, collectives: Collectives = SINGLE_RANK
    ) -> None:
        """Builds the network, or one tensor-parallel part of it.

        config: of the whole network. The attribute `config` of a part has its own numbers of heads
            and its own inner width.
        shard: the part to build.
        collectives: of the ranks that have the other parts.
        Raises ModelError when the network cannot be split into so many parts.
        """
        super().__init__()
        shard.check(config.text)
        config = replace(config, text=shard.text(config.text))
        self.config = config
        self.collectives = collectives
        self.visual = VisionTower(config.vision)
        self.model = Decoder(config.text, shard, collectives)
        rows = self.model.embed_tokens.num_embeddings
        self.lm_head = nn.Linear(config.text.hidden_size, rows, bias=False)
        self.tie()

    def tie(self) -> None:
        """Makes the head share the embedding's weight where the config says so.

        Needed again after `to_empty`, which gives both a weight of their own.
        """
        if self.config.text.tie_word_embeddings:
            self.lm_head.weight = self.model.embed_tokens.weight

    @property
    def dtype(self) -> torch.dtype:
        return self.model.embed_tokens.weight.dtype

    @property
    def device(self) -> torch.device:
        return self.model.embed_tokens.weight.device

    def new_cache(self, batch: int) -> KeyValueCache:
        """Returns an empty cache for `batch` sequences, which grows as it is filled."""
        text = self.config.text
        return KeyValueCache(
            text.num_hidden_layers,
            batch,
            text.num_key_value_heads,
            0,
            text.head_dim,
            self.dtype,
            self.device,
        )

    def embed(
        self,
        input_ids: torch.Tensor,
        image_tokens: torch.Tensor | None = None,
        video_tokens: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Packed ids [T] -> embeddings [T, hidden], with visual tokens in place of pad tokens.

        image_tokens, video_tokens: outputs of the vision tower.
        Raises ValueError when their number differs from that of the pad tokens.
        """
        x = self.model.embed_tokens(input_ids)
        visual = (image_tokens, video_tokens)
        for token_id, tokens in zip(self.config.pad_token_ids, visual, strict=True):
            x = scatter_visual_tokens(x, input_ids == token_id, tokens, token_id)
        return x  # type: ignore[no-any-return]

    def hidden_states(
        self,
        embeddings: torch.Tensor,
        positions: torch.Tensor,
        backend: AttentionBackend,
        token_indices: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Packed embeddings [T, hidden] and positions [3, T] -> final hidden states [T, hidden].

        token_indices: int64 [n], the tokens whose states are needed: -> [n, hidden], with less
            work; None: all tokens.
        """
        return self.model(  # type: ignore[no-any-return]
            embeddings, positions, backend, token_indices=token_indices
        )

    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """Hidden states [..., hidden] -> logits [..., vocabulary] in the model's dtype."""
        return self.collectives.all_gather(self.lm_head(hidden))[..., : self.config.text.vocab_size]

    def text(
        self,
        input_ids: torch.Tensor | None = None,
        *,
        inputs_embeds: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        cache: KeyValueCache | None = None,
        output_hidden_states: bool = False,
        output_attentions: bool = False,
        attention: str = "sdpa",
    ) -> TextOutput:
        """Runs the decoder alone over a padded batch of text; visual pad tokens are plain tokens.

        input_ids: int64 [B, S], or inputs_embeds: [B, S, hidden]; exactly one of them.
        attention_mask: [B, S], with a cache [B, columns so far + S]; 0 for padding, which may stand
            anywhere. Positions, sliding windows and the cache count real tokens only.
        position_ids: int64 [B, S], [3, B, S], or [4, B, S] whose first row counts tokens: without
            mask and cache, a new sequence begins where that count is interrupted. None: the tokens
            of each row are counted, from the cache's next position.
        cache: from `new_cache`; it is read, filled and returned.
        output_attentions: needs attention="eager".
        attention: see `check_attention`.
        Raises ValueError for arguments that contradict each other.
        """
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError("text() takes exactly one of input_ids and inputs_embeds")
        packing = packing_for(
            input_ids, inputs_embeds, attention_mask, cache, self.config.text.hidden_size
        )
        if inputs_embeds is None:
            assert input_ids is not None
            inputs_embeds = self.model.embed_tokens(input_ids)
        embeddings = packing.pack(inputs_embeds)
        splits_rows = cache is None and attention_mask is None
        positions = text_positions(position_ids, packing, splits_rows)
        output, _ = run_decoder(
            self.model,
            embeddings,
            packing,
            positions,
            cache,
            attention,
            output_hidden_states,
            output_attentions,
        )
        return output

    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        *,
        inputs_embeds: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        pixel_values: torch.Tensor | None = None,
        image_grid_thw: Grids | None = None,
        pixel_values_videos: torch.Tensor | None = None,
        video_grid_thw: Grids | None = None,
        labels: torch.Tensor | None = None,
        logits_to_keep: int | torch.Tensor = 0,
        cache: KeyValueCache | None = None,
        output_hidden_states: bool = False,
        output_attentions: bool = False,
        attention: str = "sdpa",
    ) -> Output:
        """Runs the network over a padded batch of prompts with their pictures and videos.

        Arguments that `text` has too mean the same. Right padding needs no mask: no real token can
        see it.

        inputs_embeds: instead of or beside input_ids. Visual tokens replace those at pad ids, or
            without ids those that equal the embedding of a pad token. Beside ids, the patches of
            media may be left out if the embeddings contain their visual tokens already; their grids
            give the positions.
        position_ids: None: the M-RoPE positions of ids and grids; without grids, or with a cache
            that has seen tokens, the tokens of each row are counted.
        pixel_values, pixel_values_videos: normalized patches [N, C*T*ph*pw], media in the order of
            the prompts.
        image_grid_thw, video_grid_thw: their grids, int64 [n, 3] or tuples.
        labels: int64 [B, S], -100 for no loss; the token at i is predicted from those before i.
            A label at padding, or right after it, does not count.
        logits_to_keep: see `select_logits` in model/layers/padding.py; the loss is always that of
            all labels.
        Raises ValueError where ids, patches, grids, mask and cache do not fit one another.
        """
        packing = packing_for(
            input_ids, inputs_embeds, attention_mask, cache, self.config.text.hidden_size
        )
        merge = self.config.vision.spatial_merge_size
        images = grid_list(() if image_grid_thw is None else image_grid_thw, merge)
        videos = grid_list(() if video_grid_thw is None else video_grid_thw, merge)
        visual = [
            None if pixels is None else self.visual(pixels, grids, attention)
            for pixels, grids in ((pixel_values, images), (pixel_values_videos, videos))
        ]
        if inputs_embeds is None:
            for name, grids, tokens in (("image", images, visual[0]), ("video", videos, visual[1])):
                if grids and tokens is None:
                    raise ValueError(f"there are {len(grids)} {name} grids without their patches")
            assert input_ids is not None
            packed = packing.pack(input_ids)
            # After the prompt, visual pad tokens are generated text and stand for no medium.
            continues = cache is not None and cache.seen.shape[1] > 0 and not (images or videos)
            embeddings = (
                self.model.embed_tokens(packed) if continues else self.embed(packed, *visual)
            )
        else:
            ids = None if input_ids is None else packing.pack(input_ids)
            embeddings = self._fill_pads(packing.pack(inputs_embeds), ids, visual)
        if position_ids is None and input_ids is not None and (images or videos):
            positions = prompt_positions(self.config, input_ids, packing, images, videos)
        else:
            splits_rows = cache is None and attention_mask is None
            positions = text_positions(position_ids, packing, splits_rows)
        text, deltas = run_decoder(
            self.model,
            embeddings,
            packing,
            positions,
            cache,
            attention,
            output_hidden_states,
            output_attentions,
        )
        hidden, logits, loss = text.last_hidden_state, None, None
        if labels is not None:
            logits = self.logits(hidden)
            loss = causal_loss(logits, labels, packing.real)
        if logits is None or not isinstance(logits_to_keep, int) or logits_to_keep != 0:
            logits = self.logits(select_logits(hidden, logits_to_keep))
        return Output(**vars(text), logits=logits, loss=loss, rope_deltas=deltas[:, None])

    def _fill_pads(
        self,
        x: torch.Tensor,
        input_ids: torch.Tensor | None,
        visual: Sequence[torch.Tensor | None],
    ) -> torch.Tensor:
        """Packed embeddings [T, hidden] with visual tokens (images', videos') at pad tokens."""
        for token_id, tokens in zip(self.config.pad_token_ids, visual, strict=True):
            if tokens is not None:
                pad = self.model.embed_tokens.weight[token_id]
                mask = is_pad_embedding(x, pad) if input_ids is None else input_ids == token_id
                x = scatter_visual_tokens(x, mask, tokens, token_id)
        return x

    def rope_index(
        self,
        input_ids: torch.Tensor,
        image_grid_thw: Grids = (),
        video_grid_thw: Grids = (),
        attention_mask: torch.Tensor | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """M-RoPE positions int64 [3, B, S] of prompts [B, S], 0 at padding, and their rope_deltas,
        int64 [B, 1].
        """
        merge = self.config.vision.spatial_merge_size
        images, videos = grid_list(image_grid_thw, merge), grid_list(video_grid_thw, merge)
        packing = packing_for(input_ids, None, attention_mask, None, self.config.text.hidden_size)
        positions = prompt_positions(self.config, input_ids, packing, images, videos)
        positions = positions.to(input_ids.device)
        cells = packing.unpack(positions.T).permute(2, 0, 1)
        return cells, rope_deltas(positions, packing)[:, None]

"""Turns the grammars of running rows into one mask on the device, while it computes the logits.

It does not know what a grammar says; a batch without one costs nothing here.
"""

from collections.abc import Sequence

import torch

from mediamill.model.engine_core.sequence import Row
from mediamill.model.generation.grammar import Masks

# More threads wait for one another: rows of one schema share what its lexer has learned.
_THREADS = 4


class TokenBitmask:
    """The masks of one engine's batches. vocabulary: logits of the network."""

    def __init__(self, vocabulary: int, device: torch.device) -> None:
        self._vocabulary = vocabulary
        self._device = device
        self._masks: Masks | None = None
        # Page-locked on a GPU. The next mask is written after the tokens that the last one let
        # through have been read, so that one buffer is enough.
        self._buffer = torch.empty(0, 0, dtype=torch.int32)

    def of(self, rows: Sequence[Row]) -> torch.Tensor | None:
        """int32 [B, words] as of `Masks`, or None where any token may come next in every row."""
        matchers = [row.matcher for row in rows]
        if all(one is None for one in matchers):
            return None
        if self._masks is None:
            self._masks = Masks(self._vocabulary, min(_THREADS, torch.get_num_threads()))
        if len(self._buffer) < len(rows):
            shape = (len(rows), self._masks.words)
            on_gpu = self._device.type == "cuda"
            self._buffer = torch.empty(shape, dtype=torch.int32, pin_memory=on_gpu)
        masks = self._buffer[: len(rows)]
        ends = [
            [token for token in row.rule.eos_token_ids if token < self._vocabulary] for row in rows
        ]
        self._masks.fill(masks.numpy(), matchers, ends)
        return masks.to(self._device, non_blocking=True)

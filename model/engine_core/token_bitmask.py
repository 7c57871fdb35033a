"""Computes the token bitmask of a batch, on the host, while the device computes the logits."""

from collections import abc

import torch

from mediamill.model.engine_core.sequence import Sequence
from mediamill.model.generation.grammar import BitmaskFiller

# More threads block each other: sequences of one schema share the states of its lexer.
_THREADS = 4


class TokenBitmask:
    """Computes the bitmasks of one engine. vocabulary: number of logits."""

    def __init__(self, vocabulary: int, device: torch.device) -> None:
        self._vocabulary = vocabulary
        self._device = device
        self._filler: BitmaskFiller | None = None
        # Page-locked on a GPU. One buffer is enough: a mask is written only after the tokens that
        # were chosen by the one before have been read.
        self._buffer = torch.empty(0, 0, dtype=torch.int32)

    def of(self, sequences: abc.Sequence[Sequence]) -> torch.Tensor | None:
        """Returns the bitmask int32 [B, words], see `BitmaskFiller`, or None if no sequence has a
        grammar.
        """
        matchers = [seq.matcher for seq in sequences]
        if all(matcher is None for matcher in matchers):
            return None
        if self._filler is None:
            self._filler = BitmaskFiller(self._vocabulary, min(_THREADS, torch.get_num_threads()))
        if len(self._buffer) < len(sequences):
            shape = (len(sequences), self._filler.words)
            on_gpu = self._device.type == "cuda"
            self._buffer = torch.empty(shape, dtype=torch.int32, pin_memory=on_gpu)
        bitmask = self._buffer[: len(sequences)]
        end_tokens = [
            [token for token in seq.rule.eos_token_ids if token < self._vocabulary]
            for seq in sequences
        ]
        self._filler.fill(bitmask.numpy(), matchers, end_tokens)
        return bitmask.to(self._device, non_blocking=True)

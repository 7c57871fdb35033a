"""The running sequences as the tensors of decode steps.

The sequences are the truth; the tensors advance with each step, and are built again whenever the
sequences change.
"""

from collections import abc

import torch

from mediamill.model.engine_core.kv_cache import Cache, DecodeBatch
from mediamill.model.engine_core.model_runner import ModelRunner
from mediamill.model.engine_core.sequence import Sequence
from mediamill.model.generation.chooser import Choice, Chooser


class RunningBatch:
    """sequences: in the order of the batch; changed only by `join`, `remove` and `clear`."""

    def __init__(self, model_runner: ModelRunner) -> None:
        self.sequences: list[Sequence] = []
        self._model_runner = model_runner
        self._chooser: Chooser | None = None
        self._batch: DecodeBatch | None = None
        self._tokens = self._positions = torch.zeros(0, dtype=torch.long)

    def join(self, sequences: abc.Sequence[Sequence], chooser: Chooser) -> None:
        """Adds sequences, with the chooser of their first tokens."""
        before, current = self.sequences, self._chooser
        # If memory runs out below, everything is built again from the sequences.
        self.invalidate()
        self.sequences = [*before, *sequences]
        if not before:
            self._chooser = chooser
        elif current is not None:
            current.join(chooser)
            self._chooser = current

    def remove(self, sequences: abc.Sequence[Sequence]) -> None:
        """Removes sequences."""
        if not sequences:
            return
        removed = {id(seq) for seq in sequences}
        remaining = [i for i, seq in enumerate(self.sequences) if id(seq) not in removed]
        current = self._chooser
        self.invalidate()
        self.sequences = [self.sequences[i] for i in remaining]
        if remaining and current is not None:
            current.select(remaining)
            self._chooser = current

    def clear(self) -> None:
        """Removes all sequences."""
        self.invalidate()
        self.sequences = []

    def invalidate(self) -> None:
        """Drops the tensors; a failed step may have left them inconsistent."""
        self._chooser, self._batch = None, None

    def step(self, cache: Cache) -> Choice:
        """Returns the next token of every sequence; the caller appends them."""
        runner = self._model_runner
        if self._chooser is None:
            self._chooser = chooser_for(self.sequences, runner)
        if self._batch is None:
            self._tokens, self._positions, self._batch = self._build(self.sequences, cache)
        else:
            self._batch.advance()
            self._positions = self._positions + 1
        logits = runner.decode(self._tokens, self._positions, self._batch)
        bitmask = runner.token_bitmask.of(self.sequences)
        choice = runner.broadcast(self._chooser.choose(logits, bitmask))
        self._tokens = choice.tokens
        return choice

    def step_part(self, sequences: abc.Sequence[Sequence], cache: Cache) -> Choice:
        """Returns the next token of some of the sequences, and keeps no tensors; for use when
        memory is short.
        """
        self.invalidate()
        runner = self._model_runner
        logits = runner.decode(*self._build(sequences, cache))
        chooser = chooser_for(sequences, runner)
        return runner.broadcast(chooser.choose(logits, runner.token_bitmask.of(sequences)))

    def _build(
        self, sequences: abc.Sequence[Sequence], cache: Cache
    ) -> tuple[torch.Tensor, torch.Tensor, DecodeBatch]:
        """Returns the last tokens, their positions, and the batch."""
        device = self._model_runner.model.device
        allocations = [seq.allocation for seq in sequences if seq.allocation is not None]
        batch = cache.batch(allocations, [seq.num_tokens for seq in sequences])
        tokens = torch.tensor([seq.output[-1] for seq in sequences]).to(device)
        positions = [seq.next_position + len(seq.output) - 1 for seq in sequences]
        return tokens, torch.tensor(positions).to(device), batch


def chooser_for(sequences: abc.Sequence[Sequence], model_runner: ModelRunner) -> Chooser:
    """Returns the chooser of these sequences, with all their tokens so far."""
    device = model_runner.model.device
    tokens = [seq.prompt + seq.output for seq in sequences]
    vocabulary = model_runner.model.config.text.vocab_size
    chooser = Chooser([seq.rule for seq in sequences], tokens, vocabulary, device)
    chooser.steps = torch.tensor([len(seq.output) for seq in sequences], device=device)
    return chooser

"""The running rows as the device needs them for decode steps.

Turns rows, whose truth is on the host, into tensors that go on from step to step, and builds them
anew whenever the rows change. It does not know where rows come from or when they end.
"""

from collections.abc import Sequence

import torch

from mediamill.model.engine_core.model_runner import Batch, Cache, ModelRunner
from mediamill.model.engine_core.sequence import Row
from mediamill.model.generation.chooser import Choice, Chooser


class RunningBatch:
    """rows: in the order of the batch; changed only by `join` and `drop`."""

    def __init__(self, steps: ModelRunner) -> None:
        self.rows: list[Row] = []
        self._steps = steps
        self._chooser: Chooser | None = None
        self._batch: Batch | None = None
        self._tokens = self._positions = torch.zeros(0, dtype=torch.long)

    def join(self, rows: Sequence[Row], chooser: Chooser) -> None:
        """Add rows, with the rules that have made their first tokens."""
        before, mine = self.rows, self._chooser
        # Where the next lines fail for want of memory, everything is built anew from the rows.
        self.forget()
        self.rows = [*before, *rows]
        if not before:
            self._chooser = chooser
        elif mine is not None:
            mine.join(chooser)
            self._chooser = mine

    def drop(self, gone: Sequence[Row]) -> None:
        """Take rows out."""
        if not gone:
            return
        left = {id(row) for row in gone}
        kept = [i for i, row in enumerate(self.rows) if id(row) not in left]
        mine = self._chooser
        self.forget()
        self.rows = [self.rows[i] for i in kept]
        if kept and mine is not None:
            mine.keep(kept)
            self._chooser = mine

    def forget(self) -> None:
        """Let go of all that is on the device; a step that failed may have left it half done."""
        self._chooser, self._batch = None, None

    def step(self, cache: Cache) -> Choice:
        """The next token of every row, not yet given to it."""
        steps = self._steps
        if self._chooser is None:
            self._chooser = chooser_for(self.rows, steps)
        if self._batch is None:
            self._tokens, self._positions, self._batch = self._built(self.rows, cache)
        else:
            self._batch.advance()
            self._positions = self._positions + 1
        logits = steps.decode(self._tokens, self._positions, self._batch)
        choice = steps.agreed(self._chooser.choose(logits, steps.allowed.of(self.rows)))
        self._tokens = choice.tokens
        return choice

    def part_step(self, rows: Sequence[Row], cache: Cache) -> Choice:
        """The next token of some of the rows, with nothing kept: for when memory is short."""
        self.forget()
        tokens, positions, batch = self._built(rows, cache)
        logits = self._steps.decode(tokens, positions, batch)
        chooser = chooser_for(rows, self._steps)
        return self._steps.agreed(chooser.choose(logits, self._steps.allowed.of(rows)))

    def _built(self, rows: Sequence[Row], cache: Cache) -> tuple[torch.Tensor, torch.Tensor, Batch]:
        device = self._steps.model.device
        rooms = [row.room for row in rows if row.room is not None]
        batch = cache.batch(rooms, [row.filled for row in rows])
        tokens = torch.tensor([row.output[-1] for row in rows]).to(device)
        places = [row.following + len(row.output) - 1 for row in rows]
        return tokens, torch.tensor(places).to(device), batch


def chooser_for(rows: Sequence[Row], steps: ModelRunner) -> Chooser:
    """The rules of rows, with all that they have said so far."""
    device = steps.model.device
    said = [row.prompt + row.output for row in rows]
    vocabulary = steps.model.config.text.vocab_size
    chooser = Chooser([row.rule for row in rows], said, vocabulary, device)
    chooser.steps = torch.tensor([len(row.output) for row in rows], device=device)
    return chooser

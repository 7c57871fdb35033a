"""Captures decode steps as CUDA graphs, and replays them.

A step launches hundreds of small kernels; a graph launches them at once. Batches are padded to a
few sizes, with one graph each, captured when first needed. Any step function can be captured that
does not synchronize with the device and keeps no state except in the KV slots that it writes.
"""

import logging
from collections.abc import Callable
from typing import Protocol

import torch

log = logging.getLogger(__name__)


class DecodeStep(Protocol):
    """A decode step; must be idempotent.

    tokens, positions, slots: int64 [B]. block_table: int32 [B, pages]. seq_lens: int32 [B]. Returns
    logits [B, V].
    """

    def __call__(
        self,
        tokens: torch.Tensor,
        positions: torch.Tensor,
        block_table: torch.Tensor,
        seq_lens: torch.Tensor,
        slots: torch.Tensor,
    ) -> torch.Tensor: ...


Replay = Callable[[], torch.Tensor]
Capture = Callable[[Replay], Replay]


def batch_sizes(largest: int) -> tuple[int, ...]:
    """Returns the sizes that batches are padded to: 1, 2, 4, 8, 16, 24, 32, 48, 64, 96 and so on,
    and `largest` itself.
    """
    sizes, size = [1, 2, 4, 8], 16
    while size < largest:
        sizes += [size, size * 3 // 2]
        size *= 2
    return (*(s for s in sizes if s < largest), largest)


def padded_width(pages: int, smallest: int, largest: int) -> int:
    """Returns the first of smallest, 2 * smallest, 4 * smallest ... that is at least `pages`, but
    no more than `largest`.
    """
    while smallest < pages:
        smallest *= 2
    return min(smallest, largest)


class DecodeGraphs:
    """A step function that replays captured graphs of another one, with the same results.

    max_batch_size, max_pages: the largest batch and the widest block table.
    scratch_page: a page that no sequence owns; padding writes and reads its first token.
    page_size: tokens per page.
    capture: captures a function without arguments, and returns a function that replays it; None:
        CUDA graphs on `device`. If it fails, the reason is logged once, and all later steps run
        without graphs.
    """

    def __init__(
        self,
        step: DecodeStep,
        device: torch.device,
        *,
        max_batch_size: int,
        max_pages: int,
        scratch_page: int,
        page_size: int,
        capture: Capture | None = None,
    ) -> None:
        self.step = step
        self.failure: str | None = None
        self._sizes = batch_sizes(max_batch_size)
        self._max_pages = max_pages
        # Narrower tables share one width: kernels skip the pages that a sequence does not have.
        self._min_pages = max(1, min(max_pages, 1024 // page_size))
        self._capture = CudaCapture(device) if capture is None else capture
        self._replays: dict[tuple[int, int], Replay] = {}
        self._used = 0
        # Padding reads and writes the first token of the scratch page.
        self._padding = (0, 0, scratch_page, 1, scratch_page * page_size)
        size = max_batch_size
        with torch.inference_mode(False):
            self._inputs = tuple(
                torch.full(shape, fill, dtype=dtype, device=device)
                for fill, dtype, shape in zip(
                    self._padding,
                    (torch.int64, torch.int64, torch.int32, torch.int32, torch.int64),
                    ((size,), (size,), (size, max_pages), (size,), (size,)),
                    strict=True,
                )
            )

    @property
    def captured(self) -> list[tuple[int, int]]:
        """Batch size and table width of each captured graph."""
        return sorted(self._replays)

    def __call__(
        self,
        tokens: torch.Tensor,
        positions: torch.Tensor,
        block_table: torch.Tensor,
        seq_lens: torch.Tensor,
        slots: torch.Tensor,
    ) -> torch.Tensor:
        """Runs the step. The logits are valid until the next call, which may overwrite them.

        Raises ValueError for a batch that is larger than the graphs.
        """
        batch_size, pages = block_table.shape
        inputs = (tokens, positions, block_table, seq_lens, slots)
        if self.failure is not None:
            return self.step(*inputs)
        if batch_size > self._sizes[-1] or pages > self._max_pages:
            raise ValueError(
                f"a batch has {batch_size} rows of {pages} pages, and the graphs are for "
                f"{self._sizes[-1]} of {self._max_pages}"
            )
        size = next(size for size in self._sizes if size >= batch_size)
        width = padded_width(pages, self._min_pages, self._max_pages)
        self._fill(inputs)
        replay = self._replays.get((size, width))
        if replay is None:
            replay = self._capture_graph(size, width)
            if replay is None:
                return self.step(*inputs)
            self._replays[size, width] = replay
        return replay()[:batch_size]

    def capture_all(self, pages: int) -> None:
        """Captures the graphs of every batch size for tables of `pages` pages, as a warm-up."""
        for size in self._sizes:
            shapes = ((size,), (size,), (size, pages), (size,), (size,))
            self(
                *(
                    torch.full(shape, padding, dtype=buffer.dtype, device=buffer.device)
                    for shape, padding, buffer in zip(
                        shapes, self._padding, self._inputs, strict=True
                    )
                )
            )

    def _fill(self, inputs: tuple[torch.Tensor, ...]) -> None:
        """Copies the batch into the buffers, and pads the rows that only the last batch used."""
        rows = len(inputs[0])
        for buffer, value, padding in zip(self._inputs, inputs, self._padding, strict=True):
            if rows < self._used:
                buffer[rows : self._used].fill_(padding)
            target = buffer[:rows] if value.dim() == 1 else buffer[:rows, : value.shape[1]]
            target.copy_(value, non_blocking=value.device == buffer.device)
        self._used = rows

    def _capture_graph(self, size: int, width: int) -> Replay | None:
        """Captures the step over the first `size` rows of the buffers; returns None if it fails."""
        inputs = [
            buffer[:size] if buffer.dim() == 1 else buffer[:size, :width] for buffer in self._inputs
        ]
        try:
            return self._capture(lambda: self.step(*inputs))
        except RuntimeError as error:
            self.failure = f"{type(error).__name__}: {error}"
            self._replays.clear()
            log.warning("decode steps run without CUDA graphs: %s", self.failure)
            return None


class CudaCapture:
    """Captures functions as CUDA graphs that share one memory pool.

    Sharing is safe although the graphs replay in any order: none reads memory that another wrote,
    and the inputs are outside the pool.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.pool = torch.cuda.graph_pool_handle()

    def __call__(self, run: Replay) -> Replay:
        """Runs the function twice as a warm-up, which compiles kernels and allocates workspaces of
        libraries; then captures it.
        """
        with torch.cuda.device(self.device):
            return self._record(run)

    def _record(self, run: Replay) -> Replay:
        stream = torch.cuda.Stream(self.device)  # type: ignore[no-untyped-call]
        stream.wait_stream(torch.cuda.current_stream(self.device))
        with torch.cuda.stream(stream):
            for _ in range(2):
                run()
        torch.cuda.current_stream(self.device).wait_stream(stream)
        torch.cuda.synchronize(self.device)
        graph = torch.cuda.CUDAGraph()
        # "thread_local": another thread may allocate or copy at the same time.
        with torch.cuda.graph(graph, pool=self.pool, capture_error_mode="thread_local"):
            out = run()

        def replay() -> torch.Tensor:
            graph.replay()
            return out

        return replay

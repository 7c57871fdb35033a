"""Captures decode steps as CUDA graphs, and replays them.

A step launches hundreds of small kernels; a graph launches them at once. Batches are padded to a
few sizes, with one graph each, captured when first needed. Any step function can be captured that
does not synchronize with the device and keeps no state except in the KV slots that it writes.
"""

import logging
from collections.abc import Callable
from typing import NamedTuple

import torch

log = logging.getLogger(__name__)


class DecodeInputs(NamedTuple):
    """The inputs of a decode step over pages.

    tokens, positions: int64 [B], the last token of each sequence, and its position.
    block_table: int32 [B, pages], the pages of each sequence in order.
    seq_lens: int32 [B], tokens of each sequence, the last one included.
    slots: int64 [B], where keys and values of the last token go: page * page_size + offset.
    """

    tokens: torch.Tensor
    positions: torch.Tensor
    block_table: torch.Tensor
    seq_lens: torch.Tensor
    slots: torch.Tensor


# Returns logits [B, V]. Must be idempotent: capturing a step runs it several times.
DecodeStep = Callable[[DecodeInputs], torch.Tensor]
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
        self._device = device
        self._sizes = batch_sizes(max_batch_size)
        self._max_pages = max_pages
        # Narrower tables share one width: kernels skip the pages that a sequence does not have.
        self._min_pages = max(1, min(max_pages, 1024 // page_size))
        self._capture = CudaCapture(device) if capture is None else capture
        self._replays: dict[tuple[int, int], Replay] = {}
        self._used = 0
        # Padding reads and writes the first token of the scratch page.
        self._padding = (0, 0, scratch_page, 1, scratch_page * page_size)
        with torch.inference_mode(False):
            self._inputs = self._padded_inputs(max_batch_size, max_pages)

    @property
    def captured(self) -> list[tuple[int, int]]:
        """Batch size and table width of each captured graph."""
        return sorted(self._replays)

    def __call__(self, inputs: DecodeInputs) -> torch.Tensor:
        """Runs the step. The logits are valid until the next call, which may overwrite them.

        Raises ValueError for a batch that is larger than the graphs.
        """
        if self.failure is not None:
            return self.step(inputs)
        batch_size, pages = inputs.block_table.shape
        if batch_size > self._sizes[-1] or pages > self._max_pages:
            raise ValueError(
                f"a batch has {batch_size} rows of {pages} pages, and the graphs are for "
                f"{self._sizes[-1]} of {self._max_pages}"
            )
        size = next(size for size in self._sizes if size >= batch_size)
        width = padded_width(pages, self._min_pages, self._max_pages)
        self._fill(inputs)
        if (size, width) not in self._replays:
            padded = self._buffers(size, width)
            try:
                self._replays[size, width] = self._capture(lambda: self.step(padded))
            except RuntimeError as error:
                self.failure = f"{type(error).__name__}: {error}"
                self._replays.clear()
                log.warning("decode steps run without CUDA graphs: %s", self.failure)
                return self.step(inputs)
        return self._replays[size, width]()[:batch_size]

    def capture_all(self, pages: int) -> None:
        """Captures the graphs of every batch size for tables of `pages` pages, as a warm-up."""
        for size in self._sizes:
            self(self._padded_inputs(size, pages))

    def _padded_inputs(self, size: int, pages: int) -> DecodeInputs:
        """Returns new inputs of padding alone."""
        dtypes = (torch.int64, torch.int64, torch.int32, torch.int32, torch.int64)
        shapes = ((size,), (size,), (size, pages), (size,), (size,))
        return DecodeInputs(
            *(
                torch.full(shape, padding, dtype=dtype, device=self._device)
                for shape, padding, dtype in zip(shapes, self._padding, dtypes, strict=True)
            )
        )

    def _buffers(self, rows: int, pages: int) -> DecodeInputs:
        """Returns the first rows of the buffers, with a table of `pages` pages."""
        return DecodeInputs(*(b[:rows] if b.dim() == 1 else b[:rows, :pages] for b in self._inputs))

    def _fill(self, inputs: DecodeInputs) -> None:
        """Copies the batch into the buffers, and pads the rows that only the last batch used."""
        rows, pages = inputs.block_table.shape
        if rows < self._used:
            for buffer, padding in zip(self._inputs, self._padding, strict=True):
                buffer[rows : self._used].fill_(padding)
        for target, value in zip(self._buffers(rows, pages), inputs, strict=True):
            target.copy_(value, non_blocking=value.device == target.device)
        self._used = rows


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

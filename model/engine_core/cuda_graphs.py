"""Decode steps as captured CUDA graphs: turns a step function into one that replays.

A step launches hundreds of small kernels; a graph launches them at once. Batches are padded to a
few sizes, one graph each, captured when first needed. It does not know the network: any function
of the five tensors will do that neither waits for the device nor remembers anything but what it
writes into the cache's slots.
"""

import logging
from collections.abc import Callable
from typing import Protocol

import torch

log = logging.getLogger(__name__)


class DecodeStep(Protocol):
    """tokens, positions and slots int64 [B], block_table int32 [B, pages], filled int32 [B] ->
    logits [B, V]. Doing it twice must be as doing it once.
    """

    def __call__(
        self,
        tokens: torch.Tensor,
        positions: torch.Tensor,
        block_table: torch.Tensor,
        filled: torch.Tensor,
        slots: torch.Tensor,
    ) -> torch.Tensor: ...


Replay = Callable[[], torch.Tensor]
Capture = Callable[[Replay], Replay]


def batch_sizes(most: int) -> tuple[int, ...]:
    """The sizes that batches of up to `most` rows are padded to: 1, 2, 4, 8, 16, 24, 32, 48, 64, 96
    and so on, and `most` itself.
    """
    sizes, size = [1, 2, 4, 8], 16
    while size < most:
        sizes += [size, size * 3 // 2]
        size *= 2
    return (*(s for s in sizes if s < most), most)


def at_least(wanted: int, least: int, most: int) -> int:
    """The first of least, 2 * least, 4 * least ... that is `wanted` or more, at most `most`."""
    while least < wanted:
        least *= 2
    return min(least, most)


class DecodeGraphs:
    """A step function that replays graphs of another one, with the same results.

    max_rows, max_pages: the largest batch and the widest block table that will come.
    scratch_page: a page that no row owns; padding rows write its first token and read it.
    page_size: tokens per page.
    capture: turns a function without arguments into one that repeats its work; None: CUDA graphs
        on `device`. Where it fails, the reason is logged once, and steps run as they are from then
        on.
    """

    def __init__(
        self,
        step: DecodeStep,
        device: torch.device,
        *,
        max_rows: int,
        max_pages: int,
        scratch_page: int,
        page_size: int,
        capture: Capture | None = None,
    ) -> None:
        self.step = step
        self.failure: str | None = None
        self._sizes = batch_sizes(max_rows)
        self._max_pages = max_pages
        # Tables narrower than this are not told apart: a kernel skips what a row does not have.
        self._least_pages = max(1, min(max_pages, 1024 // page_size))
        self._capture = CudaCapture(device) if capture is None else capture
        self._replays: dict[tuple[int, int], Replay] = {}
        self._used = 0
        # What padding rows do: read and write the first token of the scratch page.
        self._idle = (0, 0, scratch_page, 1, scratch_page * page_size)
        with torch.inference_mode(False):
            self._inputs = tuple(
                torch.full(shape, fill, dtype=dtype, device=device)
                for fill, dtype, shape in zip(
                    self._idle,
                    (torch.int64, torch.int64, torch.int32, torch.int32, torch.int64),
                    ((max_rows,), (max_rows,), (max_rows, max_pages), (max_rows,), (max_rows,)),
                    strict=True,
                )
            )

    @property
    def captured(self) -> list[tuple[int, int]]:
        """Rows and pages of the graphs there are."""
        return sorted(self._replays)

    def __call__(
        self,
        tokens: torch.Tensor,
        positions: torch.Tensor,
        block_table: torch.Tensor,
        filled: torch.Tensor,
        slots: torch.Tensor,
    ) -> torch.Tensor:
        """As the step itself. The logits hold until the next call: another graph may write there.

        Raises ValueError for a batch larger than announced.
        """
        rows, pages = block_table.shape
        given = (tokens, positions, block_table, filled, slots)
        if self.failure is not None:
            return self.step(*given)
        if rows > self._sizes[-1] or pages > self._max_pages:
            raise ValueError(
                f"a batch has {rows} rows of {pages} pages, and the graphs are for "
                f"{self._sizes[-1]} of {self._max_pages}"
            )
        size = next(size for size in self._sizes if size >= rows)
        width = at_least(pages, self._least_pages, self._max_pages)
        self._fill(given)
        replay = self._replays.get((size, width))
        if replay is None:
            replay = self._captured(size, width)
            if replay is None:
                return self.step(*given)
            self._replays[size, width] = replay
        return replay()[:rows]

    def capture_all(self, pages: int) -> None:
        """Capture the graphs of every size for tables of `pages` pages now, with padding rows
        alone; what is captured already stays.
        """
        for size in self._sizes:
            shapes = ((size,), (size,), (size, pages), (size,), (size,))
            self(
                *(
                    torch.full(shape, idle, dtype=buffer.dtype, device=buffer.device)
                    for shape, idle, buffer in zip(shapes, self._idle, self._inputs, strict=True)
                )
            )

    def _fill(self, given: tuple[torch.Tensor, ...]) -> None:
        """Put the batch into the buffers, and padding where the last batch had more rows."""
        rows = len(given[0])
        for buffer, value, idle in zip(self._inputs, given, self._idle, strict=True):
            if rows < self._used:
                buffer[rows : self._used].fill_(idle)
            target = buffer[:rows] if value.dim() == 1 else buffer[:rows, : value.shape[1]]
            target.copy_(value, non_blocking=value.device == buffer.device)
        self._used = rows

    def _captured(self, size: int, width: int) -> Replay | None:
        """A graph of the step over the first `size` rows of the buffers; None where it failed."""
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
    """Captures functions as CUDA graphs that share one pool of memory.

    Sharing is safe although the graphs replay in any order: none reads what another left behind,
    and the inputs lie outside.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.pool = torch.cuda.graph_pool_handle()

    def __call__(self, run: Replay) -> Replay:
        """Do the work twice as warm-up, so that kernels are compiled and libraries have their
        workspaces; then record it.
        """
        with torch.cuda.device(self.device):
            return self._recorded(run)

    def _recorded(self, run: Replay) -> Replay:
        stream = torch.cuda.Stream(self.device)  # type: ignore[no-untyped-call]
        stream.wait_stream(torch.cuda.current_stream(self.device))
        with torch.cuda.stream(stream):
            for _ in range(2):
                run()
        torch.cuda.current_stream(self.device).wait_stream(stream)
        torch.cuda.synchronize(self.device)
        graph = torch.cuda.CUDAGraph()
        # "thread_local": another thread may be allocating or copying meanwhile.
        with torch.cuda.graph(graph, pool=self.pool, capture_error_mode="thread_local"):
            out = run()

        def replay() -> torch.Tensor:
            graph.replay()
            return out

        return replay

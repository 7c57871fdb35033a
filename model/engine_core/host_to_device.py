"""Copies of tensors to a GPU beside its work: turns host tensors into device tensors that arrive.

What is sent at once goes through one page-locked buffer and one copy, on a stream of its own; two
buffers take turns, so that one fills while the other is on its way. On any other device nothing is
copied ahead. It does not know what the tensors mean.
"""

from collections.abc import Sequence
from dataclasses import replace

import torch

from mediamill.model.inputs import VisualInput

# Tensors begin at multiples of this many bytes, as vectorised kernels want them.
ALIGNMENT = 256


class Arriving:
    """Tensors on their way to the device."""

    def __init__(self, tensors: list[torch.Tensor], arrived: torch.cuda.Event | None) -> None:
        self._tensors = tensors
        self._arrived = arrived

    def tensors(self) -> list[torch.Tensor]:
        """The tensors, in the order in which they were sent.

        Work queued after this call waits for them; the caller does not.
        """
        if self._arrived is not None:
            here = torch.cuda.current_stream(self._tensors[0].device)
            here.wait_event(self._arrived)
            for tensor in self._tensors:
                # The memory came from the other stream; it must not be given away while in use.
                tensor.record_stream(here)
        return self._tensors


class Sender:
    """Sends tensors to one device. Not thread-safe: one sender per thread."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._stream: torch.cuda.Stream | None = None
        if device.type == "cuda":
            self._stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        self._buffers = [torch.empty(0, dtype=torch.uint8) for _ in range(2)]
        self._sent: list[torch.cuda.Event | None] = [None, None]
        self._turn = 0

    def send(self, tensors: Sequence[torch.Tensor]) -> Arriving:
        """Begin to copy host tensors of any dtypes and shapes; they may change afterwards."""
        if self._stream is None:
            return Arriving([tensor.to(self.device) for tensor in tensors], None)
        places, size = layout([tensor.nbytes for tensor in tensors])
        if size == 0:
            return Arriving([tensor.to(self.device) for tensor in tensors], None)
        turn, self._turn = self._turn, 1 - self._turn
        last = self._sent[turn]
        if last is not None:
            last.synchronize()
        if len(self._buffers[turn]) < size:
            self._buffers[turn] = torch.empty(size, dtype=torch.uint8, pin_memory=True)
        staged = self._buffers[turn][:size]
        pack(tensors, places, staged)
        with torch.cuda.stream(self._stream):
            there = staged.to(self.device, non_blocking=True)
            arrived = torch.cuda.Event()  # type: ignore[no-untyped-call]
            arrived.record(self._stream)
        self._sent[turn] = arrived
        return Arriving(unpack(there, places, tensors), arrived)


def send_visuals(sender: Sender, visuals: Sequence[VisualInput]) -> tuple[VisualInput, ...]:
    """The same media with their patches on the device, for work queued after this call."""
    arriving = sender.send([visual.patches for visual in visuals]).tensors()
    return tuple(
        replace(visual, patches=patches) for visual, patches in zip(visuals, arriving, strict=True)
    )


def layout(sizes: Sequence[int]) -> tuple[list[int], int]:
    """Where tensors of `sizes` bytes begin in one buffer, and the bytes it needs."""
    places, end = [], 0
    for size in sizes:
        places.append(end)
        end += -(-size // ALIGNMENT) * ALIGNMENT
    return places, end


def pack(tensors: Sequence[torch.Tensor], places: Sequence[int], into: torch.Tensor) -> None:
    """Copy the bytes of the tensors to their places in uint8 [bytes]."""
    for tensor, place in zip(tensors, places, strict=True):
        if tensor.numel():
            room = into[place : place + tensor.nbytes]
            room.view(tensor.dtype).view(tensor.shape).copy_(tensor)


def unpack(
    packed: torch.Tensor, places: Sequence[int], like: Sequence[torch.Tensor]
) -> list[torch.Tensor]:
    """The tensors again, as views into uint8 [bytes]."""
    return [
        packed[place : place + tensor.nbytes].view(tensor.dtype).view(tensor.shape)
        for tensor, place in zip(like, places, strict=True)
    ]

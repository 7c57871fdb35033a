"""Host-to-device copies that overlap with the work of a GPU.

The tensors of one call go through one page-locked buffer and one copy, on a separate stream. There
are two buffers, so that one fills while the other is being copied. For other devices nothing is
copied ahead.
"""

from collections.abc import Sequence
from dataclasses import replace

import torch

from mediamill.model.inputs import VisualInput

# Tensors begin at multiples of this many bytes, for vectorized kernels.
ALIGNMENT = 256


class HostToDeviceCopier:
    """Copies tensors to one device. Not thread-safe: one copier per thread."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._stream: torch.cuda.Stream | None = None
        if device.type == "cuda":
            self._stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        self._buffers = [torch.empty(0, dtype=torch.uint8) for _ in range(2)]
        self._done: list[torch.cuda.Event | None] = [None, None]
        self._next = 0

    def copy(self, tensors: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        """Begins to copy host tensors of any dtypes and shapes, and returns them on the device.

        Work that is queued on the current stream after this call waits for the copy; the caller
        does not, and may change the host tensors.
        """
        offsets, size = layout([tensor.nbytes for tensor in tensors])
        if self._stream is None or size == 0:
            return [tensor.to(self.device) for tensor in tensors]
        index, self._next = self._next, 1 - self._next
        previous = self._done[index]
        if previous is not None:
            previous.synchronize()
        if len(self._buffers[index]) < size:
            self._buffers[index] = torch.empty(size, dtype=torch.uint8, pin_memory=True)
        packed = self._buffers[index][:size]
        pack(tensors, offsets, packed)
        with torch.cuda.stream(self._stream):
            on_device = packed.to(self.device, non_blocking=True)
            done = torch.cuda.Event()  # type: ignore[no-untyped-call]
            done.record(self._stream)
        self._done[index] = done
        stream = torch.cuda.current_stream(self.device)
        stream.wait_event(done)
        # The memory belongs to the other stream, which must not reuse it too early.
        on_device.record_stream(stream)
        return unpack(on_device, offsets, tensors)

    def copy_visuals(self, visuals: Sequence[VisualInput]) -> tuple[VisualInput, ...]:
        """Returns the media with their patches on the device, for work queued after this call."""
        tensors = self.copy([visual.patches for visual in visuals])
        pairs = zip(visuals, tensors, strict=True)
        return tuple(replace(visual, patches=patches) for visual, patches in pairs)


def layout(sizes: Sequence[int]) -> tuple[list[int], int]:
    """Returns where tensors of `sizes` bytes begin in one buffer, and the size of the buffer."""
    offsets, end = [], 0
    for size in sizes:
        offsets.append(end)
        end += -(-size // ALIGNMENT) * ALIGNMENT
    return offsets, end


def pack(tensors: Sequence[torch.Tensor], offsets: Sequence[int], buffer: torch.Tensor) -> None:
    """Copies the bytes of the tensors to their offsets in a buffer, uint8 [bytes]."""
    for tensor, offset in zip(tensors, offsets, strict=True):
        if tensor.numel():
            target = buffer[offset : offset + tensor.nbytes]
            target.view(tensor.dtype).view(tensor.shape).copy_(tensor)


def unpack(
    buffer: torch.Tensor, offsets: Sequence[int], like: Sequence[torch.Tensor]
) -> list[torch.Tensor]:
    """Returns the packed tensors as views into the buffer, uint8 [bytes]."""
    return [
        buffer[offset : offset + tensor.nbytes].view(tensor.dtype).view(tensor.shape)
        for tensor, offset in zip(like, offsets, strict=True)
    ]

"""Measures the cost of decoding in a sandboxed process: `python -m benchmarks.decoding`.

Compares the CPU seconds of this process and the decode worker with those of the same work in this
process alone. The two take turns, so other load affects both. Both end with the patches of all rows
in one Arrow column.
"""

import statistics
import time
from pathlib import Path

import torch

from mediamill.model.processor import Processor
from mediamill.model.tiny import CAPTION_PROMPT, CHECKPOINT
from mediamill.pipeline.decoding.arrow_column import binary_column
from mediamill.pipeline.decoding.buffer_pool import BufferPool
from mediamill.pipeline.decoding.decoder_pool import DecodeRequest, DecoderPool, MediumRequest
from mediamill.schemas.job import Limits
from tests.media import jpeg, numbered_frames, video

ROUNDS = 25
PIXELS = 28 * 28 * 1280
CHAT = {"prompt": CAPTION_PROMPT, "system": None}


def workers_cpu_s(fork_server: int) -> dict[str, float]:
    """Returns the CPU seconds of each live process that the fork server has forked, by pid."""
    workers = Path(f"/proc/{fork_server}/task/{fork_server}/children").read_text().split()
    return {
        one: int(Path(f"/proc/{one}/schedstat").read_text().split()[0]) / 1e9 for one in workers
    }


def main() -> None:
    torch.set_num_threads(1)
    processor = Processor.load(CHECKPOINT, image_max_pixels=PIXELS)
    arguments = {"checkpoint": str(CHECKPOINT), "image_max_pixels": PIXELS}
    decoder = DecoderPool(arguments, Limits(), workers=1)
    cases = {
        "JPEG 64 x 64": (jpeg(64, 64), 64),
        "JPEG 128 x 128": (jpeg(128, 128), 64),
        "JPEG 256 x 256": (jpeg(256, 256), 32),
        "JPEG 480 x 640": (jpeg(480, 640), 16),
        "JPEG 1000 x 1000": (jpeg(1000, 1000), 8),
        "JPEG 3000 x 4000": (jpeg(3000, 4000), 2),
        "clip of 48 frames, 240 x 320": (video(numbered_frames(48, 240, 320)), 4),
    }
    # Both use a buffer pool, since new memory would cost either of them as much.
    buffers = BufferPool()

    def alone(data: bytes, count: int) -> float:
        start = time.process_time()
        patches = []
        for _ in range(count):
            visual, _ = processor.prepare_media(bytes(memoryview(data)))
            processor.build_prompt(processor.user_message(CAPTION_PROMPT, [visual.kind]), [visual])
            patches.append(memoryview(visual.patches.numpy().data).cast("B"))
        binary_column(patches, buffers)
        return (time.process_time() - start) / count

    def apart(data: bytes, count: int) -> tuple[float, float] | None:
        """The CPU seconds of this process and of the worker; None if that was replaced."""
        there, start = workers_cpu_s(decoder.fork_server_pid), time.process_time()
        questions = [DecodeRequest([MediumRequest(memoryview(data))], [CHAT])] * count
        binary_column([answer.patches for answer in decoder.prepare(questions)], buffers)
        here, after = time.process_time() - start, workers_cpu_s(decoder.fork_server_pid)
        if there.keys() != after.keys():
            return None
        return here / count, sum(after[one] - there[one] for one in there) / count

    print(f"{'ms of CPU for one':30} {'alone':>8} {'apart':>8} {'of it here':>11} {'more':>8}")
    for name, (data, count) in cases.items():
        for _ in range(3):
            alone(data, count), apart(data, count)
        drawn = [(alone(data, count), apart(data, count)) for _ in range(ROUNDS)]
        pairs = [(one, two) for one, two in drawn if two is not None]
        before = statistics.median(one for one, _ in pairs)
        here = statistics.median(one for _, (one, _) in pairs)
        both = statistics.median(sum(two) for _, two in pairs)
        more = statistics.median(sum(two) / one - 1 for one, two in pairs)
        print(
            f"{name:30} {before * 1e3:8.2f} {both * 1e3:8.2f} {here * 1e3:11.2f} {more:+8.1%}",
            flush=True,
        )
    decoder.close()


if __name__ == "__main__":
    main()

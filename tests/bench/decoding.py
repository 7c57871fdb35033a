"""What it costs to decode in a process of its own: `python -m tests.bench.decoding`.

CPU seconds of this process and of the one that decodes, beside those of the same work in this
process alone; the two take turns, so that what else the machine does meets both.
"""

import statistics
import time
from pathlib import Path

import pyarrow as pa
import torch

from model.processor import Processor
from model.tiny import CAPTION_PROMPT, CHECKPOINT
from pipeline.decoding.decoder import Decoder, DecodeRules, Medium, Question
from tests.media import jpeg, numbered_frames, video

ROUNDS = 15
PIXELS = 28 * 28 * 1280
CHAT = {"prompt": CAPTION_PROMPT, "system": None}


def workers_cpu_s(nursery: int) -> float:
    """Of all processes that a nursery has forked and that still run."""
    ticks = 0
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            try:
                fields = (folder / "stat").read_text().rpartition(")")[2].split()
            except OSError:
                continue
            if int(fields[1]) == nursery:
                schedule = (folder / "schedstat").read_text().split()
                ticks += int(schedule[0])
    return ticks / 1e9


def table(patches: list) -> pa.Array:
    return pa.array(patches, pa.large_binary())


def main() -> None:
    torch.set_num_threads(1)
    processor = Processor.load(CHECKPOINT, image_max_pixels=PIXELS)
    arguments = {"checkpoint": str(CHECKPOINT), "image_max_pixels": PIXELS}
    decoder = Decoder(arguments, DecodeRules(slots=1))
    cases = {
        "JPEG 56 x 84": (jpeg(56, 84), 200),
        "JPEG 480 x 640": (jpeg(480, 640), 20),
        "JPEG 1000 x 1000": (jpeg(1000, 1000), 10),
        "JPEG 3000 x 4000": (jpeg(3000, 4000), 2),
        "clip of 48 frames, 240 x 320": (video(numbered_frames(48, 240, 320)), 5),
    }

    def alone(data: bytes, count: int) -> float:
        start = time.process_time()
        patches = []
        for _ in range(count):
            visual, _ = processor.prepare_media(bytes(memoryview(data)))
            processor.build_prompt(processor.user_message(CAPTION_PROMPT, [visual.kind]), [visual])
            patches.append(memoryview(visual.patches.numpy().data).cast("B"))
        table(patches)
        return (time.process_time() - start) / count

    def apart(data: bytes, count: int) -> tuple[float, float]:
        start, there = time.process_time(), workers_cpu_s(decoder.nursery)
        questions = [Question([Medium(memoryview(data))], CHAT)] * count
        table([answer.patches for answer in decoder.prepare(questions)])
        here = (time.process_time() - start) / count
        return here, (workers_cpu_s(decoder.nursery) - there) / count

    print(f"{'ms of CPU for one':30} {'alone':>8} {'apart':>8} {'of it here':>11} {'more':>8}")
    for name, (data, count) in cases.items():
        alone(data, 1), apart(data, 1)
        pairs = [(alone(data, count), apart(data, count)) for _ in range(ROUNDS)]
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

"""Measures the cost of windows of a long video: `python -m benchmarks.windows [hours]`.

Draws a film of 640 x 360 at 25 frames a second, as MP4 and as MKV. For each, a fresh process
prepares windows of 10 s at its beginning, middle and end, and prints seconds and the peak growth of
its memory. The first window reads the whole file, for its hash and frame times; the others seek by
the file's index.
"""

import io
import multiprocessing
import sys
import tempfile
import time
from pathlib import Path

import av
import numpy as np
import torch

from mediamill.model.media.duration import duration_s
from mediamill.model.processor import Processor
from mediamill.model.tiny import CHECKPOINT
from tests import media

RATE, PART_S, WINDOW_S = 25, 60, 10
HEIGHT, WIDTH = 360, 640


def draw(path: Path, seconds: int) -> None:
    """Returns the packets of one drawn minute, repeated."""
    ground = media.draw(HEIGHT + 80, WIDTH + 160, seed=1)
    frames = []
    for index in range(PART_S * RATE):
        x, y = int(80 + 70 * np.sin(index / 40)), int(40 + 30 * np.cos(index / 55))
        frames.append(ground[y : y + HEIGHT, x : x + WIDTH])
    part = media.video(frames, rate=RATE, options={"g": "250", "preset": "veryfast", "crf": "23"})
    with av.open(path, "w") as container:
        copy, offset = None, 0
        for _ in range(seconds // PART_S):
            with av.open(io.BytesIO(part)) as source:
                stream = source.streams.video[0]
                copy = copy or container.add_stream_from_template(stream)
                for packet in source.demux(stream):
                    if packet.size:
                        assert packet.pts is not None
                        assert packet.dts is not None
                        packet.pts, packet.dts = packet.pts + offset, packet.dts + offset
                        packet.stream = copy
                        container.mux(packet)
                offset += stream.duration or 0


def remux(source: Path, target: Path) -> None:
    """Writes the same packets into another container."""
    with av.open(source) as given, av.open(target, "w") as container:
        copy = container.add_stream_from_template(given.streams.video[0])
        for packet in given.demux(video=0):
            if packet.size:
                packet.stream = copy
                container.mux(packet)


def mib(key: str) -> float:
    """Returns a memory figure of this process, as the system reports it."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith(key))


def measure(path: Path, seconds: int) -> None:
    """Measures one file, in a process of its own."""
    torch.set_num_threads(1)
    processor = Processor.load(CHECKPOINT)
    processor.prepare_media(media.video(media.numbered_frames(30)))
    before = mib("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # resets the peak
    start = time.perf_counter()
    duration = duration_s(path)
    print(f"{path.suffix[1:]}: {duration:.2f} s long, found in {time.perf_counter() - start:.3f} s")
    for share in (0.0, 0.5, 0.999, 0.01, 0.51, 0.99):
        first = round((seconds - WINDOW_S) * share)
        start = time.perf_counter()
        processor.prepare_media(path, None, first, first + WINDOW_S)
        spent = time.perf_counter() - start
        grown = mib("VmHWM") - before
        print(
            f"  window from {first:6} s: {spent:6.2f} s, at most {grown:4.0f} MiB more", flush=True
        )


def main() -> None:
    seconds = round(float(sys.argv[1] if len(sys.argv) > 1 else "3") * 3600)
    with tempfile.TemporaryDirectory() as folder:
        film = Path(folder) / "film.mp4"
        draw(film, seconds)
        remux(film, film.with_suffix(".mkv"))
        for path in (film, film.with_suffix(".mkv")):
            child = multiprocessing.get_context("spawn").Process(
                target=measure, args=(path, seconds)
            )
            child.start()
            child.join()


if __name__ == "__main__":
    main()

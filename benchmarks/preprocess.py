"""Measures preprocessing: `python -m benchmarks.preprocess [--json FILE]`, a table and JSON.

Prints CPU-seconds of one thread, medians of rounds in which the methods take turns, each on fresh
bytes. Pictures: from bytes to uint8 patches, with receipt and sha256, against Pillow's decoding and
bicubic resize to the same size, and against the reference's processor. Videos: 60 resized frames of
a minute of H.264, against PyAV and, if it is installed, torchcodec.
"""

import argparse
import io
import json
import statistics
import tempfile
import time
from bisect import bisect_right
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import av
import numpy as np
import torch
from PIL import Image

from mediamill.model.media.frame_sampling import VideoRules
from mediamill.model.media.image_rules import ImageRules
from mediamill.model.media.limits import MediaLimits
from mediamill.model.media.patches import normalize, patchify_video
from mediamill.model.media.prepared import prepare_picture, prepare_video
from mediamill.model.media.resize import resize
from mediamill.model.media.video import decode_video
from tests import oracle

Way = Callable[[bytes], Any]

# The limits of the published checkpoints, and common lower ones.
CAPS = {"published": 16384 * 28 * 28, "1280 tokens": 1280 * 28 * 28}
SIZES = {"12 MP": (3000, 4000), "2 MP": (1200, 1600), "1 MP": (864, 1152)}
FORMS: dict[str, dict[str, Any]] = {
    "JPEG": {"quality": 90},
    "PNG": {"compress_level": 6},
    "WEBP": {"quality": 85, "method": 2},
}
SECONDS, RATE, HEIGHT, WIDTH = 60, 30, 720, 1280
FRAMES = VideoRules(fps=1.0)


def texture(height: int, width: int, seed: int) -> np.ndarray:
    """Returns uint8 [height, width, 3]: noise on all scales and grain, to compress like a photo."""
    rng = np.random.default_rng(seed)
    total = rng.normal(0, 3, (height, width, 3)).astype(np.float32)
    cell = 4
    while cell < 2 * max(height, width):
        shape = (height // cell + 2, width // cell + 2)
        for colour in range(3):
            noise = Image.fromarray(rng.normal(0, 1, shape).astype(np.float32))
            scaled = noise.resize((width, height), Image.Resampling.BICUBIC)
            total[..., colour] += np.asarray(scaled) * 2.0 * cell**0.5
        cell *= 2
    return np.clip(total + 128, 0, 255).astype(np.uint8)


def take_turns(ways: dict[str, Way], inputs: list[bytes]) -> dict[str, float]:
    """Returns the median CPU-seconds of each method, over inputs that are new to it."""
    for way in ways.values():
        way(bytes(inputs[0]))
    spent: dict[str, list[float]] = {name: [] for name in ways}
    for data in inputs:
        for name, way in ways.items():
            fresh = bytes(bytearray(data))
            started = time.process_time()
            way(fresh)
            spent[name].append(time.process_time() - started)
    return {name: statistics.median(times) for name, times in spent.items()}


# --- pictures


def ours(data: bytes, rules: ImageRules) -> torch.Tensor:
    return prepare_picture(data, rules, MediaLimits())[0].patches


def pillow(data: bytes, rules: ImageRules) -> np.ndarray:
    picture = Image.open(io.BytesIO(data)).convert("RGB")
    height, width = rules.size_of(picture.height, picture.width)
    return np.asarray(picture.resize((width, height), Image.Resampling.BICUBIC))


def reference(data: bytes, processor: oracle.Qwen2VLImageProcessor) -> torch.Tensor:
    picture = Image.open(io.BytesIO(data)).convert("RGB")
    return processor(picture, return_tensors="pt")["pixel_values"]


def pictures(repeats: int) -> list[dict[str, Any]]:
    """Returns one row for each form, size and limit."""
    rows = []
    for size, (height, width) in SIZES.items():
        drawn = [Image.fromarray(texture(height, width, seed)) for seed in range(min(repeats, 3))]
        for form, options in FORMS.items():
            if form != "JPEG" and size == "12 MP":
                continue
            files = [_encoded(one, form, options) for one in drawn]
            inputs = [files[index % len(files)] for index in range(repeats)]
            for cap, most in CAPS.items():
                rules = ImageRules(max_pixels=most)
                processor = oracle.Qwen2VLImageProcessor(min_pixels=3136, max_pixels=most)
                picture = Image.open(io.BytesIO(files[0])).convert("RGB")
                ways: dict[str, Way] = {
                    "ours": partial(ours, rules=rules),
                    "pillow": partial(pillow, rules=rules),
                    "reference": partial(reference, processor=processor),
                    "reference, decoded": lambda _, p=picture, r=processor: r(
                        p, return_tensors="pt"
                    ),
                }
                spent = take_turns(ways, inputs)
                equal = all(
                    torch.equal(normalize(ours(one, rules)), reference(one, processor))
                    for one in files
                )
                rows.append(
                    {"what": f"{form} {size}, {cap}", "bytes": len(files[0]), "equal": equal}
                    | {"ms": {name: round(1000 * value, 2) for name, value in spent.items()}}
                )
                _print_picture(rows[-1])
    return rows


def _encoded(picture: Image.Image, form: str, options: dict[str, Any]) -> bytes:
    file = io.BytesIO()
    picture.save(file, form, **options)
    return file.getvalue()


def _print_picture(row: dict[str, Any]) -> None:
    spent = row["ms"]
    print(
        f"{row['what']:<24}"
        + "".join(f"{1000 / spent[name]:>9.1f}" for name in spent)
        + f"{spent['pillow'] / spent['ours']:>9.2f}x"
        + f"{spent['reference'] / spent['ours']:>7.2f}x"
        + f"   {'equal' if row['equal'] else 'DIFFERENT'}",
        flush=True,
    )


# --- videos


def moving_file(folder: Path, gop: int) -> bytes:
    """Returns a minute of H.264, 720p at 30 frames a second: a texture that moves and changes."""
    ground = texture(HEIGHT + 400, WIDTH + 400, seed=gop)
    path = folder / f"gop{gop}.mp4"
    with av.open(path, "w") as container:
        options = {"g": str(gop), "keyint_min": str(gop), "sc_threshold": "0", "preset": "veryfast"}
        stream = container.add_stream("libx264", rate=RATE, options=options)
        stream.width, stream.height, stream.pix_fmt = WIDTH, HEIGHT, "yuv420p"
        stream.thread_count = 1
        for index in range(SECONDS * RATE):
            x = round(200 + 199 * np.sin(index / 90))
            y = round(200 + 199 * np.cos(index / 130))
            frame = np.ascontiguousarray(ground[y : y + HEIGHT, x : x + WIDTH])
            left = index * 7 % (WIDTH - 80)
            frame[300:380, left : left + 80] = (index % 256, 255 - index % 256, 128)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode(None))
    return path.read_bytes()


def plain_decode(data: bytes, indices: tuple[int, ...]) -> list[np.ndarray]:
    """Decodes every frame up to the last sampled one, and converts the sampled ones to RGB."""
    wanted, found = set(indices), []
    with av.open(io.BytesIO(data)) as container:
        stream = container.streams.video[0]
        stream.thread_count = 1
        for index, frame in enumerate(container.decode(stream)):
            if index in wanted:
                found.append(frame.to_ndarray(format="rgb24"))
                if len(found) == len(indices):
                    break
    return found


def seek_each(data: bytes, indices: tuple[int, ...]) -> list[np.ndarray]:
    """Seeks to each sampled frame."""
    found = []
    with av.open(io.BytesIO(data)) as container:
        stream = container.streams.video[0]
        stream.thread_count = 1
        for index in indices:
            stamp = round(index / RATE / stream.time_base)
            container.seek(stamp, stream=stream)
            frame = next(one for one in container.decode(stream) if one.pts >= stamp)
            found.append(frame.to_ndarray(format="rgb24"))
    return found


def seek_forward(data: bytes, indices: tuple[int, ...]) -> list[np.ndarray]:
    """Seeks only past a key frame: the best that PyAV's own seeking can do."""
    found = []
    with av.open(io.BytesIO(data)) as container:
        stream = container.streams.video[0]
        stream.thread_count = 1
        keys = sorted(one.pts for one in container.demux(stream) if one.is_keyframe)
        at, decoded = None, iter(())
        for index in indices:
            stamp = round(index / RATE / stream.time_base)
            key = keys[bisect_right(keys, stamp) - 1]
            if at is None or key > at:
                container.seek(stamp, stream=stream)
                decoded = container.decode(stream)
            frame = next(one for one in decoded if one.pts >= stamp)
            at = frame.pts
            found.append(frame.to_ndarray(format="rgb24"))
    return found


def with_torchcodec() -> Callable[[bytes, tuple[int, ...]], list[np.ndarray]] | None:
    """Returns None if torchcodec, or the FFmpeg that it needs, is not installed."""
    try:
        from torchcodec.decoders import VideoDecoder
    except (ImportError, OSError, RuntimeError):
        return None

    def decode(data: bytes, indices: tuple[int, ...]) -> list[np.ndarray]:
        decoder = VideoDecoder(data, num_ffmpeg_threads=1, dimension_order="NHWC")
        return list(decoder.get_frames_at(list(indices)).data.numpy())

    return decode


def videos(repeats: int) -> list[dict[str, Any]]:
    """Returns one row for each key frame interval."""
    rules, limits, rows = ImageRules(128 * 784, 768 * 784), MediaLimits(), []
    others = {"plain": plain_decode, "seek each": seek_each, "seek forward": seek_forward}
    if found := with_torchcodec():
        others["torchcodec"] = found
    for gop in (30, 250):
        with tempfile.TemporaryDirectory() as folder:
            data = moving_file(Path(folder), gop)
        video = decode_video(data, FRAMES, rules, limits)
        size = (video.frames.shape[2], video.frames.shape[3])

        def resized(frames: list[np.ndarray], size: tuple[int, int] = size) -> torch.Tensor:
            one_by_one = (torch.from_numpy(one).permute(2, 0, 1) for one in frames)
            return torch.stack([resize(one, *size) for one in one_by_one])

        ways: dict[str, Way] = {
            "ours": lambda one: decode_video(one, FRAMES, rules, limits),
            "ours to patches": lambda one: prepare_video(one, FRAMES, rules, limits),
        }
        for name, way in others.items():
            ways[name] = lambda one, way=way, at=video.indices: resized(way(one, at))
        spent = take_turns(ways, [data] * repeats)
        expected = resized(plain_decode(data, video.indices))
        equal = {
            name: torch.equal(resized(way(data, video.indices)), expected)
            for name, way in others.items()
        } | {"ours": torch.equal(video.frames, expected)}
        patches = prepare_video(data, FRAMES, rules, limits)[0].patches
        equal["ours to patches"] = torch.equal(patches, patchify_video(expected))
        best = min(spent[name] for name in others)
        row = {"what": f"H.264 GOP {gop}", "bytes": len(data), "equal": equal}
        rows.append(row | {"s": {name: round(value, 3) for name, value in spent.items()}})
        for name, value in spent.items():
            comparison = "equal" if equal[name] else "DIFFERENT"
            print(f"{row['what']:<16}{name:<17}{value:>8.3f} s{value / best:>8.2f}x   {comparison}")
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.preprocess", description=__doc__)
    parser.add_argument("--json", type=Path, help="write the figures there too")
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--only", choices=["pictures", "videos"])
    options = parser.parse_args()
    torch.set_num_threads(1)
    found: dict[str, Any] = {"torch": torch.__version__, "pillow": Image.__version__}
    if options.only != "videos":
        print(f"{'pictures a CPU-second':<24}     ours   pillow      ref  ref,dec   by Pl. by ref.")
        found["pictures"] = pictures(options.repeats)
    if options.only != "pictures":
        print("60 frames of 60 s, 720p30, resized; the ratio is to the best of the others")
        found["videos"] = videos(max(3, options.repeats // 2))
    if options.json:
        options.json.write_text(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()

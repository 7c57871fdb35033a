"""What the model saw, shown again: the same pixels as in the job, and told where it is not so."""

from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from mediamill.model.processor import Processor
from mediamill.model.tiny import CHECKPOINT
from mediamill.model.tiny.encode import clip_bytes
from mediamill.pipeline.inspect.prepared import seen_of_patches
from mediamill.pipeline.inspect.seen import SeenReader, ShownSize

LARGE = ShownSize(frames=100, height=4096, width=4096)


@pytest.fixture(scope="module")
def reader() -> Iterator[SeenReader]:
    reader = SeenReader(LARGE)
    yield reader
    reader.close()


@pytest.fixture(scope="module")
def processor() -> Processor:
    return Processor.load(CHECKPOINT)


def picture_file(path: Path, suffix: str) -> Path:
    """A picture on its side, with transparency where the format has it."""
    values = np.random.default_rng(1).integers(0, 256, (90, 133, 4), np.uint8)
    picture = Image.fromarray(values)
    exif = Image.Exif()
    exif[274] = 6
    if suffix == "jpg":
        picture = picture.convert("RGB")
    file = path / f"picture.{suffix}"
    picture.save(file, exif=exif)
    return file


def clip_file(path: Path, frames: int = 31) -> Path:
    noise = np.random.default_rng(2).integers(0, 256, (frames, 6, 9, 3), np.uint8)
    large = noise.repeat(16, axis=1).repeat(16, axis=2)
    file = path / "clip.mp4"
    file.write_bytes(clip_bytes(tuple(large)))
    return file


def prepared(processor: Processor, file: Path, **window: float) -> tuple[Any, dict[str, Any]]:
    visual, receipt = processor.prepare_media(file, **window)
    values = asdict(receipt)
    return visual, {**values, "type": values.pop("kind"), "uri": str(file)}


def all_files(path: Path) -> list[tuple[Path, dict[str, float]]]:
    clip = clip_file(path)
    pictures = [(picture_file(path, suffix), {}) for suffix in ("jpg", "png")]
    return [*pictures, (clip, {}), (clip, {"start_s": 0.5, "end_s": 1.6})]


def test_the_same_pixels_as_in_the_job(
    tmp_path: Path, reader: SeenReader, processor: Processor
) -> None:
    files = all_files(tmp_path)
    inputs = [prepared(processor, file, **window) for file, window in files]
    shown = list(reader.read({"receipt": [receipt]} for _, receipt in inputs))
    assert len(shown) == len(files)
    for (visual, receipt), (medium,) in zip(inputs, shown, strict=True):
        patches = memoryview(visual.patches.contiguous().numpy()).cast("B")
        [before] = seen_of_patches(patches, visual.grid_thw, [visual.kind], [receipt], size=LARGE)
        assert medium.note == ""
        assert medium.frame_count == before.frame_count == max(1, len(receipt["frame_indices"]))
        assert (medium.height, medium.width) == (before.height, before.width)
        assert [f.index for f in medium.frames] == [f.index for f in before.frames]
        assert [f.time_s for f in medium.frames] == [f.time_s for f in before.frames]
        for frame, expected in zip(medium.frames, before.frames, strict=True):
            assert np.array_equal(frame.pixels, expected.pixels)


def test_a_row_with_several_media_of_its_own_sizes(
    tmp_path: Path, reader: SeenReader, processor: Processor
) -> None:
    files = all_files(tmp_path)
    inputs = [prepared(processor, file, **window) for file, window in files]
    [media] = reader.read([{"receipt": [receipt for _, receipt in inputs]}])
    patches = b"".join(visual.patches.contiguous().numpy().tobytes() for visual, _ in inputs)
    before = seen_of_patches(
        memoryview(patches),
        [number for visual, _ in inputs for number in visual.grid_thw],
        [visual.kind for visual, _ in inputs],
        [receipt for _, receipt in inputs],
        size=LARGE,
    )
    assert [len(medium.frames) for medium in media] == [len(medium.frames) for medium in before]
    for medium, expected in zip(media, before, strict=True):
        for frame, same in zip(medium.frames, expected.frames, strict=True):
            assert np.array_equal(frame.pixels, same.pixels)


def test_what_is_not_as_the_model_saw_it_is_told(
    tmp_path: Path, reader: SeenReader, processor: Processor
) -> None:
    clip, picture = clip_file(tmp_path), picture_file(tmp_path, "png")
    _, of_clip = prepared(processor, clip)
    _, of_picture = prepared(processor, picture)
    gone = {**of_picture, "uri": str(tmp_path / "gone.png")}
    rows: list[dict[str, Any]] = [
        {"receipt": [{**of_clip, "seen_sha256": "0" * 64}]},
        {"receipt": [{**of_picture, "sha256": "0" * 64}]},
        {"receipt": [gone]},
        {"receipt": [{**of_picture, "uri": None}]},
        {"receipt": [{**of_clip, "frame_indices": [0, 10**9]}]},
        {"receipt": None},
    ]
    media = list(reader.read(rows))
    assert [len(row) for row in media] == [1, 1, 1, 1, 1, 0]
    other, changed, missing, unnamed, fewer = (row[0] for row in media[:5])
    assert len(other.frames) == len(of_clip["frame_indices"])
    assert "other pixels" in other.note
    assert (changed.frames, missing.frames, unnamed.frames, fewer.frames) == ((), (), (), ())
    assert "changed since" in changed.note
    assert "gone.png" in missing.note
    assert "names no file" in unnamed.note
    assert "frames" in fewer.note


def test_frames_are_few_and_small_for_a_card(tmp_path: Path, processor: Processor) -> None:
    clip = clip_file(tmp_path)
    _, receipt = prepared(processor, clip)
    small = SeenReader(ShownSize(frames=3, height=28, width=28))
    try:
        [[medium]] = small.read([{"receipt": [receipt]}])
    finally:
        small.close()
    indices = receipt["frame_indices"]
    assert [f.index for f in medium.frames] == [indices[0], indices[len(indices) // 2], indices[-1]]
    assert medium.frame_count == len(indices)
    assert max(medium.frames[0].pixels.shape[:2]) == 28


def test_media_are_not_fetched_when_the_time_is_over(tmp_path: Path, processor: Processor) -> None:
    _, receipt = prepared(processor, picture_file(tmp_path, "png"))
    late = SeenReader(seconds=-1)
    [[medium]] = late.read([{"receipt": [receipt]}])
    late.close()
    assert medium.frames == ()
    assert "time" in medium.note

"""A thousand broken files: each is read soundly, or refused by name and no other way."""

import collections
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.hostile.decoding import MIB, Decoding, Request
from tests.hostile.mutations import mutant
from tests.hostile.samples import Sample, samples

MEMORY = 512 * MIB  # far below what a header may claim, far above what such small files need
TYPED = {
    *("ok", "decode_corrupt", "decode_unsupported", "decode_too_large", "media_empty"),
    "context_too_long",
}
COUNT = 1000


@pytest.fixture(scope="module")
def drawn() -> list[Sample]:
    return samples()


@pytest.fixture(scope="module")
def child(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Decoding]:
    with Decoding(tmp_path_factory.mktemp("child"), MEMORY, timeout_s=60) as decoding:
        yield decoding


def request_of(seed: int, sample: Sample, data: bytes | Path) -> Request:
    """Every third video is asked for as one, every fifth by a window."""
    asked = (sample.video and seed % 3 == 0) or sample.name == "GIF as video"
    window = (0.2, 0.7) if sample.video and seed % 5 == 0 else (None, None)
    return Request(data, "video" if asked else None, *window, strict=seed % 2 == 0)


def test_sound_files_are_read(child: Decoding, drawn: list[Sample], tmp_path: Path) -> None:
    for sample in drawn:
        assert child.verdict(request_of(1, sample, sample.data)).outcome == "ok", sample.name
        path = tmp_path / "medium"
        path.write_bytes(sample.data)
        assert child.verdict(request_of(1, sample, path)).outcome == "ok", sample.name


def mistakes(child: Decoding, drawn: list[Sample], seeds: range) -> list[str]:
    """What came of broken files that may not."""
    tally: collections.Counter[str] = collections.Counter()
    wrong = []
    for seed in seeds:
        broken = mutant(seed, drawn)
        verdict = child.verdict(request_of(seed, broken.sample, broken.data))
        tally[verdict.outcome] += 1
        if verdict.outcome not in TYPED or verdict.peak > MEMORY:
            wrong.append(f"{broken}: {verdict}")
    # Mutations that nothing notices, or that nothing survives, would prove little.
    assert min(tally["ok"], tally["decode_corrupt"]) > len(seeds) / 10, tally
    return wrong


def test_broken_files_are_read_soundly_or_refused_by_name(
    child: Decoding, drawn: list[Sample]
) -> None:
    assert not mistakes(child, drawn, range(COUNT))


@pytest.mark.soak
@pytest.mark.timeout(3600)
def test_many_broken_files_are_read_soundly_or_refused_by_name(
    child: Decoding, drawn: list[Sample]
) -> None:
    assert not mistakes(child, drawn, range(COUNT, 100 * COUNT))


def test_the_child_tells_a_hang_a_crash_and_a_wrong_answer(tmp_path: Path) -> None:
    """What finds the mistakes has to find some."""
    video = samples()[-1]
    with Decoding(tmp_path, MEMORY, timeout_s=0.0) as child:
        assert child.verdict(Request(video.data)).outcome == "hang"
    with Decoding(tmp_path, MEMORY, timeout_s=60) as child:
        assert child.verdict(Request(video.data)).outcome == "ok"
        no_bytes: Any = "text"
        assert child.verdict(Request(no_bytes)).outcome == "wrong"
        child.process.kill()
        assert child.verdict(Request(video.data)).outcome == "crash"
        (tmp_path / "left").write_text("")
        assert child.verdict(Request(video.data)).outcome == "reached out"

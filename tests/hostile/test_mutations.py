"""A thousand mutated files: each is read correctly, or refused with a known error code."""

import collections
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.hostile.decoding import MIB, DecodeRequest, DecodeWorker
from tests.hostile.mutations import mutant
from tests.hostile.samples import Sample, samples

MEMORY = 512 * MIB  # far less than a header may declare, far more than such small files need
KNOWN_OUTCOMES = {
    *("ok", "decode_corrupt", "decode_unsupported", "decode_too_large", "media_empty"),
    "context_too_long",
}
COUNT = 1000


@pytest.fixture(scope="module")
def all_samples() -> list[Sample]:
    return samples()


@pytest.fixture(scope="module")
def worker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[DecodeWorker]:
    with DecodeWorker(tmp_path_factory.mktemp("worker"), MEMORY, timeout_s=60) as decode_worker:
        yield decode_worker


def request_of(seed: int, sample: Sample, data: bytes | Path) -> DecodeRequest:
    """Asks for every third video by its kind, and for every fifth with a window."""
    as_video = (sample.video and seed % 3 == 0) or sample.name == "GIF as video"
    window = (0.2, 0.7) if sample.video and seed % 5 == 0 else (None, None)
    return DecodeRequest(data, "video" if as_video else None, *window, strict=seed % 2 == 0)


def test_valid_files_are_read(
    worker: DecodeWorker, all_samples: list[Sample], tmp_path: Path
) -> None:
    for sample in all_samples:
        assert worker.verdict(request_of(1, sample, sample.data)).outcome == "ok", sample.name
        path = tmp_path / "medium"
        path.write_bytes(sample.data)
        assert worker.verdict(request_of(1, sample, path)).outcome == "ok", sample.name


def failures(worker: DecodeWorker, all_samples: list[Sample], seeds: range) -> list[str]:
    """Decodes the mutants of these seeds; returns those with an outcome that is not allowed."""
    outcomes: collections.Counter[str] = collections.Counter()
    failed = []
    for seed in seeds:
        mutated = mutant(seed, all_samples)
        verdict = worker.verdict(request_of(seed, mutated.sample, mutated.data))
        outcomes[verdict.outcome] += 1
        if verdict.outcome not in KNOWN_OUTCOMES or verdict.peak > MEMORY:
            failed.append(f"{mutated}: {verdict}")
    # Mutations that are never noticed, or always, would test little.
    assert min(outcomes["ok"], outcomes["decode_corrupt"]) > len(seeds) / 10, outcomes
    return failed


def test_mutated_files_are_read_correctly_or_refused_by_code(
    worker: DecodeWorker, all_samples: list[Sample]
) -> None:
    assert not failures(worker, all_samples, range(COUNT))


@pytest.mark.soak
@pytest.mark.timeout(3600)
def test_many_mutated_files_are_read_correctly_or_refused_by_code(
    worker: DecodeWorker, all_samples: list[Sample]
) -> None:
    assert not failures(worker, all_samples, range(COUNT, 100 * COUNT))


def test_the_worker_tells_a_hang_a_crash_and_a_wrong_answer(tmp_path: Path) -> None:
    """The check itself has to notice failures."""
    video = samples()[-1]
    with DecodeWorker(tmp_path, MEMORY, timeout_s=0.0) as worker:
        assert worker.verdict(DecodeRequest(video.data)).outcome == "hang"
    with DecodeWorker(tmp_path, MEMORY, timeout_s=60) as worker:
        assert worker.verdict(DecodeRequest(video.data)).outcome == "ok"
        no_bytes: Any = "text"
        assert worker.verdict(DecodeRequest(no_bytes)).outcome == "wrong"
        worker.process.kill()
        assert worker.verdict(DecodeRequest(video.data)).outcome == "crash"
        (tmp_path / "left").write_text("")
        assert worker.verdict(DecodeRequest(video.data)).outcome == "reached out"

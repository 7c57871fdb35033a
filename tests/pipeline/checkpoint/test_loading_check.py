"""A check of a checkpoint runs once on a machine, and again when anything that it reads changes."""

import pytest
import torch  # noqa: F401 - so that the checkpoint is checked in this process

from mediamill.model.tiny import CHECKPOINT
from mediamill.pipeline.checkpoint import loading_check
from mediamill.pipeline.checkpoint.loading_check import LoadingCheck, PromptTexts
from mediamill.pipeline.checkpoint.remembered_checks import is_remembered, remember
from mediamill.pipeline.storage import storage
from mediamill.schemas.errors import JobError
from tests.pipeline.world import make_job

NO_TEXTS = PromptTexts()


@pytest.fixture
def checks(tmp_path, monkeypatch):
    """Runs a check of the tiny checkpoint; returns whether it read the checkpoint."""
    read = []
    problem = loading_check._problem
    monkeypatch.setattr(
        loading_check, "_problem", lambda *arguments: read.append(1) or problem(*arguments)
    )

    def check(content="hash", texts=NO_TEXTS, cache="cache", **changes):
        job = make_job("m", "o", resources__cache=str(tmp_path / cache), **changes)
        read.clear()
        LoadingCheck(job, storage.resolve(str(CHECKPOINT)), content, texts).run()
        return bool(read)

    return check


def test_it_runs_once_and_again_when_something_changes(checks, monkeypatch):
    assert checks()
    assert not checks()
    assert checks(content="other")
    assert checks(image__max_pixels=100_000)
    assert checks(video__fps=1.5)
    assert checks(texts=PromptTexts(["What is it?"]))
    assert checks(texts=PromptTexts(["What is it?"], "Be short."))
    assert not checks(texts=PromptTexts(["What is it?"]))
    assert not checks(seed=5)
    with monkeypatch.context() as patch:
        patch.setattr(loading_check, "_LIBRARIES", ("torch", "a_library_that_is_not_there"))
        assert checks()
    assert not checks()


def test_a_failed_check_runs_again(checks):
    for _ in range(2):
        with pytest.raises(JobError, match=r"image\.max_pixels: found 1, below"):
            checks(image__max_pixels=1)


def test_a_canary_is_read_each_time(checks, tmp_path):
    (tmp_path / "a.jpg").write_bytes(b"no picture")
    for _ in range(2):
        with pytest.raises(JobError, match="canary"):
            checks(canary__uri=str(tmp_path / "a.jpg"), canary__text="x")


def test_without_a_folder_it_runs_each_time(checks, tmp_path):
    (tmp_path / "file").write_text("not a folder")
    assert checks(cache="file")
    assert checks(cache="file")


def test_the_last_ones_are_kept(tmp_path):
    cache = str(tmp_path / "cache")
    for number in range(300):
        remember(cache, f"{number:032}")
    assert is_remembered(cache, f"{299:032}")
    assert is_remembered(cache, f"{44:032}")
    assert not is_remembered(cache, f"{43:032}")
    assert [path.name for path in (tmp_path / "cache").iterdir()] == ["checked.txt"]
    (tmp_path / "cache" / "checked.txt").write_bytes(b"\xff\xfe")
    assert not is_remembered(cache, f"{299:032}")

"""Findings are counted by row, and stop a job by its alarms."""

import numpy as np
import pyarrow as pa
import pytest

from mediamill.pipeline.coordinator.coordinator import poll, shut_down, start_coordinator
from mediamill.pipeline.coordinator.failure_policy import GENERATE
from mediamill.pipeline.ledger import ledger
from mediamill.pipeline.ledger.state import Counts, KnownFile, Part
from mediamill.pipeline.quality.count import alarm, count_findings
from mediamill.pipeline.quality.repeated_texts import RepeatedTexts
from mediamill.pipeline.run import run
from mediamill.pipeline.storage import storage
from mediamill.schemas.errors import JobError
from mediamill.schemas.job import Limits, Resources
from mediamill.schemas.job_alarms import Alarms
from mediamill.schemas.task import Question
from tests.pipeline.world import draw_media, make_job, picture_rows, write_manifest

LOOP = "a red star and " * 20


def test_a_row_counts_once_for_each_kind() -> None:
    table = pa.table(
        {
            "text": [LOOP, "A dog", None, "A dog!"],
            "finish_reason": ["length", "length", "error", "stop"],
            "mean_logprob": [-0.1, -0.2, None, float("nan")],
            "other": [LOOP, "I cannot help with that.", None, ""],
            "other_finish_reason": ["length", "stop", None, "stop"],
            "other_mean_logprob": [-0.1, -0.2, None, -0.3],
        }
    )
    questions = (Question(), Question("other", "?"), Question("absent", "?"))
    counts, texts = count_findings(table, questions, None)
    assert counts == {"cut_off": 2, "loop": 1, "refusal": 1, "empty": 1, "not_finite": 1}
    assert (texts.most_common() or ("", 0))[1] == 2


def test_an_alarm_names_its_key_and_its_share() -> None:
    counts = Counts(ok=500, errors={"fetch_failed": 9}, findings={"loop": 130, "refusal": 3})
    assert alarm(Alarms(), counts, ("A wall", 500)) is None
    assert alarm(Alarms(loop=0.26, refusal=0.5), counts, None) is None
    assert alarm(Alarms(loop=0.05, rows=501), counts, None) is None
    sentence = alarm(Alarms(loop=0.05), counts, None)
    assert sentence is not None
    assert "finding loop: found 130 of 500 in this run, expected at most 5 %" in sentence
    sentence = alarm(Alarms(repeated=0.5), counts, ("A wall", 251))
    assert sentence is not None
    assert "(such as 'A wall'): found 251 of 500" in sentence


def test_a_language_alarm_needs_a_language() -> None:
    with pytest.raises(JobError, match="found language without expect_language, expected both"):
        make_job("m", "o", alarms__language=0.1)
    with pytest.raises(JobError, match="expected ar, de, el, en"):
        make_job("m", "o", alarms__expect_language="xx")


def test_a_run_counts_findings(tmp_path, ray_cluster) -> None:
    """Answers of one token are all cut off: no answer of a drawn picture is that short."""
    media = draw_media(tmp_path / "media")
    manifest = write_manifest(tmp_path / "m.parquet", picture_rows(media, 24))
    summary = run(make_job(manifest, tmp_path / "out", generation__max_new_tokens=1))
    assert summary.findings["cut_off"] == summary.ok == 24
    state = ledger.load(storage.resolve(str(tmp_path / "out")))
    assert state.counts.findings == summary.findings


def test_a_commit_of_bad_answers_drains_the_run(tmp_path, ray_cluster) -> None:
    import ray

    output = storage.resolve(str(tmp_path / "out"))
    files = [KnownFile("m.parquet", 100, "d")]
    ledger.begin(output, ledger.load(output), "run", {"fingerprint": "f"}, files, 50)
    alarms = Alarms(loop=0.5, repeated=0.9, rows=20)
    coordinator = start_coordinator(
        output.url, "run", Resources(), Limits(), GENERATE, (), True, alarms
    )
    texts = RepeatedTexts()
    texts.add(["A wall"] * 10)

    def commit(token: str, first: int, end: int, loops: int) -> ledger.Commit:
        counts = Counts(ok=end - first, findings={"loop": loops})
        parts = (("", Part(token, 0, 10, 0, end - first)),)
        rows = {0: np.arange(first, end)}
        return ledger.Commit(token, rows, counts, parts, texts=texts.counters())

    try:
        ray.get(coordinator.commit.remote(commit("a", 0, 10, 9)))
        status = poll(coordinator)
        assert status is not None
        assert status.stop_reason is None  # too few rows
        ray.get(coordinator.commit.remote(commit("b", 10, 30, 9)))
        status = poll(coordinator)
        assert status is not None
        assert "finding loop: found 18 of 30" in str(status.stop_reason)
        assert ray.get(coordinator.repeated_text.remote()) == ("A wall", 20)
    finally:
        shut_down(coordinator)

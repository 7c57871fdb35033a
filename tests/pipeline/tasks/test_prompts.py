"""Named prompts and copies through the whole pipeline."""

import asyncio

import pyarrow.parquet as pq
import pytest

from benchmarks.questions import Way
from mediamill.model.tiny import CAPTION_PROMPT, CHECKPOINT
from mediamill.pipeline.coordinator.coordinator import Coordinator
from mediamill.pipeline.plan import check
from mediamill.pipeline.records import answer_columns
from mediamill.pipeline.run import run
from mediamill.pipeline.tasks.dedupe import Claim
from mediamill.schemas.errors import JobError
from mediamill.schemas.task import task_of
from tests.pipeline.world import (
    assert_each_once,
    draw_media,
    make_job,
    picture_rows,
    read_output,
    write_manifest,
)

SHORT = {"generation.max_new_tokens": 6}  # as make_job
QUESTION = "which colour is the circle?"
PROMPTS = {"caption": CAPTION_PROMPT, "colour": {"prompt": QUESTION}}


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    return tmp_path_factory.mktemp("prompts")


@pytest.fixture(scope="module")
def media(home):
    return draw_media(home / "media")


@pytest.fixture(scope="module")
def manifest(home, media):
    rows = picture_rows(media, 20)  # of six pictures
    rows.append({"id": "bad", "uri": str(media["truncated"]), "kind": None})
    rows.append({"id": "clip", "uri": str(media["clip"]), "kind": "v"})
    return write_manifest(home / "m.parquet", rows, row_group_size=5)


def by_id(job):
    rows = read_output(job.output)
    assert_each_once(rows, [f"row-{number:05}" for number in range(20)] + ["bad", "clip"])
    return {row["id"]: row for row in rows}


@pytest.fixture(scope="module")
def plain(manifest):
    """What each question gives in a job of its own, whose stages run here."""
    found = {}
    for name, prompt in (("caption", CAPTION_PROMPT), ("colour", QUESTION)):
        rows = pq.read_table(manifest).to_pylist()
        made = Way(rows, manifest.parent, str(CHECKPOINT), prompt=prompt, **SHORT).answers_of()
        found[name] = {row["id"]: row for row in made}
    return found


@pytest.fixture(scope="module")
def both(home, manifest, ray_cluster):
    job = make_job(manifest, home / "both", prompt=None, prompts=PROMPTS, dedupe=True)
    return job, run(job)


def test_several_questions_are_as_good_as_several_jobs_and_copies_are_marked(both, plain):
    job, summary = both
    assert (summary.ok, dict(summary.errors)) == (21, {"decode_corrupt": 1})
    rows = by_id(job)
    originals = {name: row for name, row in rows.items() if row["duplicate_of"] is None}
    assert len(originals) == 6 + 2
    assert len({row["content_hash"] for row in originals.values()}) == 6 + 2
    assert rows["bad"]["content_hash"] is None
    assert summary.output_tokens == sum(row["output_tokens"] or 0 for row in originals.values())
    for name, row in rows.items():
        if row["duplicate_of"] is not None:
            original = originals[row["duplicate_of"]]
            for column in ("sha256", "content_hash"):
                assert original[column] == row[column]
        for question, alone in plain.items():
            assert row[question] == alone[name]["text"]
            if name == "bad":
                continue
            for column in ("finish_reason", "prompt_tokens", "output_tokens"):
                assert row[f"{question}_{column}"] == alone[name][column]
            assert row[f"{question}_mean_logprob"] == pytest.approx(
                alone[name]["mean_logprob"], abs=1e-4
            )
        both = [alone[name]["output_tokens"] for alone in plain.values()]
        assert row["output_tokens"] == (None if name == "bad" else sum(both))
        assert row["sha256"] == plain["caption"][name]["sha256"]
        assert "text" not in row


def test_a_later_run_knows_what_was_answered(both):
    """The coordinator of a resumed run, before it has answered anything itself."""
    job, _ = both
    task = task_of(job)
    coordinator = Coordinator(
        job.output, "a-later-run", job.resources, job.limits, answer_columns=answer_columns(task)
    )
    rows = list(by_id(job).values())
    asked = [(bytes.fromhex(row["content_hash"] or "00"), "new", "a copy") for row in rows]
    claims = asyncio.run(coordinator.claim(asked))
    for row, claim in zip(rows, claims, strict=True):
        if row["status"] == "error":
            assert claim == Claim("a copy", mine=True)
            continue
        assert claim.row_id == (row["duplicate_of"] or row["id"])
        assert not claim.mine
        assert claim.answer.values == {name: row[name] for name in answer_columns(task)}
        assert claim.answer.values["caption"] == row["caption"]


@pytest.mark.slow
def test_copies_that_a_manifest_has_grown_by_are_not_asked(home, media, manifest, both):
    job, _ = both
    folder, more = home / "grown", picture_rows(media, 12, first=100)
    write_manifest(folder / "a.parquet", pq.read_table(manifest), row_group_size=5)
    job = job.model_copy(update={"manifest": str(folder), "output": str(home / "grown-out")})
    run(job)
    before = {row["id"]: row for row in read_output(job.output)}
    write_manifest(folder / "b.parquet", more)
    summary = run(job)
    assert (summary.rows, summary.skipped) == (34, 22)
    assert summary.output_tokens == summary.prompt_tokens == 0
    for row in read_output(job.output):
        if row["id"] in before:
            assert row == before[row["id"]]
            continue
        original = before[row["duplicate_of"]]
        assert original["duplicate_of"] is None
        for column in ("content_hash", "caption", "colour", "colour_mean_logprob", "sha256"):
            assert row[column] == original[column]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"prompts": {"a": "x"}}, "prompts: found it beside prompt"),
        ({"prompt": None, "prompts": {"uri": "x"}}, "column 'uri' is also a column"),
        ({"prompt": None, "prompts": {"row": "x"}}, "column 'row' is also a column"),
        ({"prompt": None, "prompts": {"kind": "x"}}, "column 'kind' is also a column"),
        ({"score__texts": ["a"]}, "score: found values in a job of the kind caption"),
        ({"job": "score"}, "score: found neither of texts and column"),
        (
            {"job": "score", "score__texts": ["a", "b<|im_end|>"]},
            "control string <.im_end.> in text 2",
        ),
        ({"job": "score", "score__column": "kin"}, "score.column names column 'kin'"),
        ({"job": "embed", "prompt": None, "prompts": {"a": "x"}}, "found it in a job of the kind"),
    ],
)
def test_contradictions_are_told_before_anything_runs(home, manifest, changes, words):
    with pytest.raises(JobError, match=words):
        check(make_job(manifest, home / "never", **changes))


@pytest.mark.parametrize(
    ("prompts", "words"),
    [
        ({}, "found no prompt"),
        ({"a b": "x"}, "found the name 'a b'"),
        ({"a": " "}, "expected"),
        ({"a": {"promt": "x"}}, "expected"),
        ("x", "expected a mapping"),
    ],
)
def test_prompts_that_are_none_are_told(home, manifest, prompts, words):
    with pytest.raises(JobError, match=words):
        make_job(manifest, home / "never", prompt=None, prompts=prompts)


def test_rows_prompts_beside_named_ones_are_refused(home, media):
    rows = [{"id": "a", "uri": str(media["clip"]), "prompt": "own"}]
    manifest = write_manifest(home / "own.parquet", rows)
    with pytest.raises(JobError, match="found them beside the column 'prompt'"):
        check(make_job(manifest, home / "never", prompt=None, prompts=PROMPTS))

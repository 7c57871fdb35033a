"""Wrong use of a job: one clear sentence, before anything is started."""

import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pytest

from mediamill.pipeline.ledger import ledger
from mediamill.pipeline.plan import check
from mediamill.pipeline.storage import storage
from mediamill.schemas.errors import JobError
from tests.pipeline.world import make_job, write_manifest

ROOT = Path(__file__).parents[2]
ROWS = [{"id": f"r{i}", "uri": f"{i}.jpg", "kind": "k", "_hidden": "h"} for i in range(5)]


@pytest.fixture
def here(tmp_path):
    """A folder with a manifest that is right."""
    write_manifest(tmp_path / "m.parquet", ROWS)
    return tmp_path


def test_a_right_job_has_a_plan(here):
    plan = check(make_job(here / "m.parquet", here / "out", partition_by=["kind"]))
    assert (plan.manifest.rows, plan.rows_done, plan.rows_left) == (5, 0, 5)
    assert len(plan.fingerprint) == 32
    assert plan.schema.names[:2] == ["id", "kind"]
    assert storage.list_files(plan.output) == []  # it has left nothing behind


def test_the_fingerprint_follows_what_decides_the_text(here):
    def fingerprint(**changes):
        return check(make_job(here / "m.parquet", here / "out", **changes)).fingerprint

    same = fingerprint()
    assert fingerprint(resources__batch_rows=3, rows_per_file=7, limits__max_bytes=99) == same
    different = [
        fingerprint(prompt="Another."),
        fingerprint(system="You are terse."),
        fingerprint(generation__max_new_tokens=7),
        fingerprint(generation__repetition_penalty=1.1),
        fingerprint(generation__min_new_tokens=2),
        fingerprint(generation__stop=["."]),
        fingerprint(generation__temperature=1.0),
        fingerprint(generation__temperature=1.0, seed=1),
        fingerprint(generation__temperature=1.0, generation__top_k=5),
        fingerprint(generation__temperature=1.0, generation__min_p=0.1),
        fingerprint(image__max_pixels=9999),
        fingerprint(video__fps=1.0),
        fingerprint(video__mrope="hf5"),
        fingerprint(resources__dtype="bfloat16"),
    ]
    assert len({same, *different}) == 15


def test_an_output_begun_before_later_keys_existed_goes_on(here):
    """Keys with defaults that change nothing are no part of the fingerprint, nor is the seed of a
    job that draws nothing.
    """
    plan = check(make_job(here / "m.parquet", here / "out", seed=5))
    generation, video = plan.bound["parts"]["generation"], plan.bound["parts"]["video"]
    assert generation == {
        "max_new_tokens": 6,
        "temperature": 0.0,
        "top_k": None,
        "top_p": None,
        "repetition_penalty": None,
    }
    assert video.keys() == {
        "fps", "num_frames", "min_frames", "max_frames", "min_pixels", "max_pixels"
    }  # fmt: skip
    assert plan.bound["parts"].keys() == {
        "job", "engine", "checkpoint", "prompt", "system", "generation", "image", "video",
        "resources.dtype",
    }  # fmt: skip


def wrong_uses(here):
    """What is wrong, the job, and words of the sentence."""
    right = here / "m.parquet"
    out = here / "out"
    write_manifest(here / "no_uri.parquet", pa.table({"id": ["a"]}))
    write_manifest(here / "clash.parquet", pa.table({"id": ["a"], "uri": ["b"], "text": ["c"]}))
    write_manifest(here / "bytes.parquet", [{**ROWS[0], "media_bytes": "x"}])
    write_manifest(here / "twice.parquet", [*ROWS, ROWS[3]])
    write_manifest(here / "null.parquet", [*ROWS, {**ROWS[0], "id": None}])
    write_manifest(here / "long.parquet", [{**ROWS[0], "kind": "x" * 300}])
    (here / "file").write_text("a file")
    (here / "model").mkdir()
    (here / "model" / "config.json").write_text("{}")
    (here / "foreign").mkdir()
    (here / "foreign" / "other.parquet").write_bytes(b"x")
    return [
        (make_job(here / "none.parquet", out), "none.parquet: found no such file or folder"),
        (make_job(here / "file", out), "file: found no readable Parquet file"),
        (make_job(here / "no_uri.parquet", out), "no_uri.parquet: no column 'uri'"),
        (make_job(here / "clash.parquet", out), "clash.parquet: column 'text' is also a column"),
        (make_job(here / "bytes.parquet", out), "column 'media_bytes' is also a column"),
        (make_job(here / "twice.parquet", out), "'r3' in twice.parquet row 3, twice.parquet row 5"),
        (make_job(here / "null.parquet", out), "null.parquet: row 5: found no id (null)"),
        (make_job(right, out, partition_by=["colour"]), "partition_by names column 'colour'"),
        (make_job(right, out, partition_by=["_hidden"]), "found column '_hidden'"),
        (make_job(here / "long.parquet", out, partition_by=["kind"]), "value of 300 characters"),
        (
            make_job(right, out, prompt=None),
            "prompt: found none in the job, and no column 'prompt'",
        ),
        (make_job(right, out, model=str(here / "model")), "found no weights"),
        (make_job(right, out, model=str(here / "none")), "none: found no such folder"),
        (make_job(right, here / "file"), "file: the output is a file, expected a folder"),
        (make_job(right, here / "file" / "x"), "the output cannot be written"),
        (make_job(right, "/proc/out"), "/proc/out: the output cannot be written"),
        (make_job(right, here / "foreign"), "holds 'other.parquet', which Mediamill did not write"),
        (make_job(right, here), "expected a folder apart from it"),
        (make_job(here / "**" / "*.parquet", out), "expected a folder apart from it"),
        (make_job(right, "nosuch://x/y"), "nosuch"),
        (make_job(right, out, fetch__schemes=["s33"]), "'s33', did you mean 's3'?"),
        (make_job(right, out, generation__top_k=5), "generation.top_k: found 5 beside temp"),
        (make_job(right, out, generation__top_p=0.5), "generation.top_p: found 0.5 beside temp"),
        (make_job(right, out, generation__min_p=0.1), "generation.min_p: found 0.1 beside temp"),
        (
            make_job(right, out, resources__tensor_parallel=3),
            "resources.tensor_parallel: the network does",
        ),
    ]


def test_wrong_use_is_said_in_one_sentence(here):
    for job, words in wrong_uses(here):
        with pytest.raises(JobError) as error:
            check(job)
        assert words in str(error.value)
        assert "\n" not in str(error.value)
    assert not ledger.load(storage.resolve(str(here / "out"))).sequence


def test_checking_needs_neither_ray_nor_torch(here):
    code = (
        "import sys\n"
        "from mediamill.pipeline.run import check, run\n"
        "from mediamill.schemas.job import load_job\n"
        f"job = load_job(None, {{'job': 'caption', 'manifest': {str(here / 'm.parquet')!r},"
        f" 'output': {str(here / 'out')!r}, 'model': 'model/tiny/checkpoint', 'prompt': 'x'}})\n"
        "check(job)\n"
        "print(sorted({'ray', 'torch', 's3fs'} & set(sys.modules)))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "[]"

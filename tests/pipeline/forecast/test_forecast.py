"""Forecasts of jobs with the built-in model, compared with what is really there; without Ray."""

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from mediamill.jobs import cli
from mediamill.model.tiny import CHECKPOINT
from mediamill.pipeline.forecast.forecast import ForecastOptions, forecast
from mediamill.pipeline.forecast.machines import GPUS, find_gpu
from mediamill.pipeline.forecast.pending_rows import PendingRows
from mediamill.pipeline.manifest.manifest import open_manifest
from mediamill.pipeline.plan import check
from mediamill.pipeline.stages.fetch import Fetch, FetchRules
from mediamill.pipeline.stages.prepare import Prepare
from mediamill.schemas import columns as c
from mediamill.schemas.errors import JobError
from mediamill.schemas.job import load_job

PIXELS = 784  # of a visual token


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """A folder of 60 small pictures, 4 large and 6 broken ones."""
    folder = tmp_path_factory.mktemp("photos")
    rng = np.random.default_rng(3)
    for number in range(64):
        side = 700 if number % 16 == 5 else 56 + 28 * (number % 3)
        pixels = rng.integers(0, 256, (side, side + 28, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{number:03}.jpg", quality=40)
    for number in range(6):
        (folder / f"broken-{number}.jpg").write_bytes(b"<html>404</html>")
    return folder


def _job(photos, tmp_path, **keys):
    values = {
        "manifest": str(photos),
        "output": str(tmp_path / "out"),
        "model": "built-in",
        "prompt": "Describe the picture.",
        "image.min_pixels": PIXELS,
        "image.max_pixels": 400 * PIXELS,
        "resources.cache": str(tmp_path / "cache"),
        "generation.max_new_tokens": 6,
        "generation.min_new_tokens": 6,
    }
    return values | keys


def _manifest(photos, tmp_path):
    path = tmp_path / "photos.parquet"
    names = sorted(photos.iterdir())
    table = pa.table({"id": [one.name for one in names], "uri": [str(one) for one in names]})
    pq.write_table(table, path, row_group_size=16)
    return str(path)


def test_the_command_forecasts_a_folder_and_writes_nothing_to_the_output(photos, tmp_path, capsys):
    values = _job(photos, tmp_path)
    words = [f"{key}={value}" for key, value in values.items() if "." in key or key == "prompt"]
    command = ["caption", values["manifest"], values["output"], "--model", "built-in", *words]
    argv = ["plan", *command, "--price", "2.50/h"]
    assert cli.main(argv) == 0
    text = capsys.readouterr().out
    assert not Path(values["output"]).exists()
    lines = text.splitlines()
    assert len(lines) <= 24
    assert max(map(len, lines[:-1])) <= 80
    assert lines[-1].split()[:3] == ["mediamill", "caption", values["manifest"]]
    assert cli.main([*command, "--plan", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["remembered"]
    assert (found["rows_to_do"], found["rows_done"], found["rows_failed"]) == (70, 0, 0)
    truth = _truth(photos, tmp_path)
    for key in ("prompt_tokens", "visual_tokens"):
        assert found[key]["value"] == pytest.approx(truth[key], rel=0.02)
        assert found[key]["low"] - 0.5 <= truth[key] <= found[key]["high"] + 0.5
    assert found["errors"]["decode_unsupported"]["value"] == pytest.approx(6, abs=1)
    assert found["output_tokens"]["value"] == pytest.approx(6 * 64, rel=0.1)
    assert found["seconds"]["low"] < found["seconds"]["value"] < found["seconds"]["high"]
    assert found["binds"] in found["stage_seconds"]
    # What the plan has listed is handed over to the run.
    from mediamill.jobs.manifest import resolve_manifest

    job = resolve_manifest(load_job(None, values, job="caption"))
    assert "70 rows, 0 of them new" in capsys.readouterr().err
    assert pq.read_table(job.manifest).num_rows == 70


def _truth(photos, tmp_path):
    """What the real stages make of all rows."""
    values = _job(photos, tmp_path, manifest=_manifest(photos, tmp_path))
    values["fetch.roots"] = [str(photos)]
    job = load_job(None, values, job="caption")
    plan = check(job, will_run=False)
    drawn = PendingRows.of(plan).draw(100, np.random.default_rng(0))
    assert drawn.table.num_rows == 70
    fetch = Fetch(plan.manifest.schema, FetchRules.of(job, str(tmp_path)))
    prepare = Prepare(plan.manifest.schema, job, plan.task, CHECKPOINT, lambda _: None)
    table = prepare(fetch(drawn.table))
    prepare.close()
    prompts = sum(len(ids) for row in table[c.INPUT_IDS].to_pylist() for ids in row or ())
    return {
        "prompt_tokens": prompts,
        "visual_tokens": sum(n or 0 for n in table[c.VISUAL_TOKENS].to_pylist()),
    }


@pytest.mark.parametrize("kind", ["score", "embed"])
def test_other_jobs(kind, photos, tmp_path):
    values = _job(photos, tmp_path, manifest=_manifest(photos, tmp_path))
    values |= {"fetch.roots": [str(photos)]}
    if kind == "score":
        values |= {"score.texts": ["yes", "no, not at all"]}
    job = load_job(None, values, job=kind)
    planned = forecast(job, ForecastOptions(run_rows=0))
    assert planned.output_tokens.value == 0
    assert planned.sample.prompt_tokens.value > planned.sample.visual_tokens.value > 0
    assert planned.times is None
    there = forecast(job, ForecastOptions(run_rows=0, gpu="h200", gpus=8, price=2.0))
    assert there.times is not None
    assert "not measured" in there.times.basis
    assert there.cost is not None
    assert there.cost.low < there.cost.value < there.cost.high
    given = forecast(job, ForecastOptions(run_rows=0, rows_s=7.0))
    assert given.times is not None
    assert given.times.seconds.value == pytest.approx(10.0)


def test_a_model_that_does_not_fit_and_a_row_that_is_too_long(photos, tmp_path):
    path = tmp_path / "long.parquet"
    picture = str(photos / "000.jpg")
    prompts = ["Describe the picture.", "red square " * 2000]
    pq.write_table(
        pa.table({"id": ["short", "long"], "uri": [picture] * 2, "prompt": prompts}), path
    )
    values = _job(photos, tmp_path, manifest=str(path)) | {"fetch.roots": [str(photos)]}
    del values["prompt"]
    planned = forecast(load_job(None, values, job="caption"), ForecastOptions(run_rows=0))
    [row] = planned.sample.too_long
    assert row.id == "long"
    assert row.tokens is not None
    assert row.tokens > row.limit == 2048


def test_an_unknown_gpu_is_named_with_the_nearest():
    with pytest.raises(JobError, match="did you mean 'H200'"):
        find_gpu("H20O")
    assert find_gpu("a100 80gb").name == "A100-80GB"
    assert len({gpu.name for gpu in GPUS}) == len(GPUS)


def test_only_unfinished_rows_are_drawn_and_each_with_the_same_chance(tmp_path):
    path = tmp_path / "m.parquet"
    table = pa.table({"id": [f"{n}" for n in range(3000)], "uri": ["/x.jpg"] * 3000})
    pq.write_table(table, path, row_group_size=10)  # 300 groups: only some are read
    manifest = open_manifest(str(path))
    done = np.packbits(np.arange(3000) % 3 == 0, bitorder="little")
    pending = PendingRows(manifest, {manifest.files[0].name: done})
    assert pending.total == 2000
    drawn = pending.draw(96, np.random.default_rng(5))
    ids = [int(one) for one in drawn.table["id"].to_pylist()]
    assert len(set(ids)) == len(ids) >= 90
    assert all(number % 3 for number in ids)
    assert drawn.clusters is not None
    assert len(set(drawn.clusters.tolist())) == 48
    counts = np.zeros(3000)
    for seed in range(40):
        for number in pending.draw(96, np.random.default_rng(seed)).table["id"].to_pylist():
            counts[int(number)] += 1
    halves = counts[:1500].sum(), counts[1500:].sum()
    assert abs(halves[0] / halves[1] - 1) < 0.1
    everything = PendingRows(manifest, {}).draw(10_000, np.random.default_rng(1))
    assert len(everything.table) <= 3000


def test_options_are_checked(photos, tmp_path, capsys):
    for words, expected in (
        (["--price", "x"], "expected a price"),
        (["--rate", "fast"], "expected 40"),
        (["--gpus", "0"], "expected at least 1"),
        (["--gpu", "H300"], "--gpu: found 'H300'"),
    ):
        argv = ["plan", "caption", str(photos), str(tmp_path / "o"), "--model", "built-in"]
        assert cli.main([*argv, "resources.cache=" + str(tmp_path / "c"), *words]) == 2
        assert expected in capsys.readouterr().err
    assert cli.main(["plan", "--help"]) == 0
    assert "--price" in capsys.readouterr().out

"""`mediamill preview`: the rows of a job without its output, as the real stages make them."""

import json
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from mediamill.jobs.cli import main
from mediamill.model.text.prompt import IMAGE_PAD
from mediamill.model.tiny import CHECKPOINT
from mediamill.pipeline.manifest.manifest import open_manifest
from mediamill.pipeline.preview.choose import choose_rows
from mediamill.schemas.job import VideoConfig
from tests.pipeline.world import draw_media, picture_rows, write_manifest

PROMPTS = "prompts={caption: Describe the picture., shape: 'Which shape is it?'}"
SHORT = "generation.max_new_tokens=6"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("preview")


@pytest.fixture(scope="module")
def media(folder: Path) -> dict[str, Path]:
    return draw_media(folder / "media")


@pytest.fixture(scope="module")
def manifest(folder: Path, media: dict[str, Path]) -> str:
    rows = picture_rows(media, 30)
    rows += [{"id": name, "uri": str(media[name]), "kind": "x"} for name in ("clip", "truncated")]
    return str(write_manifest(folder / "manifest.parquet", rows))


def preview(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, Any]:
    capsys.readouterr()
    code = main([*arguments, "--json"])
    return code, json.loads(capsys.readouterr().out)


def test_rows_of_every_kind_and_nothing_in_the_output(manifest, folder, capsys, monkeypatch):
    monkeypatch.chdir(folder)
    before = sorted(folder.rglob("*"))
    arguments = ("caption", manifest, "out", "--model", str(CHECKPOINT), PROMPTS, SHORT)
    code, found = preview(capsys, *arguments, "--preview", "32", "--price", "2/h")
    assert code == 3  # one of the rows cannot be decoded
    assert (found["total"], found["errors"], len(found["rows"])) == (32, 1, 32)
    assert sorted(folder.rglob("*")) == sorted([*before, folder / "preview.html"])
    rows = {row["id"]: row for row in found["rows"]}
    picture, failed = rows["row-00003"], rows["truncated"]
    prompts = picture["prompts_given"]
    assert set(prompts) == {"caption", "shape"}
    pads = f"{IMAGE_PAD} × {picture['visual_tokens']}<|vision_end|>Describe the picture."
    assert pads in prompts["caption"]
    assert picture["caption"]
    assert picture["source_bytes"] == Path(picture["uri"]).stat().st_size
    assert picture["prepare_s"] > 0 < picture["generate_s"]
    assert failed["error_code"] == "decode_corrupt"
    assert failed["generate_s"] is None
    assert rows["clip"]["stratum"].startswith("video")
    assert rows["clip"]["frame_times_s"]
    hours = found["million"]["hours"]
    assert hours > 0
    assert found["million"]["cost"] == pytest.approx(2 * hours, abs=0.01)
    page = (folder / "preview.html").read_text(encoding="utf-8")
    assert page.count("<article") == 32
    assert page.count("data:image/jpeg") >= 31
    assert "Describe the picture." in page


def test_an_output_that_the_job_would_refuse_does_not_matter(manifest, folder, capsys):
    output = folder / "odd"
    output.mkdir(exist_ok=True)
    (output / "foreign.txt").write_text("mine")
    arguments = ("embed", manifest, str(output), "--model", str(CHECKPOINT), "--no-page")
    assert main([*arguments, "dedupe=true", "--preview=4"]) in (0, 3)
    text = capsys.readouterr().out
    assert "vector" in text
    assert "a million such rows" in text
    assert "the output was not touched" in text
    assert [path.name for path in output.iterdir()] == ["foreign.txt"]


def test_windows_of_videos(folder, media, capsys):
    rows = [{"id": name, "uri": str(media[name])} for name in ("clip", "text")]
    manifest = str(write_manifest(folder / "videos.parquet", rows))
    arguments = ("annotate", manifest, str(folder / "out"), "--model", str(CHECKPOINT), SHORT)
    more = ("--prompt", "What happens?", "annotate.window_s=0.25", "annotate.min_s=0.1")
    code, found = preview(capsys, *arguments, *more, "--preview", "3", "--no-page")
    assert (code, found["unit"]) == (3, "window")
    ids = [row["id"] for row in found["rows"]]
    assert len(ids) == 3
    assert {name.partition("#")[0] for name in ids} == {"clip", "text"}
    answered = [row for row in found["rows"] if row["status"] == "ok"]
    assert all("What happens?" in row["prompts_given"][""] for row in answered)


def test_rare_kinds_and_sizes_are_chosen(tmp_path):
    sizes = np.arange(1, 5001)
    names = [f"{n}.mp4" if n % 2500 == 0 else f"{n}.jpg" for n in sizes.tolist()]
    table = pa.table({"id": names, "uri": names, "bytes": sizes})
    manifest = open_manifest(str(write_manifest(tmp_path / "m.parquet", table)))
    chosen, labels = choose_rows(manifest, 6, 0, VideoConfig())
    assert (
        chosen["id"].to_pylist() == choose_rows(manifest, 6, 0, VideoConfig())[0]["id"].to_pylist()
    )
    kinds = {label.partition(",")[0] for label in labels}
    assert "picture" in kinds
    assert {"picture, small", "picture, large"} <= set(labels)
    few = open_manifest(str(write_manifest(tmp_path / "few.parquet", table.slice(2490, 20))))
    assert any(label.startswith("video") for label in choose_rows(few, 3, 0, VideoConfig())[1])


def test_an_interrupt_ends_at_once_and_leaves_nothing(manifest, folder, tmp_path):
    command = [sys.executable, "-m", "mediamill", "caption", manifest, "out", "--model"]
    command += [str(CHECKPOINT), "--prompt", "x", "--preview", "4"]
    process = subprocess.Popen(command, cwd=tmp_path, stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    first = process.stderr.readline()
    assert "checking the job" in first
    while "loading" not in process.stderr.readline():
        pass
    process.send_signal(signal.SIGINT)
    started = time.monotonic()
    _, rest = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "interrupted; the output was not touched" in rest
    assert time.monotonic() - started < 30
    assert not list(tmp_path.iterdir())

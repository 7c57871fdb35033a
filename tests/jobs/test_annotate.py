"""`mediamill annotate` as a user meets it: what it says, and what a kill costs."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pyarrow as pa
import pyarrow.dataset as pads
import pyarrow.parquet as pq
import pytest

from mediamill.jobs.cli import main
from mediamill.model.tiny import CAPTION_PROMPT
from tests import processes
from tests.films import film

ROOT = Path(__file__).parents[2]
MARK = "ANNOTATE_TEST"  # of the environment of a run and of all that it starts


def command(*arguments):
    return [sys.executable, "-m", "mediamill", "annotate", *map(str, arguments)]


def manifest_of(folder, lengths):
    """Videos of so many events of 3 s."""
    rows, captions = [], {}
    for number, count in enumerate(lengths):
        data, events = film(number, [3] * count)
        (folder / f"{number}.mp4").write_bytes(data)
        rows.append({"id": f"video {number}", "uri": str(folder / f"{number}.mp4")})
        captions |= {(f"video {number}", at): one.caption for at, one in enumerate(events)}
    pq.write_table(pa.Table.from_pylist(rows), folder / "videos.parquet")
    return folder / "videos.parquet", captions


def settings(**keys):
    pairs = {"annotate.window_s": 3, "resources.batch_rows": 4, "generation.max_new_tokens": 12}
    return [f"{name}={value}" for name, value in {**pairs, **keys}.items()]


def rows_of(output):
    if not (output / "windows").is_dir():
        return []
    names = list((output / "windows").glob("*.parquet"))
    return pads.dataset([str(one) for one in names]).to_table().to_pylist() if names else []


@pytest.mark.parametrize(
    ("pair", "said"),
    [
        ("annotate.windows=given", "no column 'start_s'"),
        ("annotate.overlap_s=10", "overlap_s below window_s"),
        ("annotate.windows_s=5", "did you mean 'annotate.window_s'"),
        ("annotate.summary_prompt=Why?", "without videos"),
        ("partition_by=[video_id]", "partition_by names column 'video_id'"),
    ],
)
def test_mistakes_are_told_before_anything_starts(tmp_path, capsys, pair, said):
    pq.write_table(pa.table({"id": ["a"], "uri": ["a.mp4"]}), tmp_path / "videos.parquet")
    paths = [str(tmp_path / "videos.parquet"), str(tmp_path / "out")]
    options = ["--model", "built-in", "--prompt", "?", pair]
    assert main(["annotate", *paths, *options]) == 2
    assert said in capsys.readouterr().err
    assert not (tmp_path / "out" / "windows").exists()


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_run_that_is_killed_half_way_goes_on_where_it_was(tmp_path):
    manifest, captions = manifest_of(tmp_path, [30, 2, 30])
    output = tmp_path / "out"
    arguments = [manifest, output, "--model", "built-in", "--prompt", CAPTION_PROMPT, "--json"]
    arguments += settings(**{"annotate.videos": "true", "rows_per_file": 4})
    environment = {**os.environ, MARK: str(tmp_path)}
    run = subprocess.Popen(
        command(*arguments),
        cwd=ROOT,
        env=environment,
        stderr=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        start_new_session=True,
    )
    until = time.monotonic() + 400
    while len(rows_of(output)) < 12 and time.monotonic() < until and run.poll() is None:
        time.sleep(0.2)
    assert run.poll() is None
    family = processes.with_variable(MARK, str(tmp_path)) | {run.pid}
    os.kill(run.pid, signal.SIGKILL)
    processes.end_at_once(family - {run.pid})
    run.wait()
    before = {row["id"]: (row["run_id"], row["text"]) for row in rows_of(output)}
    assert 12 <= len(before) < len(captions)
    assert not list((output / "videos").glob("*.parquet"))
    done = subprocess.run(
        command(*arguments), cwd=ROOT, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    said = json.loads(done.stdout)
    assert (said["rows"], said["errors"]) == (len(captions), {})
    assert said["skipped"] >= len(before)
    rows = {row["id"]: row for row in rows_of(output)}
    assert len(rows) == len(captions)
    for name, (run_id, text) in before.items():
        assert (rows[name]["run_id"], rows[name]["text"]) == (run_id, text)
    for row in rows.values():
        assert row["text"] == captions[row["video_id"], row["window"]]
    (video,) = [
        one
        for one in pads.dataset(str(output / "videos")).to_table().to_pylist()
        if one["id"] == "video 2"
    ]
    assert [one["text"] for one in video["segments"]] == [
        captions["video 2", at] for at in range(30)
    ]

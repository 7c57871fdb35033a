"""The caption command from outside, with the real pipeline and the tiny checkpoint."""

import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.parquet as pq
import pytest
from PIL import Image

from mediamill.model.tiny import CHECKPOINT

pytestmark = pytest.mark.timeout(600)  # Ray takes its time to start on a busy machine

ROOT = Path(__file__).parents[2]
SMALL = ("generation.max_new_tokens=4", "resources.replicas=1", "resources.prepare_workers=1")


def command(*arguments):
    return [sys.executable, "-m", "mediamill", *arguments]


def environment():
    return {**os.environ, "PYTHONPATH": str(ROOT)}


def mediamill(*arguments, cwd, address=None):
    """address: of a cluster; None = the command starts one where it needs one."""
    return subprocess.run(
        command(*arguments),
        cwd=cwd,
        env=environment() | ({"RAY_ADDRESS": address} if address else {}),
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )


def reports(stderr):
    """The progress on stderr, where nothing else is: Ray and the libraries keep quiet."""
    return [json.loads(line) for line in stderr.splitlines()]


def write_manifest(folder, rows, missing=0):
    """`rows` pictures, of which the last `missing` are not there; returns the manifest's path."""
    for number in range(rows - missing):
        Image.new("RGB", (56, 56), (number % 256, 90, 160)).save(folder / f"{number}.png")
    manifest = folder / "manifest.parquet"
    names = [f"{folder}/{number}.png" for number in range(rows)]
    pq.write_table(pa.table({"id": list(range(rows)), "uri": names}), manifest)
    return str(manifest)


def cpu_seconds():
    """Of the commands run so far: a busy machine is not the command's fault."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def session_of(number):
    """Pids of the processes that are alive in a session."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):
            fields = stat.read_text().rpartition(")")[2].split()
            if int(fields[3]) == number and fields[0] != "Z":
                found.append(int(stat.parent.name))
    return found


def test_a_job_with_an_error_row_and_its_second_run(tmp_path, ray_cluster):
    manifest = write_manifest(tmp_path, 6, missing=2)
    arguments = ["caption", manifest, "out", "--model", str(CHECKPOINT), "--prompt", "What is it?"]
    first = mediamill(*arguments, *SMALL, "--json", cwd=tmp_path, address=ray_cluster)
    assert first.returncode == 3, first.stderr
    summary = json.loads(first.stdout)
    assert (summary["rows"], summary["ok"], summary["skipped"]) == (6, 4, 0)
    assert summary["errors"] == {"fetch_not_found": 2}
    progress = reports(first.stderr)
    assert {line["event"] for line in progress} == {"phase", "phase_ended", "progress"}
    assert progress[-1]["rows_done"] == 6
    assert sorted(ds.dataset(tmp_path / "out").to_table()["id"].to_pylist()) == list(range(6))

    second = mediamill(*arguments, *SMALL, cwd=tmp_path)
    assert second.returncode == 0  # its own
    told = "6 rows: 4 ok, 2 errors, none of them new (6 rows are from earlier runs)\n"
    assert second.stdout.startswith(told)
    assert "to redo the errors: mediamill retry " in second.stdout
    listed = mediamill("history", "out", cwd=tmp_path).stdout.splitlines()
    assert [line.rpartition("  ")[2] for line in listed[1:]] == [
        "finished with errors",
        "nothing to do",
    ]

    is_error = ds.field("status") == "error"
    row, other = ds.dataset(tmp_path / "out").to_table(filter=is_error).to_pylist()
    for failed in (row, other):
        shutil.copy(tmp_path / "0.png", failed["uri"])
    changed = "generation.max_new_tokens=3"
    third = mediamill("retry", "out", changed, "--limit", "1", cwd=tmp_path, address=ray_cluster)
    assert third.returncode == 0, third.stderr
    assert third.stdout.startswith(
        "6 rows: 5 ok, 1 error, none of them new (5 rows are from earlier runs)\n"
    )
    rows = {row["id"]: row for row in ds.dataset(tmp_path / "out").to_table().to_pylist()}
    again, not_again = rows.pop(row["id"]), rows[other["id"]]
    assert (len(rows), again["status"], again["attempt"]) == (5, "ok", 2)
    assert (not_again["status"], not_again["attempt"]) == ("error", 1)
    assert {other["fingerprint"] for other in rows.values()} == {row["fingerprint"]}
    assert again["fingerprint"] != row["fingerprint"]
    assert again["attempt_history"][-1]["changed"] == changed
    checked = mediamill("check", "out", "--deep", "--json", cwd=tmp_path)
    assert checked.returncode == 0, checked.stdout
    assert json.loads(checked.stdout)["problems"] == []


def test_what_is_wrong_with_the_job_is_said_at_once(tmp_path):
    manifest = write_manifest(tmp_path, 1)
    before = cpu_seconds()
    done = mediamill("caption", manifest, "out", "--model", str(CHECKPOINT), cwd=tmp_path)
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.startswith("error: ")
    assert done.stderr.count("\n") == 1
    assert "prompt" in done.stderr
    assert not (tmp_path / "out").exists()
    assert cpu_seconds() - before < 10


@pytest.mark.parametrize(
    ("number", "code"),
    [(signal.SIGTERM, 143), pytest.param(signal.SIGINT, 130, marks=pytest.mark.slow)],
)
def test_a_stopped_job_says_how_to_go_on_and_leaves_nothing_running(tmp_path, number, code):
    manifest = write_manifest(tmp_path, 2000)
    arguments = ["caption", manifest, "out", "--model", str(CHECKPOINT), "--prompt", "What is it?"]
    with subprocess.Popen(
        command(*arguments, *SMALL, "rows_per_file=16"),
        cwd=tmp_path,
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    ) as process:
        assert process.stderr is not None
        for line in process.stderr:
            if any(report.get("generated") for report in reports(line)):
                break
        process.send_signal(number)
        _, rest = process.communicate(timeout=120)
    deadline = time.monotonic() + 30
    while session_of(process.pid) and time.monotonic() < deadline:
        time.sleep(0.5)
    assert session_of(process.pid) == []
    assert process.returncode == code
    lines = rest.splitlines()
    assert lines[-1] == (
        f"{'interrupted' if number == signal.SIGINT else 'terminated'}: what had begun is "
        "finished; to go on, run the same command again: rows that are finished are kept"
    )
    assert {"event": "stopping", "grace_s": 60.0} in reports("\n".join(lines[:-1]))
    # What the first answers were can be seen, and the rest was not begun.
    ids = ds.dataset(tmp_path / "out", format="parquet").to_table()["id"].to_pylist()
    assert 0 < len(ids) == len(set(ids)) < 2000

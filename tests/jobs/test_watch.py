"""What a run leaves beside its output, and `mediamill watch` makes of it."""

import json
import time
from dataclasses import replace

import pytest

from mediamill.jobs import watch
from mediamill.jobs.cli import main
from mediamill.pipeline.coordinator import run_status
from mediamill.pipeline.coordinator.lease import hold
from mediamill.pipeline.coordinator.run_status import publishing, stored_status
from mediamill.pipeline.faults import Drained
from mediamill.pipeline.storage import storage
from tests.jobs.progress.test_layout import HALF

STATUS = "_mediamill/status"


@pytest.fixture
def output(tmp_path, monkeypatch):
    monkeypatch.setattr(run_status, "_LOCAL_S", 0.02)
    return storage.resolve(str(tmp_path / "out"))


def wait_for(condition):
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_a_run_tells_its_progress_and_its_end(output, capsys):
    taken = []
    with hold(output, "r1"), publishing(output, "r1", taken.append) as report:
        report(HALF)
        wait_for(lambda: stored_status(output) is not None)
        status = stored_status(output)
        assert (status.run, status.held, status.end) == ("r1", True, None)
        assert replace(status.progress, seconds=HALF.seconds) == HALF
        assert status.progress.seconds >= HALF.seconds
        assert main(["watch", output.path, "--once"]) == 0
        assert "1,520 of 3,000 rows" in capsys.readouterr().out
        report(replace(HALF, rows_done=3000))
    assert taken[-1].rows_done == 3000
    status = stored_status(output)
    assert (status.progress.rows_done, status.end, status.held) == (3000, "finished", False)
    assert main(["watch", output.path]) == 0
    shown = capsys.readouterr().out
    assert "3,000 of 3,000 rows" in shown
    assert "run r1 ended: finished; mediamill history" in shown


@pytest.mark.parametrize(
    ("error", "end", "code"),
    [
        (Drained("what had begun is finished"), "stopped: what had begun is finished", 0),
        (RuntimeError("no space left"), "failed: no space left", 1),
    ],
)
def test_a_run_that_ends_early_says_why(output, capsys, error, end, code):
    def run():
        with publishing(output, "r1", None) as report:
            report(HALF)
            raise error

    with pytest.raises(type(error)):
        run()
    assert stored_status(output).end == end
    assert main(["watch", output.path, "--json"]) == code
    [line] = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert (line["run"], line["end"], line["rows_done"]) == ("r1", end, 1520)


def test_a_killed_run_is_known_as_such(output, capsys, monkeypatch):
    with publishing(output, "killed", None) as report:
        report(HALF)
    place = output / STATUS / "killed.json"
    values = {**json.loads(storage.read(place)), "end": None}
    storage.put(place, json.dumps(values).encode())
    assert main(["watch", output.path, "--once"]) == 0  # it may have been begun a moment ago
    storage.put(place, json.dumps({**values, "at": time.time() - 100}).encode())
    capsys.readouterr()
    assert main(["watch", output.path]) == 1
    assert "run killed was killed" in capsys.readouterr().out
    with hold(output, "killed"):  # of this process, as if it lived and were silent
        monkeypatch.setattr(watch, "_GONE_S", 0.1)
        monkeypatch.setattr(watch, "_POLL_S", 0.1)
        assert main(["watch", output.path, "--json"]) == 1
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["event"] == "killed"


def test_only_the_last_run_is_kept_and_damage_is_no_run(output):
    for run in ("r1", "r2"):
        with publishing(output, run, None) as report:
            report(HALF)
    assert list(storage.list_files(output / STATUS)) == ["r2.json"]
    for damage in (b"", b"{}", b'{"run": "x", "progress": 3}', b"[]"):
        storage.put(output / STATUS / "r2.json", damage)
        assert stored_status(output) is None


def test_a_run_never_fails_because_of_its_status(tmp_path):
    (tmp_path / "out").write_text("a file")
    with publishing(storage.resolve(str(tmp_path / "out")), "r1", None) as report:
        report(HALF)


def test_of_several_steps_the_one_at_work_is_shown(output, capsys):
    for step in ("_split", "windows"):
        with publishing(output / step, f"run of {step}", None) as report:
            report(HALF)
    assert stored_status(output, ("_split", "windows")).folder == "windows"
    with hold(output / "_split", "run of _split"):
        assert stored_status(output, ("_split", "windows")).folder == "_split"
    assert main(["watch", output.path, "--once"]) == 0
    assert "step: windows" in capsys.readouterr().out


def test_an_output_without_a_run_is_said_to_have_none(tmp_path, capsys):
    assert main(["watch", str(tmp_path)]) == 2
    assert "found no run" in capsys.readouterr().err

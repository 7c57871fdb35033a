"""The list of runs that an output has seen."""

import json

import pytest

from mediamill.jobs.cli import main
from mediamill.pipeline.coordinator.lease import hold
from mediamill.pipeline.ledger import ledger
from mediamill.pipeline.ledger.state import KnownFile
from mediamill.pipeline.storage import storage

HEADER = {"fingerprint": "f", "parts": {}, "layout": {}}


def begin(output, run, rows=10):
    state = ledger.load(output)
    ledger.begin(output, state, run, HEADER, [KnownFile("m.parquet", rows, "d")], 100)
    return state


def test_runs_in_order_with_how_they_ended(tmp_path, capsys):
    output = storage.resolve(str(tmp_path / "out"))
    begin(output, "killed")
    state = begin(output, "second")
    note = {"rows": 10, "ok": 8, "errors": {"media_empty": 2}, "error_rows": 2, "seconds": 1.5}
    storage.put(output / ledger.HIDDEN / "runs" / "second.json", json.dumps(note).encode())
    ledger.end(output, state, {})
    begin(output, "third")
    stopped = {**note, "error_rows": 0, "errors": {}, "stopped": "what had begun is finished"}
    storage.put(output / ledger.HIDDEN / "runs" / "third.json", json.dumps(stopped).encode())
    begin(output, "fourth")
    failed = {**stopped, "stopped": "a disk is full", "on_request": False}
    storage.put(output / ledger.HIDDEN / "runs" / "fourth.json", json.dumps(failed).encode())
    idle = json.dumps({**note, "idle": True}).encode()
    storage.put(output / ledger.HIDDEN / "runs" / "21260101T000000-idle.json", idle)
    storage.put(output / ledger.HIDDEN / "runs" / "21260101T000000-other.json", b"{}")
    assert main(["history", output.url, "--json"]) == 0
    runs = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [(run["run"], run["end"]) for run in runs] == [
        ("killed", None),
        ("second", "finished with errors"),
        ("third", "stopped: what had begun is finished"),
        ("fourth", "failed: a disk is full"),
        ("21260101T000000-idle", "nothing to do"),
    ]
    assert runs[1]["errors"] == {"media_empty": 2}
    assert all(run["started"] for run in runs)
    assert main(["history", output.url]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 6
    assert "media_empty=2" in lines[2]
    assert lines[1].rstrip().endswith("-")


def test_a_run_that_is_at_work_is_not_one_that_was_killed(tmp_path, capsys):
    output = storage.resolve(str(tmp_path / "out"))
    begin(output, "killed")
    begin(output, "now")

    def ends():
        assert main(["history", output.url, "--json"]) == 0
        return [json.loads(line)["end"] for line in capsys.readouterr().out.splitlines()]

    with hold(output, "now"):
        assert ends() == [None, "at work"]
    assert ends() == [None, None]


def test_an_output_without_a_log_is_said_to_be_none(tmp_path, capsys):
    assert main(["history", str(tmp_path)]) == 2
    assert "found no log of Mediamill" in capsys.readouterr().err


@pytest.mark.parametrize("command", ["submit", "status", "logs", "stop"])
def test_commands_for_a_cluster_want_its_address(command, capsys, monkeypatch):
    monkeypatch.delenv("RAY_API_SERVER_ADDRESS", raising=False)
    assert main([command, "something"]) == 2
    assert "--address" in capsys.readouterr().err


def test_a_job_with_mistakes_is_not_submitted(tmp_path, capsys):
    path = tmp_path / "job.yaml"
    path.write_text("job: caption\nmanifesto: x\n")
    assert main(["submit", str(path), "--address", "http://127.0.0.1:1"]) == 2
    assert "manifesto" in capsys.readouterr().err


def test_an_output_of_several_steps_lists_them_in_order(tmp_path, capsys):
    for step in ("_split", "windows"):
        begin(storage.resolve(str(tmp_path / step)), f"run of {step}")
    assert main(["history", str(tmp_path)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == ["step", "_split", "windows"]
    assert main(["history", str(tmp_path / "windows")]) == 0
    assert "step" not in capsys.readouterr().out
    assert main(["history", str(tmp_path / "nothing")]) == 2

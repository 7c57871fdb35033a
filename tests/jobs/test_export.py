"""The commands export and compact, as typed."""

import json

import pytest

from mediamill.jobs.cli import main
from tests.pipeline.export.world import add_run, error_row, row


@pytest.fixture
def output(tmp_path):
    for night in range(3):
        add_run(tmp_path / "out", [row(night)], night)
    return add_run(tmp_path / "out", [error_row(3)], 3)


def test_export_prints_what_it_did(output, tmp_path, capsys):
    target = str(tmp_path / "a.jsonl")
    assert main(["export", output, target, "--to", "jsonl", "--where", "score < 1"]) == 0
    shown = capsys.readouterr().out
    assert "2 rows exported in" in shown
    assert "left out: error rows 1, not chosen by --where 1" in shown
    assert f"target: {target}" in shown
    assert main(["export", output, target, "--to", "jsonl", "--where", "score < 1", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["new"] == 0


def test_compact_and_history(output, capsys):
    assert main(["compact", output, "--rows-per-file", "100"]) == 0
    assert "4 files are 1 now, of 4 rows" in capsys.readouterr().out
    assert main(["compact", output, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["files_after"] == 1
    assert main(["history", output]) == 0
    assert "compacted 4 files to 1" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["export", "OUT", "t", "--to", "jsnol"], "did you mean 'jsonl'?"),
        (["export", "OUT", "t"], "--to"),
        (["export", "OUT", "t", "--to", "csv", "--wher", "x"], "did you mean '--where'?"),
        (["export", "OUT", "t", "--to", "csv", "--rows-per-file", "0"], "at least 1"),
        (["export", "OUT", "t", "--to", "csv", "--where", "scor == 1"], "did you mean 'score'?"),
        (["compact", "nowhere"], "found no log of Mediamill"),
    ],
)
def test_wrong_usage_is_a_sentence(output, arguments, message, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main([output if one == "OUT" else one for one in arguments]) == 2
    assert message in capsys.readouterr().err

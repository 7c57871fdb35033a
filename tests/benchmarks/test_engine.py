"""The comparison of engines runs, and what it reports of a small case is true."""

import json
import sys

from benchmarks import engine


def test_a_small_comparison(tmp_path, monkeypatch, capsys):
    figures = tmp_path / "engine.json"
    small = ["--size", "tiny", "--pictures", "3", "--repeat", "1", "--rows", "2", "--equality", "2"]
    arguments = [*small, "--lengths", "mixed", "--dtype", "float32", "--json", str(figures)]
    monkeypatch.setattr(sys, "argv", ["engine", *arguments])
    engine.main()
    report = json.loads(figures.read_text())
    assert report["equality"]["same"] == 2
    rows = report["lengths"]["mixed"]
    assert set(rows) == {"ours", "transformers, 2 rows"}
    # In float32 the two agree on every answer; were one cut off or mixed up, they would not.
    assert rows["transformers, 2 rows"]["answers_as_ours"] == 3
    ours = rows["ours"]
    assert {"vision", "prefill", "decode"} <= set(ours["parts"])
    assert abs(sum(ours["parts"].values()) - ours["seconds"][0]) < 0.01
    assert "transformers, 2 rows" in capsys.readouterr().out

"""The comparison of scoring and embedding with captioning runs each way on fresh pictures."""

import sys

from benchmarks import score_embed


def test_a_small_comparison(monkeypatch, capsys):
    small = ["--size", "tiny", "--pictures", "2", "--repeat", "1"]
    monkeypatch.setattr(sys, "argv", ["score_embed", *small])
    score_embed.main()
    lines = capsys.readouterr().out.splitlines()
    assert [line[:22].strip() for line in lines] == [
        "caption",
        *(f"score {count}" for count in (1, 5, 20)),
        *(f"embed {pool}" for pool in score_embed.POOLS),
    ]
    assert all(float(line.split()[-5]) > 0 for line in lines)

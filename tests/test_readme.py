"""The README's Python is run as it stands, in a folder that has what it speaks of."""

import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from mediamill.model.tiny.encode import picture_bytes
from mediamill.model.tiny.scenes import draw_picture

README = Path(__file__).parent.parent / "README.md"


def test_the_python_of_the_readme_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    scene = draw_picture(np.random.default_rng(1), "one", 400, 300, supersample=2)
    Path("photos").mkdir()
    for name in ("photos/a.jpg", "photos/b.jpg", "picture.png"):
        Path(name).write_bytes(picture_bytes(scene.frames[0], name.rpartition(".")[2]))
    Path("captions/kind=one").mkdir(parents=True)
    row = {"id": ["a"], "text": ["a word"], "status": ["ok"], "error_code": [None]}
    pd.DataFrame(row).to_parquet("captions/kind=one/part.parquet")

    blocks = re.findall(
        r"^```python\n(.*?)^```", README.read_text(), flags=re.DOTALL | re.MULTILINE
    )
    assert len(blocks) == 4
    for block in blocks:
        exec(compile(block, str(README), "exec"), {})  # noqa: S102 - our own page

    assert list(pd.read_parquet("photos.parquet")["id"]) == ["a", "b"]
    shown = capsys.readouterr().out
    assert "a word" in shown
    assert shown.strip().endswith(f"{scene.caption}\n{scene.caption}")

"""The documentation's Python is run as it stands, page by page, and prints what the page says.

A block of text right after a block of Python is what the Python prints.
"""

import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from mediamill.model.tiny.encode import picture_bytes
from mediamill.model.tiny.scenes import draw_picture
from tests.docs.blocks import ROOT, blocks

PAGES = [ROOT / "docs" / "qwen2-vl.md"]
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```\n", flags=re.DOTALL | re.MULTILINE)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_the_page_prints_what_it_says(page, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    blocks = BLOCK.findall(page.read_text(encoding="utf-8"))
    names: dict[str, object] = {}
    checked = 0
    for (language, content), (after, expected) in zip(blocks, [*blocks[1:], ("", "")], strict=True):
        if language != "python":
            continue
        exec(compile(content, str(page), "exec"), names)  # noqa: S102 - our own page
        printed = capsys.readouterr().out
        assert printed == (expected if after == "text" else ""), content
        checked += after == "text"
    assert checked >= 8


def test_the_short_python_of_the_other_pages_runs(tmp_path, monkeypatch, capsys):
    """That of the README, manifests, results and videos; test_commands.py runs the job."""
    monkeypatch.chdir(tmp_path)
    scene = draw_picture(np.random.default_rng(1), "one", 400, 300, supersample=2)
    for name in ("photos/IMG_1.JPG", "photos/trip/IMG_1.JPG", "photos/notes.txt", "picture.png"):
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        Path(name).write_bytes(picture_bytes(scene.frames[0], "png" if "png" in name else "jpg"))
    row = {"id": ["a"], "text": ["a word"], "status": ["ok"], "error_code": [None]}
    window = {**row, "video_id": ["a"], "start_s": [0.0], "end_s": [2.5]}
    video = {**row, "duration_s": [2.5], "windows": [1]}
    for folder, table in (
        ("captions/kind=one", row),
        ("timelines/windows", window),
        ("timelines/videos", video),
    ):
        Path(folder).mkdir(parents=True)
        pd.DataFrame(table).to_parquet(f"{folder}/part.parquet")

    chat, engine, job = blocks(ROOT / "README.md", "python")
    assert "run(load_job(" in job
    for block in (chat, engine):
        exec(compile(block, "README.md", "exec"), {})  # noqa: S102 - our own page
    assert capsys.readouterr().out == f"{scene.caption}\n{scene.caption}\n"
    for name in ("manifest", "result", "video-datasets"):
        for block in blocks(ROOT / "docs" / f"{name}.md", "python"):
            exec(compile(block, name, "exec"), {})  # noqa: S102 - our own page
    assert list(pd.read_parquet("photos.parquet")["id"]) == ["IMG_1.JPG", "trip/IMG_1.JPG"]
    assert list(pd.read_parquet("parts.parquet")["id"]) == ["harbour-0", "harbour-4"]
    shown = capsys.readouterr().out
    assert "a word" in shown
    assert "2.5" in shown

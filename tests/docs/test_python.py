"""The documentation's Python is run as it stands, page by page, and prints what the page says.

A block of text right after a block of Python is what the Python prints.
"""

import re
from pathlib import Path

import pytest

PAGES = [Path(__file__).parent.parent / "docs" / "qwen2-vl.md"]
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

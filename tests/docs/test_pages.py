"""The pages that follow from the code are as it makes them, and links lead somewhere."""

import re
import subprocess
import sys

import pytest

from mediamill.schemas.errors import ErrorCode
from mediamill.schemas.job import KEYS
from tests.docs.blocks import PAGES, ROOT

_LINK = re.compile(r"\[[^\]]*\]\(([^)#\s]*)(#[^)]*)?\)")


def test_the_generated_pages_are_what_the_code_makes():
    command = [sys.executable, ROOT / "docs" / "render.py", "--check"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, f"run `make docs`\n{done.stdout}{done.stderr}"


def test_every_key_and_every_code_has_its_line():
    keys = (ROOT / "docs" / "keys.md").read_text(encoding="utf-8")
    assert [name for name in KEYS if f"| `{name}` |" not in keys] == []
    codes = (ROOT / "docs" / "errors.md").read_text(encoding="utf-8")
    assert [code for code in ErrorCode if f"| `{code}` |" not in codes] == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_links_lead_to_files_and_headings(page):
    wrong = []
    for target, anchor in _LINK.findall(page.read_text(encoding="utf-8")):
        if "://" in target:
            continue
        path = (page.parent / target).resolve() if target else page
        if not path.exists():
            wrong.append(target)
        elif anchor and path.suffix == ".md" and anchor[1:] not in anchors(path):
            wrong.append(f"{target}{anchor}")
    assert not wrong


def anchors(page):
    """Returns the anchors that GitHub gives the headings of a page."""
    headings = re.findall(r"^#+ (.*)$", page.read_text(encoding="utf-8"), flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_every_page_is_named_in_the_readme():
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    pages = {page.name for page in PAGES if page.parent == ROOT / "docs"}
    assert {name for name in pages if f"(docs/{name})" not in readme} == set()

"""The report page in a real browser: filters, search, keyboard, and hostile texts."""

from collections.abc import Iterator

import pytest

from mediamill.jobs.report.report import write_report
from tests.jobs.browser import CHROMIUM, Browser, browser
from tests.jobs.report.results import HOSTILE, failed, row, write_result

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no chromium on this machine")

VISIBLE = "[...document.querySelectorAll('article:not([hidden]) .seen .id')].map(e => e.innerText)"
FOCUSED = "document.activeElement.getAttribute('aria-label')"


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    folder = tmp_path_factory.mktemp("page")
    rows = [
        row(id="a", uri="x.jpg", kind="one", text="a red star", truth="a red star"),
        row(id="b", uri="x.jpg", kind="two", text="a blue star", truth="a red star"),
        row(id="c", uri="x.jpg", kind="two", text=HOSTILE, finish_reason="length"),
        failed(id=HOSTILE, uri=HOSTILE, kind="two", error_code=HOSTILE, error_message=HOSTILE),
    ]
    write_report(write_result(folder / "result", rows), folder / "page.html")
    with browser(folder / "profile") as opened:
        opened.open(folder / "page.html")
        yield opened


def choose(page: Browser, name: str, value: str) -> None:
    page.run(f"document.querySelector('[name={name}][value=\"{value}\"]').click()")


def search(page: Browser, words: str) -> None:
    page.run(
        f"form.elements.words.value = '{words}';"
        "form.elements.words.dispatchEvent(new Event('input', {bubbles: true}))"
    )


def test_filters_and_search(page: Browser) -> None:
    assert page.run(VISIBLE) == ["a", "b", "c"]
    choose(page, "tag", "wrong")
    assert page.run(VISIBLE) == ["b"]
    assert page.run("document.getElementById('shown').value") == "1 of 3 cards"
    choose(page, "tag", "cut_off")
    assert page.run(VISIBLE) == ["c"]
    choose(page, "tag", "")
    choose(page, "group", "two")
    assert page.run(VISIBLE) == ["b", "c"]
    search(page, "STAR blue")
    assert page.run(VISIBLE) == ["b"]
    search(page, "nothing like it")
    assert page.run(VISIBLE) == []
    assert page.run("document.getElementById('empty').hidden") is False
    search(page, "")
    choose(page, "group", "")
    assert page.run(VISIBLE) == ["a", "b", "c"]


def test_the_keyboard_goes_to_every_card_and_opens_it(page: Browser) -> None:
    page.run("document.querySelector('article').focus()")
    assert page.run(FOCUSED) == "Row a"
    page.press("ArrowRight")
    assert page.run(FOCUSED) == "Row b"
    page.press("Enter")
    assert page.run("large.open && large.querySelector('article .caption').innerText") == (
        "a blue star"
    )
    page.press("ArrowRight")
    assert page.run("large.querySelector('article .id').innerText") == "c"
    page.press("Escape")
    assert page.run("large.open") is False
    page.run("new Promise(done => setTimeout(done, 300))")  # the event of the closing comes later
    assert page.run(FOCUSED) == "Row c"
    page.press("/")
    assert page.run("document.activeElement === form.elements.words") is True
    page.press("Escape")
    page.press("Enter")
    assert page.run(FOCUSED) == "Row a"


def test_a_focused_card_has_an_outline(page: Browser) -> None:
    page.run("document.querySelector('article').focus()")
    page.press("ArrowRight")
    style = "getComputedStyle(document.activeElement)"
    assert page.run(f"{style}.outlineStyle") == "solid"
    assert page.run(f"parseFloat({style}.outlineWidth)") >= 2


def test_texts_are_texts(page: Browser) -> None:
    assert page.run("document.querySelectorAll('script').length") == 1
    assert page.run("document.querySelectorAll('img[onerror]').length") == 0
    shown = page.run("document.querySelector('#row-2 .caption').textContent")
    assert shown.strip() == HOSTILE
    requests = page.run("performance.getEntriesByType('resource').map(entry => entry.name)")
    assert [name for name in requests if not name.startswith("data:")] == []

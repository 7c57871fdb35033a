"""The report page: what it shows, what it escapes, and that it asks for nothing from elsewhere."""

import base64
import hashlib
import io
import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from mediamill.jobs.cli import main
from mediamill.jobs.report.report import ReportOptions, default_page, write_report
from mediamill.schemas.errors import JobError
from tests.jobs.report.results import (
    HOSTILE,
    clip_file,
    failed,
    picture_file,
    receipt,
    row,
    write_result,
)


class Page(HTMLParser):
    """What a browser would see: the elements with the names of their attributes, and the texts."""

    def __init__(self, source: str) -> None:
        super().__init__(convert_charrefs=True)
        self.elements: list[tuple[str, tuple[str, ...]]] = []
        self.attributes: list[tuple[str, str]] = []
        self.texts: list[str] = []
        self.feed(source)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, tuple(sorted(name for name, _ in attrs))))
        self.attributes += [(name, value or "") for name, value in attrs]

    def handle_data(self, data: str) -> None:
        self.texts.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.texts).split())


def page_of(output: str, **options: Any) -> str:
    page = Path(f"{output}-page.html")
    write_report(output, page, ReportOptions(**options))
    return page.read_text(encoding="utf-8")


def pictures_in(source: str) -> list[Image.Image]:
    encoded = re.findall(r'src="data:image/jpeg;base64,([^"]+)"', source)
    return [Image.open(io.BytesIO(base64.b64decode(data))) for data in encoded]


@pytest.fixture(scope="module")
def output(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("output")
    picture, clip = picture_file(folder), clip_file(folder)
    gone = folder / "gone.png"
    gone.write_bytes(Path(picture).read_bytes())
    rows = [
        row(id="a", uri=picture, kind="one", text="a red star", truth="a red star"),
        row(id="b", uri=clip, kind="clip", text="a blue star", truth="a red star"),
        row(id="c", uri=picture, kind="two", text="word " * 60, finish_reason="length"),
        row(id="d", uri=str(gone), kind="two", text="still here", mean_logprob=-3.0),
        failed(id="e", uri="x.jpg", kind="two", error_code="media_empty", error_message="0 B"),
    ]
    gone.unlink()
    return write_result(folder / "result", rows)


@pytest.fixture(scope="module")
def source(output: str) -> str:
    return page_of(output, price=3.0)


def test_right_wrong_and_error_rows_are_shown_as_such(source: str, output: str) -> None:
    marks = re.findall(r'<svg class="mark"[^>]*aria-label="([a-z]+)"', source)
    assert marks == ["right", "wrong"]
    assert re.search(r"a\s*<mark>blue</mark>\s*star", source)
    assert re.search(r"a\s*<mark>red</mark>\s*star", source)
    text = Page(source).text
    assert "1 of 2 captions match the truth word for word. 1 row could not be captioned." in text
    assert "media_empty" in text
    assert "0 B" in text
    assert f"mediamill retry {output} --where \"error_code == 'media_empty'\"" in text
    assert "All 4 rows without an error." in text


def test_pictures_and_frames_are_as_the_model_saw_them(source: str) -> None:
    first, *frames, third = pictures_in(source)
    assert first.size == third.size
    assert first.size[0] % 28 == first.size[1] % 28 == 0
    assert first.getpixel((10, 10)) == pytest.approx((220, 40, 40), abs=4)
    shades = [frame.convert("L").getpixel((20, 20)) for frame in frames]
    assert len(shades) == 4
    assert shades == sorted(shades)
    assert shades[0] < 20
    assert "gone.png" in Page(source).text  # and the page says that it cannot be read


def test_rows_that_may_be_wrong_are_counted_and_shown(source: str) -> None:
    text = Page(source).text
    assert re.search(r"cut off at generation.max_new_tokens 1 25.0 %", text)
    assert re.search(r"the same words again and again 1 25.0 %", text)
    [tags] = re.findall(r'aria-label="Row c" data-tags="([^"]*)"', source)
    assert {"cut_off", "loop", "sample"} <= set(tags.split())
    values = dict(re.findall(r'name="tag" value="(\w+)".*?<i>(\d+)</i>', source))
    assert values["cut_off"] == values["loop"] == values["wrong"] == "1"


def test_the_page_needs_and_allows_nothing_from_elsewhere(source: str) -> None:
    page = Page(source)
    sources = [value for name, value in page.attributes if name in {"src", "href", "action"}]
    assert [value for value in sources if not value.startswith(("data:image/jpeg;", "#"))] == []
    plain = re.sub(r"base64,[A-Za-z0-9+/=]+", "", source)
    assert not re.search(r"https?:|url\(|@import", plain)
    assert {tag for tag, _ in page.elements}.isdisjoint({"link", "iframe", "object", "base"})
    [policy] = [value for name, value in page.attributes if value.startswith("default-src")]
    assert policy.startswith("default-src 'none';")
    assert "unsafe" not in policy
    for tag in ("style", "script"):
        [inline] = re.findall(rf"<{tag}>(.*?)</{tag}>", source, flags=re.DOTALL)
        digest = base64.b64encode(hashlib.sha256(inline.encode()).digest()).decode()
        assert f"{tag}-src 'sha256-{digest}'" in policy


def test_every_picture_has_a_text_and_every_field_a_label(source: str) -> None:
    for tag in re.findall(r"<img[^>]*>", source):
        assert re.search(r'alt="[^"]+"', tag)
    for tag in re.findall(r"<(?:input|select)[^>]*>", source):
        assert "aria-label" in tag or 'type="radio"' in tag or "<select" in tag
    for landmark in ("<header", "<nav", "<main", "<footer", 'role="search"'):
        assert landmark in source


@pytest.mark.parametrize("field", ["id", "uri", "text", "truth", "kind", "model", "fingerprint"])
def test_hostile_rows_are_shown_and_change_nothing(tmp_path: Path, field: str) -> None:
    values = {"id": "a", "uri": "x.jpg", "kind": "one", "text": "x", "truth": "y"}
    hostile = HOSTILE.replace("/", "") if field == "kind" else HOSTILE
    benign = "a word" if field != "uri" else "nothing.jpg"
    sources = []
    for name, value in (("hostile", hostile), ("benign", benign)):
        rows = [row(**(values | {field: value})), failed_row(value)]
        sources.append(page_of(write_result(tmp_path / name, rows)))
    pages = [Page(page) for page in sources]
    assert pages[0].elements == pages[1].elements
    assert not [name for name, _ in pages[0].attributes if name.startswith("on")]
    if field in ("id", "text", "truth", "kind", "model"):
        assert " ".join(hostile.split()) in pages[0].text


def failed_row(value: str) -> dict[str, Any]:
    return failed(id=value, uri=value, kind="one", error_code=value, error_message=value)


def test_secrets_in_addresses_are_not_on_the_page(tmp_path: Path) -> None:
    secret = "https://user:pass-word@host/a.jpg?X-Amz-Signature=abcdef0123"
    rows = [failed(id="a", uri=secret, kind="one", error_code="fetch_failed", error_message=secret)]
    source = page_of(write_result(tmp_path / "result", rows))
    assert "pass-word" not in source
    assert "abcdef0123" not in source


def test_more_rows_than_cards_are_sampled_over_partitions_and_counted_whole(tmp_path: Path) -> None:
    rows = [
        row(id=f"{n:04}", uri="x.jpg", kind="rare" if n % 100 == 0 else "usual", text=f"text {n}")
        for n in range(1000)
    ]
    source = page_of(write_result(tmp_path / "result", rows), cards=10)
    text = Page(source).text
    assert "1,000 of 1,000 rows have a text." in text
    cards = source.count("<article")
    assert 10 <= cards <= 34  # and the longest and the least probable ones
    assert f"A sample of {cards} of the 1,000 rows without an error" in text
    groups = re.findall(r'data-tags="sample[^"]*" data-group="(\w+)"', source)
    assert groups.count("rare") == groups.count("usual") == 5
    assert source == page_of(str(tmp_path / "result"), cards=10)  # the same rows each time


def test_scores_vectors_and_json_fields(tmp_path: Path) -> None:
    import pyarrow as pa

    scores = [
        {"text": "yes", "probability": 0.9, "rank": 1},
        {"text": "no", "probability": 0.1, "rank": 2},
    ]
    kind = pa.list_(pa.struct([("text", pa.string()), ("probability", pa.float64()),
                               ("rank", pa.int64())]))  # fmt: skip
    rows = [
        row(id="low", uri="x.jpg", kind="a", text="yes", scores=scores, probability=0.2),
        row(id="high", uri="x.jpg", kind="a", text="yes", scores=scores, probability=0.9),
    ]
    source = page_of(write_result(tmp_path / "score", rows, scores=kind, probability=pa.float64()))
    assert re.findall(r'aria-label="Row (\w+)"', source) == ["high", "low"]
    assert re.search(r"<th[^>]*>yes</th><td[^>]*>90.0 %</td>", source)
    vectors = [[1.0, 0.0], [0.9, 0.1], [-1.0, 0.0]]
    rows = [
        row(id=name, uri="x.jpg", kind="a", text=None, embedding=vector)
        for name, vector in zip("abc", vectors, strict=True)
    ]
    source = page_of(write_result(tmp_path / "embed", rows, embedding=pa.list_(pa.float32())))
    first = source[source.index('aria-label="Row a"') : source.index('aria-label="Row b"')]
    assert re.findall(r'<span class="id">(\w)</span> (-?[\d.]+)', first) == [
        ("b", "0.994"),
        ("c", "-1.000"),
    ]


def test_a_result_that_is_not_partitioned_and_no_result(tmp_path: Path) -> None:
    rows = [row(id="a", uri="x.jpg", kind="one", text="x", truth="x")]
    output = write_result(tmp_path / "result", rows, partitioned=False)
    report = write_report(output, tmp_path / "report.html")
    assert list(report.statistics.groups) == ["all"]
    assert 'name="group"' not in (tmp_path / "report.html").read_text(encoding="utf-8")
    with pytest.raises(JobError, match=r"nothing: found no result of Mediamill"):
        write_report(str(tmp_path / "nothing"), tmp_path / "report.html")


def test_the_command(output: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    page = tmp_path / "new" / "page.html"
    assert main(["report", output, str(page), "--json"]) == 0
    values = json.loads(capsys.readouterr().out)
    assert (values["rows"], values["ok"], values["cards"]) == (5, 4, 4)
    assert values["errors"] == {"media_empty": 1}
    assert values["findings"] == {"cut_off": 1, "loop": 1}
    assert values["page"] == str(page)
    assert page.exists()
    assert main(["report", output, "--cards", "1"]) == 0
    assert Path(f"{output}-report.html").exists()
    assert "next:" in capsys.readouterr().out
    assert main(["report", output, "--price", "-1"]) == 2


def test_an_output_and_its_media_in_a_bucket(s3: str, tmp_path: Path) -> None:
    import fsspec

    files = fsspec.filesystem("s3", use_listings_cache=False)
    local = picture_file(tmp_path)
    uri = f"{s3}/media/picture.png"
    files.put_file(local, uri)
    seen = {**receipt(local), "uri": uri}
    rows = [row(id="a", uri=uri, kind="one", text="in a bucket", receipt=[seen])]
    for path in Path(write_result(tmp_path / "result", rows)).rglob("*.parquet"):
        files.put_file(str(path), f"{s3}/out/{path.relative_to(tmp_path / 'result')}")
    report = write_report(f"{s3}/out", tmp_path / "page.html")
    source = report.page.read_text(encoding="utf-8")
    assert len(pictures_in(source)) == 1
    assert "in a bucket" in source
    assert default_page(f"{s3}/out/") == Path("out-report.html")
    assert main(["show", f"{s3}/out", "a"]) == 0

"""The report page: what it shows, what it escapes, and that it asks for nothing from elsewhere."""

import base64
import hashlib
import io
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.dataset as ds
import pytest
from PIL import Image

from mediamill.jobs.report.counts import count, open_result
from mediamill.jobs.report.report import write_report
from mediamill.model.tiny.encode import clip_bytes, picture_bytes
from mediamill.schemas.manifest import check_manifest_schema
from mediamill.schemas.result import result_schema

MANIFEST = pa.schema(
    [("id", pa.string()), ("uri", pa.string()), ("kind", pa.string()), ("truth", pa.string())]
)
HOSTILE = (
    "</style></script><script>alert(1)</script><img src=x onerror=alert(2)>'\"`{{7*7}}&lt;\u202e"
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
        return "".join(self.texts)


def row(**values: Any) -> dict[str, Any]:
    ok = {
        "status": "ok",
        "attempt": 1,
        "finish_reason": "stop",
        "prompt_tokens": 40,
        "visual_tokens": 12,
        "output_tokens": 7,
        "height": 84,
        "width": 112,
        "frame_times_s": [],
        "model": "tiny",
        "fingerprint": "f1f2f3f4f5f6f7f8f9",
        "run_id": "run-1",
    }
    return dict.fromkeys(result_schema(_manifest()).names) | ok | values


def failed(**values: Any) -> dict[str, Any]:
    unknown = {"text": None, "visual_tokens": None, "height": None, "width": None}
    return row(status="error", frame_times_s=None, output_tokens=None, **unknown, **values)


def write_result(folder: Path, rows: list[dict[str, Any]], partitioned: bool = True) -> str:
    table = pa.Table.from_pylist(rows, schema=result_schema(_manifest()))
    kind = ds.partitioning(pa.schema([("kind", pa.string())]), flavor="hive")
    ds.write_dataset(table, folder, format="parquet", partitioning=kind if partitioned else None)
    return str(folder)


def _manifest() -> Any:
    return check_manifest_schema(MANIFEST, "the test's manifest")


@pytest.fixture
def picture(tmp_path: Path) -> str:
    path = tmp_path / "picture.png"
    path.write_bytes(picture_bytes(np.full((300, 400, 3), (220, 40, 40), np.uint8), "png"))
    return str(path)


@pytest.fixture
def clip(tmp_path: Path) -> str:
    path = tmp_path / "clip.mp4"
    shades = [np.full((160, 240, 3), shade, np.uint8) for shade in range(0, 240, 10)]
    path.write_bytes(clip_bytes(tuple(shades)))
    return str(path)


def page_of(tmp_path: Path, rows: list[dict[str, Any]], limit: int = 1000) -> str:
    page = tmp_path / "pages" / "report.html"
    write_report(write_result(tmp_path / "result", rows), page, limit)
    return page.read_text(encoding="utf-8")


def shown_pictures(source: str) -> list[Image.Image]:
    found = re.findall(r'src="data:image/jpeg;base64,([^"]+)"', source)
    return [Image.open(io.BytesIO(base64.b64decode(one))) for one in found]


def test_right_wrong_and_error_rows_are_shown_as_such(tmp_path: Path, picture: str) -> None:
    source = page_of(
        tmp_path,
        [
            row(id="a", uri=picture, kind="one", text="a red star", truth="a red star"),
            row(id="b", uri=picture, kind="two", text="a blue star", truth="a red star"),
            row(id="c", uri=picture, kind="two", text="something", truth=None),
            failed(id="d", uri="x.jpg", kind="two", error_code="media_empty", error_message="0 B"),
        ],
    )
    verdicts = re.findall(r'data-verdict="([a-z]+)"', source)
    assert verdicts == ["right", "wrong", "plain", "errors"]
    marks = re.findall(r'<svg class="mark"[^>]*aria-label="([a-z]+)"', source)
    assert marks == ["right", "wrong"]
    assert re.search(r"a\s*<mark>blue</mark>\s*star", source)
    assert re.search(r"a\s*<mark>red</mark>\s*star", source)
    text = " ".join(Page(source).text.split())
    assert "1 of 2 captions match the truth word for word. 1 row could not be captioned." in text
    assert "media_empty" in text
    assert "0 B" in text


def test_counts_by_group(tmp_path: Path, picture: str) -> None:
    rows = [
        row(id="a", uri=picture, kind="one", text="x", truth="x"),
        row(id="b", uri=picture, kind="two", text="x", truth="y"),
        failed(id="c", uri=picture, kind="two", error_code="decode_corrupt", error_message="m"),
    ]
    counted = count(open_result(write_result(tmp_path / "result", rows)))
    assert [(g.name, g.rows, g.ok, g.compared, g.matches) for g in counted.groups] == [
        ("one", 1, 1, 1, 1),
        ("two", 2, 1, 1, 0),
    ]
    assert counted.errors == {"decode_corrupt": 1}
    assert (counted.visual_tokens, counted.output_tokens) == (24, 14)
    assert counted.fingerprints == ("f1f2f3f4f5f6f7f8f9",)


def test_a_picture_is_shown_small_and_a_clip_as_frames_in_time(
    tmp_path: Path, picture: str, clip: str
) -> None:
    source = page_of(
        tmp_path,
        [
            row(id="a", uri=clip, kind="clip", text="x", truth="x", frame_times_s=[0.0, 0.5]),
            row(id="b", uri=picture, kind="one", text="x", truth="x"),
        ],
    )
    *frames, still = shown_pictures(source)
    assert still.size == (320, 240)
    assert still.getpixel((160, 120)) == pytest.approx((220, 40, 40), abs=4)
    assert len(frames) == 4
    shades = [frame.convert("L").getpixel((50, 50)) for frame in frames]
    assert shades == sorted(shades)
    assert shades[0] < 20
    assert shades[3] > 150


def test_hostile_rows_are_shown_and_change_nothing(tmp_path: Path, picture: str) -> None:
    """A row for each field. Of fingerprints the page shows the beginning only."""
    values = {"id": "a", "uri": picture, "kind": "one", "text": "x", "truth": "y"}
    hostile = {field: f"{field} {HOSTILE}" for field in (*values, "model")}
    hostile |= {"kind": hostile["kind"].replace("/", ""), "fingerprint": HOSTILE}
    benign = {field: f"a word of {field}" for field in hostile} | {"uri": "nothing.jpg"}
    pages = [
        Page(
            page_of(
                tmp_path / name,
                [
                    made
                    for field, value in fields.items()
                    for made in (row(**(values | {field: value})), failed_row(value))
                ],
            )
        )
        for name, fields in (("hostile", hostile), ("benign", benign))
    ]
    assert pages[0].elements == pages[1].elements
    assert not [name for name, _ in pages[0].attributes if name.startswith("on")]
    for field, value in hostile.items():
        if field != "fingerprint":
            assert value in pages[0].text or " ".join(value.split()) in pages[0].text


def failed_row(value: str) -> dict[str, Any]:
    return failed(id=value, uri=value, kind="one", error_code=value, error_message=value)


def test_the_page_needs_and_allows_nothing_from_elsewhere(tmp_path: Path, picture: str) -> None:
    source = page_of(tmp_path, [row(id="a", uri=picture, kind="one", text="x", truth="x")])
    page = Page(source)
    sources = [value for name, value in page.attributes if name in {"src", "href", "action"}]
    assert [value for value in sources if not value.startswith(("data:image/jpeg;", "#"))] == []
    assert not re.search(r"https?:|url\(|@import|//[a-z]", source)
    assert {tag for tag, _ in page.elements}.isdisjoint({"link", "iframe", "object", "base"})
    [policy] = [value for name, value in page.attributes if value.startswith("default-src")]
    assert policy.startswith("default-src 'none';")
    assert "unsafe" not in policy
    for tag in ("style", "script"):
        [inline] = re.findall(rf"<{tag}>(.*?)</{tag}>", source, flags=re.DOTALL)
        digest = base64.b64encode(hashlib.sha256(inline.encode()).digest()).decode()
        assert f"{tag}-src 'sha256-{digest}'" in policy


def test_media_that_are_gone_do_not_stop_the_page(tmp_path: Path) -> None:
    gone = str(tmp_path / "gone.jpg")
    text = Page(page_of(tmp_path, [row(id="a", uri=gone, kind="one", text="still here")])).text
    assert "still here" in text
    assert f"{gone} cannot be shown" in text


def test_without_a_truth_nothing_is_compared(tmp_path: Path) -> None:
    source = page_of(tmp_path, [row(id="a", uri="gone.jpg", kind="one", text="x")])
    assert "exact match" not in Page(source).text
    assert 'name="verdict"' not in source


def test_more_rows_than_the_limit_are_sampled_evenly_and_counted_whole(tmp_path: Path) -> None:
    rows = [
        row(id=f"{n:02}", uri="gone.jpg", kind="one", text="x", truth="x" if n % 2 else "y")
        for n in range(10)
    ]
    source = page_of(tmp_path, rows, limit=5)
    text = " ".join(Page(source).text.split())
    assert "5 of 10 captions match" in text
    assert source.count("<article") == 5
    assert "5 of 10 rows are not shown" in text
    assert re.findall(r"<span>(\d\d)</span>", source) == ["00", "02", "04", "06", "08"]


def test_a_result_that_is_not_partitioned(tmp_path: Path) -> None:
    rows = [row(id="a", uri="gone.jpg", kind="one", text="x", truth="x")]
    output = write_result(tmp_path / "result", rows, partitioned=False)
    counted = write_report(output, tmp_path / "report.html")
    assert [group.name for group in counted.groups] == ["all"]
    assert 'name="group"' not in (tmp_path / "report.html").read_text(encoding="utf-8")


def test_no_result(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"nothing: no result here; expected Parquet files"):
        write_report(str(tmp_path / "nothing"), tmp_path / "report.html")

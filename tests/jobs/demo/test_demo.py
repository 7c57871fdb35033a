"""The demo on a small collection: what it draws, what it counts, and that it does nothing twice."""

from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow.dataset as ds
import pytest

from mediamill.jobs.demo import demo
from mediamill.jobs.demo.drawn_media import BROKEN_FILES, draw
from mediamill.model.errors import MediaError
from mediamill.model.media.containers import detect_format
from mediamill.model.processor import Processor
from mediamill.model.tiny import CHECKPOINT
from tests.media import all_frames

PICTURES, CLIPS = 36, 6
EXPECTED_ERRORS = {
    "cut-off.jpg": "decode_corrupt",
    "empty.png": "media_empty",
    "text.jpg": "decode_unsupported",
    "cut-off.mp4": "decode_corrupt",
    "missing.webp": "fetch_not_found",
}


def files(folder: Path) -> dict[str, tuple[int, int]]:
    return {
        str(path.relative_to(folder)): (path.stat().st_mtime_ns, path.stat().st_size)
        for path in folder.rglob("*")
        if path.is_file()
    }


def test_the_media_are_real_files_of_every_kind_and_format(tmp_path: Path) -> None:
    assert draw(tmp_path, 12, 3)
    manifest = pd.read_parquet(tmp_path / "manifest")
    assert list(manifest.columns) == ["id", "uri", "kind", "truth"]
    assert manifest["kind"].value_counts().to_dict() == {
        "one": 3,
        "two": 3,
        "three": 3,
        "word": 3,
        "clip": 3,
        "broken": BROKEN_FILES,
    }
    assert manifest["id"].is_unique
    assert manifest["truth"].isna().equals(manifest["kind"] == "broken")
    whole = manifest[manifest["kind"] != "broken"]
    formats = {
        (row.kind, detect_format(Path(row.uri).read_bytes()).name) for row in whole.itertuples()
    }
    assert {name for kind, name in formats if kind != "clip"} == {"JPEG", "PNG", "WEBP"}
    assert [name for kind, name in formats if kind == "clip"] == ["mov"]
    assert len(list((tmp_path / "manifest").glob("*.parquet"))) == 2


def test_what_the_model_sees_is_what_it_was_trained_on(tmp_path: Path) -> None:
    draw(tmp_path, 12, 6)
    processor = Processor.load(CHECKPOINT)
    manifest = pd.read_parquet(tmp_path / "manifest")
    for row in manifest[manifest["kind"] != "broken"].itertuples():
        visual, receipt = processor.prepare_media(Path(row.uri).read_bytes())
        assert visual.kind == ("video" if row.kind == "clip" else "image")
        if row.kind == "clip":
            assert (receipt.width, receipt.height) in {(84, 84), (84, 56), (56, 84)}
            assert len(receipt.frame_times_s) in {4, 6, 8}
        else:
            assert (receipt.width, receipt.height) in {(84, 84), (112, 84), (84, 112)}


def test_the_broken_files_are_broken_as_they_say(tmp_path: Path) -> None:
    draw(tmp_path, 1, 1)
    processor = Processor.load(CHECKPOINT)
    manifest = pd.read_parquet(tmp_path / "manifest")
    found = {}
    for uri in manifest[manifest["kind"] == "broken"]["uri"]:
        name = Path(uri).name.partition("-")[2]
        try:
            processor.prepare_media(Path(uri).read_bytes())
        except FileNotFoundError:
            found[name] = "fetch_not_found"
        except MediaError as error:
            found[name] = error.code
    assert found == EXPECTED_ERRORS


def test_drawing_twice_gives_the_same_files(tmp_path: Path) -> None:
    assert draw(tmp_path / "a", 4, 1)
    assert draw(tmp_path / "b", 4, 1)
    for path in sorted((tmp_path / "a" / "media").iterdir()):
        one, other = path.read_bytes(), (tmp_path / "b" / "media" / path.name).read_bytes()
        if path.suffix != ".mp4":
            assert one == other, path.name
            continue
        if not path.name.endswith("clip.mp4"):  # a broken one, made of a sound one's bytes
            continue
        for left, right in zip(all_frames(one), all_frames(other), strict=True):
            assert np.abs(left.astype(int) - right).mean() < 1


def test_media_that_are_there_are_kept_and_lost_ones_drawn_again(tmp_path: Path) -> None:
    assert draw(tmp_path, 4, 1)
    before = files(tmp_path)
    assert not draw(tmp_path, 4, 1)
    assert files(tmp_path) == before
    (tmp_path / "media" / "001-clip.mp4").unlink()
    assert draw(tmp_path, 4, 1)
    assert files(tmp_path).keys() == before.keys()


def test_the_demo_captions_everything_once(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "demo"
    assert demo.main(str(folder), pictures=PICTURES, clips=CLIPS) == 0
    said = capsys.readouterr().out
    assert "5 rows failed as expected: the demo includes 5 broken files" in said

    manifest = pd.read_parquet(folder / "manifest").set_index("id")
    captions = pd.read_parquet(folder / "captions").set_index("id")
    assert sorted(captions.index) == sorted(manifest.index)
    assert ds.dataset(folder / "captions", partitioning="hive").count_rows() == len(manifest)
    assert set(captions["kind"]) == {"one", "two", "three", "word", "clip", "broken"}

    ok = captions[captions["status"] == "ok"]
    assert len(ok) == PICTURES + CLIPS
    assert (ok["text"] == manifest.loc[ok.index, "truth"]).mean() >= 0.95
    failed = captions[captions["status"] == "error"]
    codes = {row.Index.partition("-")[2]: row.error_code for row in failed.itertuples()}
    assert codes == {"cut-off": "decode_corrupt", "empty": "media_empty"} | {
        "text": "decode_unsupported",
        "missing": "fetch_not_found",
    }
    page = (folder / "report.html").read_text(encoding="utf-8")
    assert page.count("<article") == PICTURES + CLIPS
    assert f"{BROKEN_FILES} rows</a> could not be captioned" in page
    assert all(f'<span class="id">{name}</span>' in page for name in failed.index)

    before = files(folder)
    assert demo.main(str(folder), pictures=PICTURES, clips=CLIPS) == 0
    assert "Nothing to do" in capsys.readouterr().out
    after = files(folder)
    results = {name for name in before if not name.startswith("captions/_")}
    assert {name: after[name] for name in results} == {name: before[name] for name in results}


@pytest.mark.slow
def test_a_failure_beyond_the_broken_files_is_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    draw(tmp_path, 4, 1)
    (tmp_path / "media" / "002-one.jpg").write_bytes(b"not a picture any more")
    assert demo.main(str(tmp_path), pictures=4, clips=1) == 1
    assert "error: other rows than those of the broken files failed" in capsys.readouterr().out

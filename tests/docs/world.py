"""The folder and the bucket that the commands of the pages speak of, drawn and small."""

import shlex
from collections.abc import Callable
from pathlib import Path

import fsspec
import numpy as np
import pandas as pd

from mediamill.jobs.cli import main
from mediamill.model.tiny import CHECKPOINT
from mediamill.model.tiny.encode import clip_file, picture_bytes
from mediamill.model.tiny.scenes import draw_picture
from tests.docs.blocks import PAGES, blocks

MODELS = ("Qwen2-VL-2B-Instruct", "Qwen2-VL-2B", "Qwen2-VL-7B", "DIR")
_PICTURES = ("2026/IMG_0001.jpg", "2026/IMG_0002.jpg", "2027/IMG_0001.jpg", "a.jpg")
_QUIET = "resources.replicas=1 resources.prepare_workers=1"


def draw_world(folder: Path) -> None:
    """Draws pictures and videos into `folder`, the current one, and makes links to the model."""
    rng = np.random.default_rng(1)
    for name in (*(f"photos/{picture}" for picture in _PICTURES), "picture.png"):
        scene = draw_picture(rng, "one", 400, 300, supersample=2)
        _write(folder / name, picture_bytes(scene.frames[0], name.rpartition(".")[2]))
    _write(folder / "photos/broken.jpg", (folder / "photos/a.jpg").read_bytes()[:900])
    for name in ("films/harbour.mp4", "clips/one.mp4"):
        _write(folder / name, clip_file(rng)[1])
    for name in MODELS:
        (folder / name).symlink_to(CHECKPOINT)
    photos = sorted((folder / "photos").rglob("*.jpg"))
    table = {"id": [str(p.relative_to(folder)) for p in photos], "uri": [str(p) for p in photos]}
    table["caption"] = ["a red circle"] * len(photos)
    for name in ("photos.parquet", "pictures.parquet"):
        pd.DataFrame(table).to_parquet(folder / name)
    films = {"id": ["harbour"], "uri": [str(folder / "films/harbour.mp4")]}
    pd.DataFrame(films).to_parquet(folder / "videos.parquet")
    csv = pd.DataFrame({"key": table["id"], "url": table["uri"]})
    csv.to_csv(folder / "list.csv", index=False)
    for page in PAGES:
        for text in blocks(page, "yaml"):
            if text.startswith("# ") and ".yaml" in (first := text.splitlines()[0]):
                (folder / first.removeprefix("# ")).write_text(text, encoding="utf-8")


def fill_bucket(folder: Path) -> None:
    """Empties the bucket of the pages, `s3://bucket`, and puts the pictures into it."""
    store = fsspec.filesystem("s3", use_listings_cache=False, skip_instance_cache=True)
    if store.exists("bucket"):
        store.rm("bucket", recursive=True)
    store.mkdir("bucket")
    photos = folder / "photos"
    for path in photos.rglob("*.jpg"):
        store.pipe(f"bucket/pictures/{path.relative_to(photos)}", path.read_bytes())


def dated_manifest() -> None:
    """Writes the manifest of the README's job file, with a column `date`."""
    keys = [f"s3://bucket/pictures/{name}" for name in _PICTURES]
    rows = {"id": list(_PICTURES), "uri": keys, "date": ["2026-01-31"] * len(keys)}
    with fsspec.open("s3://bucket/manifest/part.parquet", "wb") as file:
        pd.DataFrame(rows).to_parquet(file)


def _captions() -> None:
    make("mediamill caption photos/ captions/ --model Qwen2-VL-2B-Instruct/")


def _captions_twice() -> None:
    _captions()
    make("mediamill caption photos/ captions-new/ --model DIR generation.max_new_tokens=3")


def _timelines() -> None:
    make("mediamill annotate films/ timelines/ --model DIR --prompt x annotate.videos=true")


def _job() -> None:
    dated_manifest()
    _captions()


def _named_rows() -> None:
    """The ids of docs/report.md."""
    rows = pd.read_parquet("photos.parquet")[["id", "uri"]].head(2)
    rows.assign(id=["photo-17", "-17"]).to_parquet("named.parquet")
    make("mediamill caption named.parquet captions/ --model DIR --prompt x")
    pd.read_parquet("videos.parquet").assign(id=["video-3"]).to_parquet("named-videos.parquet")
    make("mediamill annotate named-videos.parquet timelines/ --model DIR --prompt x")


def _report() -> None:
    _named_rows()
    make("mediamill caption s3://bucket/pictures/ s3://bucket/captions/ --model DIR")


# What has to be there before the first command of a page.
PREPARE: dict[str, Callable[[], None]] = {
    "README.md": dated_manifest,
    "docs/errors.md": _captions,
    "docs/export.md": _captions,
    "docs/pixels.md": _job,
    "docs/plan.md": dated_manifest,
    "docs/preview.md": dated_manifest,
    "docs/report.md": _report,
    "docs/retry.md": _captions,
    "docs/diff.md": _captions_twice,
}


def make(command: str) -> None:
    """Runs a command that a page takes for granted."""
    code = main([*shlex.split(command)[1:], *_QUIET.split()])
    assert code in (0, 3), command


def _write(path: Path, data: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)

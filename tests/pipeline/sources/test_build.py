"""Manifests of folders and buckets: which files, their ids, what a second run and a kill leave."""

import os
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import fsspec
import pyarrow.parquet as pq
import pytest

from mediamill.pipeline.manifest.manifest import open_manifest
from mediamill.pipeline.sources import build as build_module
from mediamill.pipeline.sources import listing, random_access
from mediamill.pipeline.sources.detect import is_manifest
from mediamill.pipeline.sources.ids import KeySet, Repeats
from mediamill.pipeline.sources.left_out import LeftOut
from mediamill.pipeline.storage import storage
from mediamill.schemas.errors import JobError
from tests.pipeline.sources.drawn import build, made, read, rows, tar_bytes, zip_bytes


def draw(folder, *names):
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(os.fsencode(path.name))


def test_a_folder(tmp_path):
    names = [
        "_DSC1.JPG", "a b.jpg", "b.tar.png", "new\nline.jpg", "s3:/b/x.jpg", "100%41.jpg",
        "sub/c.mp4", "sub/deep/d.webp", "ü.jpeg", "[x].gif", "range:0-1:a.jpg",
    ]  # fmt: skip
    draw(tmp_path / "p", *names)
    draw(
        tmp_path / "p", ".hidden.jpg", "sub/.git/x.jpg", "@eaDir/t.jpg", "a.jpg.part", "~$x.jpg",
        "notes.txt", "noext", "sub/Thumbs.db",
    )  # fmt: skip
    bad = os.fsdecode(b"bad\xff.jpg")
    draw(tmp_path / "p", bad)
    (tmp_path / "p" / "loop").symlink_to(tmp_path / "p")
    (tmp_path / "p" / "self").symlink_to("self")
    (tmp_path / "p" / "gone.jpg").symlink_to("nowhere")
    (tmp_path / "p" / "linked.jpg").symlink_to("a b.jpg")
    os.mkfifo(tmp_path / "p" / "pipe.jpg")
    found, left_out = made(tmp_path / "p", tmp_path / "m")
    assert {row["id"] for row in found} == {*names, "linked.jpg", "bad\\xff.jpg"}
    for row in found:
        content = b"a b.jpg" if row["id"] == "linked.jpg" else os.fsencode(
            bad if row["id"].startswith("bad") else Path(row["id"]).name
        )  # fmt: skip
        assert read(row["uri"], tmp_path) == content
    assert left_out == {
        "hidden or temporary": 4,
        "folder: hidden or temporary": 2,
        "neither a picture nor a video by its suffix": 3,
        "a broken link, pipe or device": 2,
        "a link to a folder that is listed itself": 1,
    }


def test_loops_of_links_outside_the_folder_end(tmp_path):
    draw(tmp_path / "p", "a.jpg")
    draw(tmp_path / "far", "f.jpg", "deep/g.jpg")
    (tmp_path / "far" / "deep" / "up").symlink_to(tmp_path / "far")
    (tmp_path / "p" / "far").symlink_to(tmp_path / "far")
    found, left_out = made(tmp_path / "p", tmp_path / "m")
    assert [row["id"] for row in found] == ["a.jpg", "far/f.jpg", "far/deep/g.jpg"]
    assert left_out == {"a link to a folder that is listed itself": 1}


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, ["a.jpg", "x/b.png", "x/y/c.jpg"]),
        ({"glob": "*.jpg"}, ["a.jpg"]),
        ({"glob": "**/*.jpg"}, ["a.jpg", "x/y/c.jpg"]),
        ({"include": ("*.dat", "b.*")}, ["x/b.png", "x/y/d.dat"]),
        ({"exclude": ("x/y/*",)}, ["a.jpg", "x/b.png"]),
        ({"exclude": ("[ab].*",)}, ["x/y/c.jpg"]),
    ],
)
def test_patterns(tmp_path, options, expected):
    draw(tmp_path / "p", "a.jpg", "x/b.png", "x/y/c.jpg", "x/y/d.dat")
    found, _ = made(tmp_path / "p", tmp_path / "m", kind="folder", **options)
    assert [row["id"] for row in found] == expected


def test_a_glob_and_one_file_are_sources(tmp_path):
    draw(tmp_path / "p", "a.jpg", "x/b.jpg", "x[1].jpg", "x1.jpg")
    found, _ = made(tmp_path / "p" / "**" / "*.jpg", tmp_path / "m1")
    assert [row["id"] for row in found] == ["a.jpg", "x1.jpg", "x[1].jpg", "x/b.jpg"]
    found, _ = made(tmp_path / "p" / "x[1].jpg", tmp_path / "m2")
    assert [row["id"] for row in found] == ["x[1].jpg"]


def test_a_bucket(s3, tmp_path, monkeypatch):
    monkeypatch.setattr(listing, "_PAGE_KEYS", 3)
    fs = fsspec.filesystem("s3", use_listings_cache=False)
    names = [f"{shelf}/{n}.jpg" for shelf in "abc" for n in range(7)]
    names += ["top.png", "a b?#%.jpg", "d/e/f/g/h.mp4", "ü/x.jpg"]
    for name in names:
        fs.pipe_file(f"{s3}/many/{name}", b"x")
    for name in (".hid/x.jpg", "a/.x.jpg", "n.txt"):
        fs.pipe_file(f"{s3}/many/{name}", b"x")
    found, left_out = made(f"{s3}/many", tmp_path / "m")
    assert {row["id"] for row in found} == set(names)
    assert {row["uri"] for row in found} == {f"{s3}/many/{name}" for name in names}
    assert sum(left_out.values()) == 3
    again, _ = made(f"{s3}/many/", f"{s3}/manifest-of-many")  # the manifest in a bucket, too
    assert again == found


@pytest.mark.parametrize("suffix", [".parquet", ".parq"])
def test_a_second_run_adds_what_is_new_and_leaves_the_rest(tmp_path, suffix):
    draw(tmp_path / "p", "b.jpg", "d.jpg")
    first = build(tmp_path / "p", tmp_path / "m", suffix)
    assert (first.rows, first.new) == (2, 2)
    part = tmp_path / "m" / f"part-000000{suffix}"
    before = part.stat().st_mtime_ns
    draw(tmp_path / "p", "a.jpg", "c/e.jpg")
    (tmp_path / "p" / "d.jpg").unlink()
    second = build(tmp_path / "p", tmp_path / "m", suffix)
    assert (second.rows, second.new, second.gone) == (4, 2, 1)
    assert part.stat().st_mtime_ns == before
    third = build(tmp_path / "p", tmp_path / "m", suffix)
    assert (third.rows, third.new, third.gone) == (4, 0, 1)
    assert [row["id"] for row in rows(tmp_path / "m", suffix)] == [
        "b.jpg", "d.jpg", "a.jpg", "c/e.jpg"
    ]  # fmt: skip
    manifest = open_manifest(str(tmp_path / "m"))
    assert (manifest.rows, len(manifest.files)) == (4, 2)


def test_another_source_or_a_foreign_folder_is_refused(tmp_path):
    draw(tmp_path / "p", "a.jpg")
    draw(tmp_path / "q", "a.jpg")
    build(tmp_path / "p", tmp_path / "m")
    with pytest.raises(JobError, match=r"was made with the source .*/p, and now has .*/q"):
        build(tmp_path / "q", tmp_path / "m")
    with pytest.raises(JobError, match=r"holds 'a.jpg', which this command did not write"):
        build(tmp_path / "p", tmp_path / "q")
    with pytest.raises(JobError, match="the manifest cannot be written"):
        build(tmp_path / "p", tmp_path / "p" / "a.jpg")
    for wrong, reason in (
        ("none", "found no such file or folder"),
        ("none*.jpg", "found no pictures, videos, tables or archives"),
    ):
        with pytest.raises(JobError, match=reason):
            build(tmp_path / wrong, tmp_path / "n")
    (tmp_path / "empty").mkdir()
    with pytest.raises(JobError, match="found no pictures, videos, tables or archives, expected"):
        build(tmp_path / "empty", tmp_path / "n")


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (["m.parquet", "a.jpg"], True),
        (["date=1/m.parq"], True),
        (["a.jpg", "b.tar"], False),
        (["metadata.parquet", "a.jpg"], False),
        (["a.csv"], False),
        (["readme.md"], True),
    ],
)
def test_a_folder_of_parquet_is_told_from_one_of_pictures(tmp_path, names, expected):
    draw(tmp_path / "p", *names)
    assert is_manifest(str(tmp_path / "p")) is expected
    assert is_manifest(str(tmp_path / "p" / "*")) is expected or "=" in names[0]


def test_missing_and_unknown_manifests_are_left_to_the_job(tmp_path):
    draw(tmp_path, "file", "a.parquet")
    for name in ("none", "none.csv", "none/*.parquet", "file", "a.parquet"):
        assert is_manifest(str(tmp_path / name))


def test_a_killed_build_goes_on_where_it_was(tmp_path, monkeypatch):
    """Killed between any two writes; the finished shards are not read again."""
    for shard in range(6):
        members = [(f"{n}.jpg", b"%d" % n) for n in range(50)]
        (tmp_path / f"{shard}.tar").write_bytes(tar_bytes(members))
    monkeypatch.setattr(build_module, "_PART_ROWS", 70)
    writes = []
    originals = {name: getattr(storage, name) for name in ("put", "move")}

    class Killed(BaseException):
        pass

    def stop_after(count):
        for name, real in originals.items():

            def stopping(*arguments, real=real):
                if len(writes) >= count:
                    raise Killed
                writes.append(arguments)
                return real(*arguments)

            monkeypatch.setattr(storage, name, stopping)

    source = str(tmp_path / "*.tar")
    whole = build(source, tmp_path / "whole")
    expected = rows(tmp_path / "whole")
    for count in range(30):
        output, finished = tmp_path / f"m{count}", False
        writes.clear()
        stop_after(count)
        with suppress(Killed):
            build(source, output)
            finished = True
        stop_after(10**9)
        summary = build(source, output)
        assert summary.rows == whole.rows
        assert sorted(row["id"] for row in rows(output)) == sorted(row["id"] for row in expected)
        if finished:
            break
    else:
        raise AssertionError("the build never ended")


def test_a_process_that_is_killed(tmp_path):
    """SIGKILL while it runs; then it goes on, and the rows are whole."""
    for shard in range(40):
        members = [(f"{n}.jpg", b"x") for n in range(400)]
        (tmp_path / f"{shard:02}.tar").write_bytes(tar_bytes(members))
    code = """
import sys
from mediamill.pipeline.sources import build
build._PART_ROWS = 500
from tests.pipeline.sources.drawn import build
build(sys.argv[1], sys.argv[2])
"""
    command = [sys.executable, "-c", code, str(tmp_path / "*.tar"), str(tmp_path / "m")]
    with subprocess.Popen(command, cwd=Path(__file__).parents[3]) as process:
        while len(list(tmp_path.glob("m/_sources/new/*.parquet"))) < 3:
            assert process.poll() is None
            time.sleep(0.005)
        process.kill()
    assert not list(tmp_path.glob("m/*.parquet"))
    assert build(tmp_path / "*.tar", tmp_path / "m").rows == 16_000
    ids = [row["id"] for row in rows(tmp_path / "m")]
    assert len(set(ids)) == len(ids) == 16_000


def test_shards_that_are_finished_are_not_read_again(tmp_path, monkeypatch):
    for shard in range(3):
        (tmp_path / f"{shard}.tar").write_bytes(tar_bytes([("0.jpg", b"x"), ("0.txt", b"t")]))
    source = str(tmp_path / "*.tar")
    build(source, tmp_path / "m")
    (tmp_path / "0.tar").chmod(0o600)  # new permissions are no new content

    def refuse(*_):
        raise AssertionError("a shard was opened")

    monkeypatch.setattr(random_access.RandomAccessFile, "__init__", refuse)
    summary = build(source, tmp_path / "m")
    assert (summary.rows, summary.new, summary.gone) == (3, 0, 0)


def test_zip_and_folder_and_mixed_archives(tmp_path):
    (tmp_path / "a.zip").write_bytes(zip_bytes([("1.jpg", b"1")]))
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "b.zip").write_bytes(zip_bytes([("1.jpg", b"2")]))
    (tmp_path / "notes.txt").write_text("x")
    found, left_out = made(tmp_path, tmp_path / ".." / "m-of-zips")
    assert [row["id"] for row in found] == ["a.zip/1.jpg", "sub/b.zip/1.jpg"]
    assert left_out == {"a file of another kind than zip": 1}


def test_rows_are_written_in_groups_that_can_be_read_alone(tmp_path, monkeypatch):
    monkeypatch.setattr(build_module, "_PART_ROWS", 100)
    (tmp_path / "a.txt").write_text("".join(f"/x/{n}.jpg\n" for n in range(20_000)))
    build(tmp_path / "a.txt", tmp_path / "m")
    files = sorted((tmp_path / "m").glob("*.parquet"))
    assert [pq.read_metadata(file).num_rows for file in files] == [8192, 8192, 3616]


def test_ids_and_repeats():
    keys = KeySet()
    assert keys.add(["a", "b", "a"]).tolist() == [True, True, False]
    assert keys.add(map(str, range(10_000))).all()
    assert keys.add(["b", "9999", "c"]).tolist() == [False, False, True]
    assert len(keys) == 10_003
    repeats = Repeats()
    assert repeats.number(["a", "a#2", "a", "b"]) == ["a", "a#2", "a#3", "b"]
    assert repeats.number(["a", "c"]) == ["a#4", "c"]


def test_what_is_left_out_is_shown_without_secrets_and_short():
    left_out = LeftOut()
    left_out.add("odd", "https://user:pass@host/a?sig=x")
    left_out.add("odd", "b")
    left_out.add("lines", "new\nline\udcff" + "x" * 500)
    first, second = left_out.lines()
    assert first == "left out 2: odd (first: https://host/a)"
    assert second.startswith("left out 1: lines (namely: new\\nline\\udcffxxx")
    assert len(second) < 300

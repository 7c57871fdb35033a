"""Braces in the name of a source, as shells and WebDataset have them, and other forms of theirs."""

import fsspec
import pytest

from mediamill.pipeline.sources import braces
from mediamill.pipeline.sources.braces import expand, has_braces
from mediamill.pipeline.sources.detect import is_manifest
from mediamill.schemas.errors import JobError
from tests.pipeline.sources.drawn import build, made, read, tar_bytes


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("s-{0008..0011}.tar", ["s-0008.tar", "s-0009.tar", "s-0010.tar", "s-0011.tar"]),
        ("{8..10}", ["8", "9", "10"]),
        ("{2..0}", ["2", "1", "0"]),
        ("{0..9..4}", ["0", "4", "8"]),
        ("{00..2}", ["00", "01", "02"]),
        ("{a,b}{1..2}", ["a1", "a2", "b1", "b2"]),
        ("{a,b{1,2}}.x", ["a.x", "b1.x", "a.x", "b2.x"]),
        ("x{,.bak}", ["x", "x.bak"]),
        ("{}{a}{a..b}", ["{}{a}{a..b}"]),
        ("{a", ["{a"]),
    ],
)  # fmt: skip
def test_expand(text, names):
    assert list(dict.fromkeys(expand(text))) == list(dict.fromkeys(names))
    assert has_braces(text) == (names != [text])


def test_too_many_names_are_an_error(monkeypatch):
    monkeypatch.setattr(braces, "MAX_NAMES", 1000)
    with pytest.raises(JobError, match="more than 1,000 names"):
        expand("{0..9999999999}-{0..9999999999}")


def test_shards(tmp_path, s3):
    fs = fsspec.filesystem("s3", use_listings_cache=False)
    for number in range(4):
        data = tar_bytes([(f"{number}.jpg", b"%d" % number)])
        (tmp_path / f"s-{number:06}.tar").write_bytes(data)
        fs.pipe_file(f"{s3}/braces/s-{number:06}.tar", data)
    for folder, name in ((str(tmp_path), "m1"), (f"{s3}/braces", "m2")):
        source = f"{folder}/s-{{000001..000005}}.tar"
        assert not is_manifest(source)
        found, left_out = made(source, tmp_path / name)
        assert [row["id"] for row in found] == [f"s-00000{n}.tar/{n}.jpg" for n in (1, 2, 3)]
        assert left_out == {"a file that braces name, and that is not there": 2}
        assert read(found[1]["uri"], tmp_path) == b"2"
        with pytest.raises(JobError, match="found no file of the kind webdataset"):
            build(f"{folder}/t-{{0..5}}.tar", tmp_path / "n")


def test_pictures_globs_and_folders_in_braces(tmp_path):
    for name in ("a/1.jpg", "a/2.png", "b/1.jpg", "c/1.jpg", "{x}.jpg", "{p,q}.jpg"):
        (tmp_path / "p" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "p" / name).write_bytes(b"x")
    for source, ids in (
        ("p/{a,b}/1.jpg", ["a/1.jpg", "b/1.jpg"]),
        ("p/{a,b}/*", ["a/1.jpg", "a/2.png", "b/1.jpg"]),
        ("p/*/{1,2}.{jpg,png}", ["a/1.jpg", "a/2.png", "b/1.jpg", "c/1.jpg"]),
        ("p/{a/1,c/1}.jpg", ["a/1.jpg", "c/1.jpg"]),
        ("p/{x}.jpg", ["{x}.jpg"]),
        ("p/{p,q}.jpg", ["{p,q}.jpg"]),  # a file of that very name
    ):
        found, _ = made(tmp_path / source, tmp_path / f"m{len(list(tmp_path.iterdir()))}")
        assert [row["id"] for row in found] == ids, source
    with pytest.raises(JobError, match=r"different kinds in braces .folder, webdataset."):
        build(tmp_path / "{a.jpg,b.tar}", tmp_path / "n")


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ("pipe:aws s3 cp s3://b/k-{0..9}.tar", "found a command .*no command is run, expected"),
        ("a.tar::b.tar", "several sources with '::' between, expected one: braces or a glob"),
        ("-", "found standard input"),
        ("file:a.tar", "expected a path, or file:///PATH"),
    ],
)  # fmt: skip
def test_other_forms_of_webdataset_are_explained(tmp_path, source, words):
    with pytest.raises(JobError, match=words):
        build(source, tmp_path / "m")
    with pytest.raises(JobError, match=words):
        is_manifest(source)

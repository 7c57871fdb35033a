"""Text files beside pictures: whose they are, where they lie, and what is refused."""

import json

import pytest

from mediamill.pipeline.export.export import ExportOptions, export
from mediamill.pipeline.export.sidecar import relative_path
from tests.pipeline.export.world import add_run, error_row, picture_rows, row


def run(output, target, **options):
    return export(ExportOptions(str(output), str(target), "sidecar", **options))


@pytest.fixture
def photos(tmp_path):
    return tmp_path / "photos"


@pytest.fixture
def output(tmp_path, photos):
    return add_run(tmp_path / "out", [*picture_rows(photos, 5), error_row(5)])


def test_beside_the_pictures(output, photos):
    done = run(output, photos)
    assert (done.exported, done.left_out) == (5, {"error rows": 1})
    for number in range(5):
        assert (photos / f"picture-{number:04}.txt").read_text() == f"text {number}"
        assert (photos / f"picture-{number:04}.jpg").exists()
    assert run(output, photos).new == 0


def test_in_a_mirrored_tree(tmp_path):
    rows = picture_rows(tmp_path / "photos" / "a", 2) + picture_rows(tmp_path / "photos" / "b", 2)
    rows = [{**one, "id": f"r{number}"} for number, one in enumerate(rows)]
    output = add_run(tmp_path / "out", rows)
    run(output, tmp_path / "t", roots=(str(tmp_path / "photos"),), suffix="json")
    found = sorted(str(p.relative_to(tmp_path / "t")) for p in (tmp_path / "t").rglob("pic*"))
    assert found == [f"{folder}/picture-000{n}.json" for folder in "ab" for n in (0, 1)]
    assert json.loads((tmp_path / "t/b/picture-0001.json").read_text())["id"] == "r3"


def test_files_of_others_stay(output, photos):
    (photos / "picture-0001.txt").write_text("written by hand")
    (photos / "picture-0002.txt").write_text("text 2")  # the same: it may stay
    (photos / "picture-0003.txt").mkdir()
    done = run(output, photos)
    assert done.exported == 3
    assert done.left_out["a file of someone else exists"] == 1
    assert done.left_out["a folder has the name of the file"] == 1
    assert (photos / "picture-0001.txt").read_text() == "written by hand"
    again = run(output, photos, overwrite=True)
    assert again.exported == 4
    assert (photos / "picture-0001.txt").read_text() == "text 1"


def test_a_later_output_replaces_what_exports_wrote_but_no_corrections(output, photos, tmp_path):
    run(output, photos)
    (photos / "picture-0001.txt").write_text("corrected by hand")
    rows = [{**one, "text": f"better {n}"} for n, one in enumerate(picture_rows(photos, 5))]
    second = add_run(tmp_path / "second", rows)
    done = run(second, photos)
    assert (done.exported, done.left_out) == (4, {"a file of someone else exists": 1})
    assert (photos / "picture-0000.txt").read_text() == "better 0"
    assert (photos / "picture-0001.txt").read_text() == "corrected by hand"
    assert run(second, photos, suffix="caption").exported == 5


def test_two_rows_with_one_file(tmp_path):
    uris = ["p/a.jpg", "p/a.png", "p/A.jpg", "p/a.jpg?x=1", "p/b", "p/.jpg", "p/c.tar.gz"]
    rows = [row(number, uri=uri) for number, uri in enumerate(uris)]
    output = add_run(tmp_path / "out", rows, rows_per_file=3)
    done = run(output, tmp_path / "t")
    assert done.left_out == {"another row has the same file": 2}
    names = sorted(path.name for path in (tmp_path / "t" / "p").iterdir())
    assert names == [".jpg.txt", "A.txt", "a.txt", "b.txt", "c.tar.txt"]
    assert run(output, tmp_path / "t").left_out == {"another row has the same file": 2}


@pytest.mark.parametrize(
    ("uri", "path"),
    [
        ("photos/a.jpg", "photos/a.jpg"),
        ("../../../../../../../../etc/passwd", "etc/passwd"),
        ("/root1/x/../../etc/a.jpg", "etc/a.jpg"),
        ("/root1/a/b.jpg", "a/b.jpg"),
        ("/root10/a/b.jpg", "root10/a/b.jpg"),
        ("file:///root1/a.jpg", "a.jpg"),
        ("s3://bucket/k/a.jpg", "k/a.jpg"),
        ("s3://bucket/../other/a.jpg", "other/a.jpg"),
        ("s3://else/k/a.jpg", "else/k/a.jpg"),
        ("https://h/p/../../../a.jpg?sig=1#x", "a.jpg"),
        ("https://h/", "h"),
        ("/root1/" + "x" * 300 + ".jpg", None),
        ("a\0b.jpg", None),
        ("data:image/png;base64,...(1,000 characters)", None),
        ("range:512-1023:s3://bucket/shard.tar", None),
    ],
)
def test_names_never_lead_out(uri, path, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    assert relative_path(uri, ("/root1", "s3://bucket", str(tmp_path))) == path


def test_rows_without_one_picture(tmp_path):
    output = add_run(tmp_path / "out", [row(0, uri=None), row(1, uri=""), row(2, text=None)])
    done = run(output, tmp_path / "t")
    assert done.exported == 0
    assert done.left_out == {"no media": 2, "no text": 1}

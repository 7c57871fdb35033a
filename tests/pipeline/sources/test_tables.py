"""Tables with other column names, plain lists and image folders become manifests."""

import gzip
import json

import pandas
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from mediamill.pipeline.manifest.manifest import open_manifest
from mediamill.pipeline.sources import text_rows
from mediamill.pipeline.storage import storage
from mediamill.schemas.errors import JobError
from tests.pipeline.sources.drawn import build, made, rows

CSV = 'key,url,caption\na,x.jpg,"one, two"\nb,https://h/y.jpg,"new\nline ""q"""\nc,/abs/z.jpg,\n'


def ids(found):
    return [row["id"] for row in found]


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("t.csv", CSV.encode()),
        ("t.csv", CSV.encode("utf-8-sig")),
        ("t.csv", CSV.encode("utf-16")),
        ("t.csv", CSV.replace("\n", "\r\n").replace("new\r\n", "new\n").encode()),
        ("t.csv.gz", gzip.compress(CSV.encode(), mtime=0)),
        ("t.csv", b'key;url;caption\na;x.jpg;"one, two"\nb;https://h/y.jpg;"new\nline ""q"""\n'
         b"c;/abs/z.jpg;\n\n"),
        ("t.tsv", b'key\turl\tcaption\na\tx.jpg\tone, two\nb\thttps://h/y.jpg\t"new\nline ""q"""\n'
         b"c\t/abs/z.jpg\n"),
        ("t.jsonl", b'{"key":"a","url":"x.jpg","caption":"one, two"}\n\n{"key":"b",'
         b'"url":"https://h/y.jpg","caption":"new\\nline \\"q\\""}\n{"key":"c",'
         b'"url":"/abs/z.jpg"}'),
    ],
)  # fmt: skip
def test_a_table(tmp_path, name, content):
    (tmp_path / name).write_bytes(content)
    found, left_out = made(tmp_path / name, tmp_path / "m", id_column="key")
    assert found == [
        {"id": "a", "uri": f"{tmp_path}/x.jpg", "caption": "one, two"},
        {"id": "b", "uri": "https://h/y.jpg", "caption": 'new\nline "q"'},
        {"id": "c", "uri": "/abs/z.jpg", "caption": None},
    ]
    assert not left_out


def test_a_parquet_table_keeps_its_types(tmp_path):
    frame = pandas.DataFrame(
        {
            "key": [7, 8, 9],
            "url": ["x.jpg", None, "y.jpg"],
            "score": [0.5, 1.5, 2.5],
            "tags": [["a"], [], None],
            "status": ["s", "t", "u"],
        }
    )
    frame.to_parquet(tmp_path / "t.parquet")
    found, left_out = made(tmp_path / "t.parquet", tmp_path / "m", id_column="key")
    assert found == [
        {"id": 7, "uri": f"{tmp_path}/x.jpg", "score": 0.5, "tags": ["a"], "source_status": "s"},
        {"id": 9, "uri": f"{tmp_path}/y.jpg", "score": 2.5, "tags": None, "source_status": "u"},
    ]
    assert left_out == {"a row without an address": 1}
    assert open_manifest(str(tmp_path / "m")).rows == 2


def test_a_plain_list(tmp_path):
    (tmp_path / "l.txt").write_text("# photos\nhttps://h/a.jpg\r\n\nb c.jpg\nhttps://h/a.jpg\n")
    found, _ = made(tmp_path / "l.txt", tmp_path / "m", base=str(tmp_path / "base"))
    assert ids(found) == ["https://h/a.jpg", "b c.jpg", "https://h/a.jpg#2"]
    assert found[1]["uri"] == f"{tmp_path}/base/b c.jpg"


def test_json_values_keep_their_types_and_odd_lines_are_left_out(tmp_path):
    lines = [
        '{"uri": "a", "n": 1, "x": 1, "b": true, "mix": 1, "o": {"k": [1]}, "messages": [{}]}',
        '{"uri": "b", "n": 2, "x": 1.5, "b": null, "mix": "t", "half": "\\ud800"}',
        "{broken", "[1, 2]", '"text"', '{"uri": 5}', '{"n": 1}', '{"uri": "  "}', "[" * 100_000,
        '{"uri": "c", "n": ' + "9" * 30 + "}",
    ]  # fmt: skip
    (tmp_path / "t.jsonl").write_text("\n".join(lines[:-1]))
    found, left_out = made(tmp_path / "t.jsonl", tmp_path / "m")
    assert ids(found) == ["a", "b"]
    assert [row["x"] for row in found] == [1.0, 1.5]
    assert [row["mix"] for row in found] == ["1", "t"]
    assert found[0] | {"o": json.loads(found[0]["o"])} == found[0] | {"o": {"k": [1]}}
    assert (found[0]["n"], found[0]["b"]) == (1, True)
    assert found[1]["half"] == "?"
    assert left_out == {
        "a line that is no JSON": 2,
        "a line that is no JSON object": 2,
        "a row without an address": 3,
    }
    with (tmp_path / "t.jsonl").open("a") as file:  # grown: a value does not fit
        file.write("\n" + lines[-1])
    summary = build(tmp_path / "t.jsonl", tmp_path / "m")
    assert (summary.rows, summary.new) == (3, 1)
    assert rows(tmp_path / "m")[2]["n"] is None
    assert "a value that does not fit its column, which becomes null ('n')" in (
        summary.left_out.reasons
    )


def test_media_lists_pass_through(tmp_path):
    media = [{"type": "image", "uri": "/a.jpg"}, {"type": "video", "uri": "/b.mp4", "end_s": 2.0}]
    (tmp_path / "t.jsonl").write_text(json.dumps({"id": "x", "media": media}))
    found, _ = made(tmp_path / "t.jsonl", tmp_path / "m")
    assert found[0]["media"][1] == {"type": "video", "uri": "/b.mp4", "start_s": None, "end_s": 2.0}
    assert open_manifest(str(tmp_path / "m")).schema.form == "media"


@pytest.mark.parametrize(
    ("name", "content", "options", "reason"),
    [
        ("t.csv", b"", {}, "the table is empty"),
        ("t.csv", b"\n\n", {}, "the table is empty"),
        ("t.csv", b"a,b\n1,2\n", {}, "found no column with the media's addresses, .*: a, b"),
        ("t.csv", b"url,url\n1,2\n", {}, "found two columns 'url'"),
        ("t.csv", b"url,\n1,2\n", {}, "found a column without a name"),
        ("t.csv", b"url\n\xff\xfe\x00\n", {}, "found bytes that are no utf-8 text"),
        ("t.csv", b"url,key\na,1\nb,1\n", {"id_column": "key"}, "ids that occur more than.*'1'"),
        ("t.csv", b"url,key\na,\n", {"id_column": "key"}, "line 2: found no id"),
        ("t.csv", b"url,key\na,1\n", {"id_column": "kye"}, "names column 'kye', .*is 'key' meant"),
        ("t.csv", b"url\n", {}, "found no picture and no video"),
        ("t.csv", b"url\n" + b"x" * 3000 + b"\n", {}, "line 2: found more than 2,000 characters"),
        ("t.csv", b'url\n"' + b"x\n" * 2000, {}, "field larger than field limit"),
        ("t.jsonl", b"{}\n", {}, "found no row, expected some"),
        ("t.jsonl", b"", {}, "found no row, expected some"),
        ("t.parquet", b"PAR1junk", {}, "the table cannot be read"),
        ("t.csv.gz", b"junk", {}, "the table cannot be read"),
        ("t.txt", b"a\n", {"encoding": "no-such"}, "the table cannot be read"),
    ],
)  # fmt: skip
def test_a_table_that_cannot_be_read_is_an_error(
    tmp_path, monkeypatch, name, content, options, reason
):
    monkeypatch.setattr(text_rows, "_MAX_LINE", 2000)
    (tmp_path / name).write_bytes(content)
    with pytest.raises(JobError, match=reason) as error:
        build(tmp_path / name, tmp_path / "m", **options)
    assert len(str(error.value)) < 2000
    assert not storage.list_files(storage.resolve(str(tmp_path / "m")))


def test_pictures_in_a_column_are_left_to_the_job(tmp_path):
    image = pa.array([{"bytes": b"x", "path": "a.jpg"}])
    pq.write_table(pa.table({"image": image}), tmp_path / "t.parquet")
    with pytest.raises(JobError, match="give the table to the job without this command"):
        build(tmp_path / "t.parquet", tmp_path / "m")


def test_rows_of_several_tables(tmp_path):
    (tmp_path / "a.csv").write_text("url,n\nx,1\n")
    (tmp_path / "b.csv").write_text("n,url,extra\n2,x,e\n")
    (tmp_path / "readme.txt").write_text("not a list")
    found, _ = made(tmp_path, tmp_path.parent / "m-of-tables")
    assert ids(found) == ["a.csv:x", "b.csv:x"]
    assert [row["extra"] for row in found] == [None, "e"]
    (tmp_path / "c.csv").write_text("url,n\nz,3,4,5\ny,3\n")
    summary = build(tmp_path, tmp_path.parent / "m-of-tables")
    assert (summary.rows, summary.new) == (3, 1)
    assert "a row with more fields than the header" in summary.left_out.reasons


def test_equal_ids_in_two_tables_are_an_error(tmp_path):
    for name in "ab":
        (tmp_path / f"{name}.csv").write_text("id,url\n1,x\n")
    with pytest.raises(JobError, match=r"b.csv: found ids that occur more than once"):
        build(tmp_path, tmp_path.parent / "m-of-equal")


@pytest.mark.parametrize("kind", ["csv", "jsonl", "parquet"])
def test_an_image_folder(tmp_path, kind):
    for split, name in (("train", "a.jpg"), ("train", "sub/b.jpg"), ("test", "a.jpg")):
        path = tmp_path / "d" / split / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"x")
    frames = {
        "train": pandas.DataFrame({"file_name": ["a.jpg", "sub/b.jpg"], "text": ["one", "two"]}),
        "test": pandas.DataFrame({"file_name": ["a.jpg"], "text": ["three"]}),
    }
    for split, frame in frames.items():
        path = tmp_path / "d" / split / f"metadata.{kind}"
        if kind == "csv":
            frame.to_csv(path, index=False)
        elif kind == "jsonl":
            frame.to_json(path, orient="records", lines=True)
        else:
            frame.to_parquet(path)
    found, _ = made(tmp_path / "d", tmp_path / "m")
    assert found[1] == {
        "id": "train/sub/b.jpg",
        "uri": f"{tmp_path}/d/train/sub/b.jpg",
        "source_text": "two",
    }
    assert ids(found) == ["train/a.jpg", "train/sub/b.jpg", "test/a.jpg"]


def test_folders_as_labels(tmp_path):
    for name in ("cat/a.jpg", "dog/b.jpg", "top.jpg"):
        (tmp_path / "d" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "d" / name).write_bytes(b"x")
    found, _ = made(tmp_path / "d", tmp_path / "m", kind="imagefolder")
    assert {row["id"]: row["label"] for row in found} == {
        "cat/a.jpg": "cat", "dog/b.jpg": "dog", "top.jpg": None
    }  # fmt: skip

"""Captions of a WebDataset's members lie in tar files that a trainer can read beside the source."""

import io
import json
import tarfile

import pytest

from mediamill.pipeline.export import captions
from mediamill.pipeline.export.export import ExportOptions, export
from mediamill.pipeline.storage import storage
from tests.pipeline.export.world import add_run, row


def run(output, target, **options):
    options = {"media": False, "rows_per_file": 3, **options}
    return export(ExportOptions(str(output), str(target), "webdataset", **options))


@pytest.fixture
def members(tmp_path):
    """Two source shards, and a row for each of their members."""
    rows = []
    for shard, keys in (("a/000.tar", ["x", "sub/y", "z.w"]), ("a/001.tar", ["x", "Q", "r" * 130])):
        path = tmp_path / "source" / shard
        path.parent.mkdir(parents=True, exist_ok=True)
        with tarfile.open(path, "w") as tar:
            for key in keys:
                entry = tarfile.TarInfo(f"{key}.jpg")
                entry.size = 100
                tar.addfile(entry, io.BytesIO(b"\xff" * 100))
                first = tar.offset - 512
                number = len(rows)
                uri = f"range:{first}-{first + 99}:{path}"
                rows.append(row(number, uri=uri, tags=[key]))
    return rows


def keys(path):
    """The keys of a tar file as the webdataset library groups them, in their order."""
    with tarfile.open(path) as tar:
        names = [name.rpartition("/") for name in tar.getnames()]
    return list(dict.fromkeys(f"{a}{b}{c.partition('.')[0]}" for a, b, c in names))


def texts(path):
    with tarfile.open(path) as tar:
        return {
            json.loads(tar.extractfile(name).read())["id"]
            for name in tar.getnames()
            if name.endswith(".json")
        }


def test_shards_have_the_names_and_the_order_of_the_source(members, tmp_path):
    output = tmp_path / "out"
    # Tasks finish in any order, and a later run adds the rest of a shard.
    add_run(output, [members[n] for n in (4, 0, 2)])
    roots = (str(tmp_path / "source"),)
    assert run(output, tmp_path / "w", roots=roots).exported == 3
    assert texts(tmp_path / "w" / "a" / "000.tar") == {"row-0000", "row-0002"}
    add_run(output, [members[n] for n in (5, 1, 3)], 3)
    done = run(output, tmp_path / "w", roots=roots)
    assert (done.new, done.exported) == (3, 6)
    for shard, rows in (("a/000.tar", range(3)), ("a/001.tar", range(3, 6))):
        assert texts(tmp_path / "w" / shard) == {f"row-{n:04}" for n in rows}
        with tarfile.open(tmp_path / "w" / shard) as tar:
            first = [name for name in tar.getnames() if name.endswith(".json")]
            ids = [json.loads(tar.extractfile(name).read())["id"] for name in first]
        assert ids == [f"row-{n:04}" for n in rows]
    before = (tmp_path / "w/a/000.tar").read_bytes()
    assert run(output, tmp_path / "w", roots=roots).new == 0
    assert (tmp_path / "w/a/000.tar").read_bytes() == before
    done = run(output, tmp_path / "w", roots=roots, where="id < 'row-0003'", overwrite=True)
    assert done.exported == 3
    assert not (tmp_path / "w/a/001.tar").exists()


def test_keys_are_those_of_the_source(members, tmp_path):
    part = tmp_path / "part"
    names = ["x", "sub/y", "z", "Q", "r" * 130, "é"]
    lines = [["s.tar", 512 * n, name, f"text {n}", "{}"] for n, name in enumerate(names)]
    lines.append(["s.tar", 9999, "x", "another medium of the same key", "{}"])
    part.write_text("".join(f"{json.dumps(line)}\n" for line in reversed(lines)))
    target = storage.resolve(str(tmp_path / "t"))
    captions.write_shards([part], target)
    assert keys(tmp_path / "t" / "s.tar") == names
    captions.remove_shards(target)
    assert not (tmp_path / "t" / "s.tar").exists()

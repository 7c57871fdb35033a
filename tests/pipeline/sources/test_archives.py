"""Members of tar and zip archives are listed in place; their URIs give exactly their bytes."""

import io
import random
import struct
import tarfile
import zipfile

import fsspec
import pytest

from mediamill.pipeline.sources.random_access import RandomAccessFile
from mediamill.pipeline.storage import storage
from mediamill.schemas.errors import JobError
from tests.pipeline.sources.drawn import build, made, read, rows, tar_bytes, zip_bytes

LONG = "d/" * 80 + "x" * 120 + ".jpg"


def link(name, kind):
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, "0.jpg"
    return info


def folder(name):
    info = tarfile.TarInfo(name)
    info.type = tarfile.DIRTYPE
    return info


@pytest.mark.parametrize("form", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_a_shard(tmp_path, form):
    names = ["0.jpg", "../up.jpg", "/abs.png", "a b.jpg", "sub/1.mp4", "2.seg.png"]
    if form != tarfile.USTAR_FORMAT:
        names += [LONG, "new\nline.jpg", "ü.jpg"]
    media = [(name, name.encode() * 50) for name in names]
    others = [
        folder("sub"), link("s.jpg", tarfile.SYMTYPE), link("h.jpg", tarfile.LNKTYPE),
        link("f.jpg", tarfile.FIFOTYPE), (".hidden/a.jpg", b"x"), ("._a.jpg", b"x"),
        ("__MACOSX/a.jpg", b"x"), ("empty.jpg", b""), ("a.bin", b"x"),
    ]  # fmt: skip
    (tmp_path / "a.tar").write_bytes(tar_bytes([*media, *others], form))
    found, left_out = made(tmp_path / "a.tar", tmp_path / "m")
    assert [row["id"] for row in found] == [f"a.tar/{name}" for name in names]
    for row, (_, data) in zip(found, media, strict=True):
        assert read(row["uri"], tmp_path) == data
    assert left_out == {
        "a link in an archive": 2,
        "a device or pipe in an archive": 1,
        "hidden or temporary": 3,
        "an empty member": 1,
        "neither a picture nor a video by its suffix": 1,
    }


def test_texts_of_a_group_become_columns(tmp_path):
    members = []
    for key in ("k/0", "k/1", "k/2"):
        group = [
            (f"{key}.JPG", key.encode()),
            (f"{key}.txt", f"caption {key}\n".encode()),
            (f"{key}.json", b'{"a": "\xc3\xbc\xff"}'),
            (f"{key}.cls", b"7"),
        ]
        random.Random(key).shuffle(group)
        members += group
    members += [("alone.txt", b"x"), ("3.png", b"p"), ("4.caption", b"late"), ("4.png", b"q")]
    (tmp_path / "a.tar").write_bytes(tar_bytes(members))
    found, _ = made(tmp_path / "a.tar", tmp_path / "m")
    assert [row["key"] for row in found] == ["k/0", "k/1", "k/2", "3", "4"]
    assert found[1]["txt"] == "caption k/1"
    assert found[1]["json"] == '{"a": "ü\ufffd"}'
    assert found[1]["cls"] == "7"
    assert found[3]["txt"] is None
    assert found[4]["caption"] == "late"


def test_equal_names_and_names_that_are_no_text(tmp_path):
    data = tar_bytes(
        [("a.jpg", b"1"), ("a.jpg", b"2"), ("b\udcff.jpg", b"3")], tarfile.GNU_FORMAT,
        errors="surrogateescape",
    )  # fmt: skip
    (tmp_path / "a.tar").write_bytes(data)
    found, _ = made(tmp_path / "a.tar", tmp_path / "m")
    assert {row["id"]: read(row["uri"], tmp_path) for row in found} == {
        "a.tar/a.jpg": b"1",
        "a.tar/a.jpg#2": b"2",
        "a.tar/b\\xff.jpg": b"3",
    }


def test_a_sparse_member_is_left_out(tmp_path):
    info = tarfile.TarInfo("s.jpg")
    header = bytearray(info.tobuf(tarfile.GNU_FORMAT))
    header[156:157] = b"S"
    header[386:410] = b"%011o\0%011o\0" % (0, 0)  # one empty piece
    header[483:495] = b"%011o\0" % 10_000_000
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    (tmp_path / "a.tar").write_bytes(bytes(header) + tar_bytes([("0.jpg", b"x")]))
    found, left_out = made(tmp_path / "a.tar", tmp_path / "m")
    assert [row["id"] for row in found] == ["a.tar/0.jpg"]
    assert left_out == {"a sparse member, whose bytes are not in one piece": 1}


def header_with(offset, data):
    """A shard of three members whose second header is changed."""
    shard = bytearray(tar_bytes([(f"{n}.jpg", b"x" * 100) for n in range(3)], tarfile.USTAR_FORMAT))
    shard[1024 + offset : 1024 + offset + len(data)] = data
    block = shard[1024:1536]
    block[148:156] = b" " * 8
    shard[1024 + 148 : 1024 + 156] = b"%06o\0 " % sum(block)
    return bytes(shard)


@pytest.mark.parametrize(
    "shard",
    [
        tar_bytes([("0.jpg", b"x" * 100), ("1.jpg", b"x" * 9999)])[:4000],  # inside a member
        tar_bytes([("0.jpg", b"x" * 100), ("1.jpg", b"x" * 9999)])[:1200],  # inside a header
        header_with(0, b"\xff")[:148] + header_with(0, b"\xff")[148:1024] + b"junk" * 300,
        header_with(124, b"%011o\0" % 10**9),  # longer than the file
        header_with(124, b"\xff" + b"\xff" * 10 + b"\x00"),  # -256
        header_with(124, b"\xff" * 12),  # -1
        header_with(124, b"\x80" + b"\xff" * 11),  # huge
        header_with(156, b"x")[:1536] + b"9" * 600,  # an extended header that is none
    ],
)
def test_of_a_damaged_shard_what_is_whole_is_listed(tmp_path, shard):
    (tmp_path / "a.tar").write_bytes(shard)
    found, left_out = made(tmp_path / "a.tar", tmp_path / "m")
    assert [row["id"] for row in found] == ["a.tar/0.jpg"]
    assert left_out["the archive is damaged or cut off after this member"] == 1


def test_a_header_that_claims_gigabytes_takes_no_memory(tmp_path):
    info = tarfile.TarInfo("x")
    info.type, info.size = tarfile.XHDTYPE, 8 * 1024**3
    with (tmp_path / "a.tar").open("wb") as file:
        file.write(tar_bytes([("0.jpg", b"x")], tarfile.USTAR_FORMAT)[:1024])
        file.write(info.tobuf(tarfile.GNU_FORMAT))
        file.truncate(9 * 1024**3)
    found, left_out = made(tmp_path / "a.tar", tmp_path / "m")
    assert len(found) == 1
    assert left_out == {"the archive is damaged or cut off after this member": 1}


@pytest.mark.parametrize("data", [b"", b"no archive at all" * 100, bytes(10_240)])
def test_what_holds_nothing_is_an_error(tmp_path, data):
    for name in ("a.tar", "a.zip"):
        (tmp_path / name).write_bytes(data)
        with pytest.raises(JobError, match="found no picture and no video"):
            build(tmp_path / name, tmp_path / "m")
    assert not rows(tmp_path / "m")


def test_compressed_shards_are_refused(tmp_path):
    (tmp_path / "a.tar.gz").write_bytes(b"")
    with pytest.raises(JobError, match="found a compressed tar archive"):
        build(tmp_path / "a.tar.gz", tmp_path / "m")


def test_shards_in_a_bucket_grow(s3, tmp_path):
    fs = fsspec.filesystem("s3", use_listings_cache=False)
    for shard in range(3):
        members = [(f"{shard}{n}.jpg", b"%d" % n * 999) for n in range(20)]
        fs.pipe_file(f"{s3}/shards/{shard:03}.tar", tar_bytes(members))
    found, _ = made(f"{s3}/shards/*.tar", tmp_path / "m")
    assert len(found) == 60
    assert read(found[25]["uri"], tmp_path) == b"5" * 999
    first = (tmp_path / "m" / "part-000000.parquet").read_bytes()
    fs.pipe_file(f"{s3}/shards/000a.tar", tar_bytes([("new.jpg", b"1")]))
    summary = build(f"{s3}/shards/*.tar", tmp_path / "m")
    assert (summary.rows, summary.new, summary.gone) == (61, 1, 0)
    assert (tmp_path / "m" / "part-000000.parquet").read_bytes() == first
    fs.pipe_file(f"{s3}/shards/001.tar", tar_bytes([("0.jpg", b"1")]))
    with pytest.raises(JobError, match=r"001.tar has changed since its members were listed"):
        build(f"{s3}/shards/*.tar", tmp_path / "m")
    assert len(rows(tmp_path / "m")) == 61


def test_the_pass_over_a_shard_reads_headers_only(tmp_path):
    members = [(f"{n}.jpg", bytes(300_000)) for n in range(20)]
    (tmp_path / "a.tar").write_bytes(tar_bytes(members))
    place = storage.resolve(str(tmp_path / "a.tar"))
    with RandomAccessFile(place) as file, tarfile.TarFile(fileobj=file) as tar:
        assert len(tar.getmembers()) == 20
        assert file.bytes_read < 25 * 17_000


# ---- zip --------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_an_archive(tmp_path, method):
    names = ["0.jpg", "../up.jpg", "ü/new\nline.png", "a b.mp4", LONG]
    members = [(name, name.encode() * 500) for name in names]
    data = zip_bytes([*members, ("folder/", b""), ("e.jpg", b""), (".a.jpg", b"x"), ("t.txt", b"")],
                     method)  # fmt: skip
    (tmp_path / "a.zip").write_bytes(data)
    (tmp_path / "sfx.zip").write_bytes(b"#!/bin/sh\n" * 50 + data)  # behind other bytes
    for name in ("a.zip", "sfx.zip"):
        found, left_out = made(tmp_path / name, tmp_path / f"m-{name}")
        assert [row["id"] for row in found] == [f"{name}/{one}" for one in names]
        for row, (_, content) in zip(found, members, strict=True):
            assert read(row["uri"], tmp_path) == content
        assert left_out.pop("an empty member") == 1
        assert left_out == {
            "hidden or temporary": 1,
            "neither a picture nor a video by its suffix": 1,
        }


def test_zip64_and_streamed_archives(tmp_path):
    class Unseekable(io.RawIOBase):
        def __init__(self, file):
            self.file = file

        def writable(self):
            return True

        def write(self, data):
            return self.file.write(data)

    with (
        (tmp_path / "a.zip").open("wb") as file,
        zipfile.ZipFile(Unseekable(file), "w", zipfile.ZIP_DEFLATED) as archive,
    ):
        for number in range(3):
            with archive.open(f"{number}.jpg", "w", force_zip64=True) as member:
                member.write(b"%d" % number * 5000)
    found, _ = made(tmp_path / "a.zip", tmp_path / "m")
    assert [read(row["uri"], tmp_path)[:1] for row in found] == [b"0", b"1", b"2"]


def test_members_that_cannot_be_read_in_place_are_left_out(tmp_path):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("ok.jpg", b"ok")
        archive.writestr("bz.jpg", b"x" * 99, zipfile.ZIP_BZIP2)
        link_info = zipfile.ZipInfo("link.jpg")
        link_info.external_attr = 0o120777 << 16
        archive.writestr(link_info, "ok.jpg")
        archive.writestr("locked.jpg", b"secret")
    data = bytearray(buffer.getvalue())
    entry = data.rfind(b"PK\1\2")
    data[entry + 8] |= 1
    (tmp_path / "a.zip").write_bytes(data)
    found, left_out = made(tmp_path / "a.zip", tmp_path / "m")
    assert [row["id"] for row in found] == ["a.zip/ok.jpg"]
    assert left_out == {
        "a member compressed by method 12, expected stored or deflated": 1,
        "a link in an archive": 1,
        "an encrypted member": 1,
    }


def with_entries(data, change):
    """Changes the fields offset, packed and size of each entry of the central directory."""
    data = bytearray(data)
    at = data.find(b"PK\1\2")
    number = 0
    while at >= 0:
        values = struct.unpack_from("<2L", data, at + 20)
        offset = struct.unpack_from("<L", data, at + 42)[0]
        packed, size, offset = change(number, *values, offset)
        struct.pack_into("<2L", data, at + 20, packed, size)
        struct.pack_into("<L", data, at + 42, offset)
        at, number = data.find(b"PK\1\2", at + 1), number + 1
    return bytes(data)


@pytest.mark.parametrize(
    ("change", "kept"),
    [
        (lambda n, packed, size, offset: (packed, size, 0), []),  # all the same bytes
        (lambda n, packed, size, offset: (2000, 2000, offset) if n == 0 else (packed, size, offset),
         ["2.jpg"]),
        (lambda n, packed, size, offset: (packed, size, offset + 3 * (n == 1)), ["0.jpg", "2.jpg"]),
        (lambda n, packed, size, offset: (packed, size + (n == 1), offset), ["0.jpg", "2.jpg"]),
        (lambda n, packed, size, offset: (packed, size, 10**9 if n == 1 else offset),
         ["0.jpg", "2.jpg"]),
        (lambda n, packed, size, offset: (10**9 if n == 2 else packed, 10**9 if n == 2 else size,
                                          offset), ["0.jpg", "1.jpg"]),
    ],
)  # fmt: skip
def test_a_directory_that_lies(tmp_path, change, kept):
    data = zip_bytes([(f"{n}.jpg", b"%d" % n * 1000) for n in range(3)])
    (tmp_path / "a.zip").write_bytes(with_entries(data, change))
    if not kept:
        with pytest.raises(JobError, match="overlaps another"):
            build(tmp_path / "a.zip", tmp_path / "m")
        return
    found, _ = made(tmp_path / "a.zip", tmp_path / "m")
    assert [row["id"].removeprefix("a.zip/") for row in found] == kept
    for row in found:
        assert read(row["uri"], tmp_path) == row["id"][6:7].encode() * 1000


def test_archives_that_are_cut(tmp_path):
    data = zip_bytes([(f"{n}.jpg", b"%d" % n * 1000) for n in range(3)])
    for cut in (len(data) - 5, len(data) // 2, 10):
        (tmp_path / "a.zip").write_bytes(data[:cut])
        with pytest.raises(JobError, match="damaged or cut off"):
            build(tmp_path / "a.zip", tmp_path / "m")

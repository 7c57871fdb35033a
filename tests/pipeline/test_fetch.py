"""Bytes from files, S3 and HTTP servers, good and bad."""

import http.server
import os
import threading
import time
from collections import Counter
from typing import ClassVar

import fsspec
import pyarrow as pa
import pytest

from pipeline.fetch import Fetch, FetchRules, fetch
from pipeline.records import MEDIA_BYTES, fetched_schema, read_schema
from schemas import columns as c
from schemas.errors import RowError
from schemas.manifest import check_manifest_schema

DATA = bytes(range(256)) * 40


class Handler(http.server.BaseHTTPRequestHandler):
    """Answers by path; `seen` counts the requests for each."""

    seen: ClassVar[Counter[str]] = Counter()
    protocol_version = "HTTP/1.0"

    def log_message(self, *arguments):
        pass

    def do_GET(self):
        name = self.path.partition("?")[0].strip("/")
        self.seen[name] += 1
        if name.isdigit():
            self.send_error(int(name))
        elif name == "busy-once" and self.seen[name] == 1:
            self.send_error(503)
        elif (name == "cut-once" and self.seen[name] == 1) or name == "always-cut":
            self.answer(DATA[:100], stated=len(DATA))
        elif name == "endless":
            self.send_response(200)
            self.end_headers()
            while True:
                self.wfile.write(DATA)
        elif name == "slow":
            self.send_response(200)
            self.end_headers()
            for _ in range(100):
                self.wfile.write(b"x")
                self.wfile.flush()
                time.sleep(0.1)
        else:
            self.answer(DATA, stated=None if name == "unstated" else len(DATA))

    def answer(self, data, stated):
        self.send_response(200)
        if stated is not None:
            self.send_header("Content-Length", str(stated))
        self.end_headers()
        self.wfile.write(data)


class Server(http.server.ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request, client_address):
        pass  # clients hang up on the endless answers, as they should


@pytest.fixture(scope="module")
def site():
    server = Server(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_address[1]}"
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.fixture
def rules(tmp_path):
    return FetchRules(100_000, 5.0, str(tmp_path), pause_s=0.01)


def code_of(uri, rules):
    with pytest.raises(RowError) as error:
        fetch(uri, rules)
    return error.value.code.value


def test_files_by_path_url_and_relative_to_the_base(tmp_path, rules):
    (tmp_path / "a b#%.bin").write_bytes(DATA)
    for uri in (f"{tmp_path}/a b#%.bin", f"file://{tmp_path}/a b#%.bin", "a b#%.bin"):
        assert fetch(uri, rules) == DATA


def test_what_is_no_file(tmp_path, rules):
    (tmp_path / "empty").write_bytes(b"")
    (tmp_path / "large").write_bytes(bytes(100_001))
    os.mkfifo(tmp_path / "pipe")
    assert code_of("missing", rules) == "fetch_not_found"
    assert code_of("empty/below", rules) == "fetch_not_found"
    assert code_of("", rules) == code_of(None, rules) == "fetch_not_found"
    assert code_of("empty", rules) == "media_empty"
    assert code_of("large", rules) == "fetch_too_large"
    assert code_of("pipe", rules) == code_of(".", rules) == code_of("/dev/zero", rules)
    assert code_of("pipe", rules) == "fetch_denied"
    for uri in ("ftp://a/b", "data:text/plain,x://", "simplecache::s3://a/b", "memory://x"):
        assert code_of(uri, rules) in ("fetch_denied", "fetch_not_found")


def test_s3(s3, rules):
    fs = fsspec.filesystem("s3", use_listings_cache=False)
    fs.pipe_file(f"{s3}/fetch/a.bin", DATA)
    fs.pipe_file(f"{s3}/fetch/empty", b"")
    fs.pipe_file(f"{s3}/fetch/large", bytes(100_001))
    assert fetch(f"{s3}/fetch/a.bin", rules) == DATA
    assert code_of(f"{s3}/fetch/none", rules) == "fetch_not_found"
    assert code_of("s3://no-such-bucket-here/none", rules) == "fetch_not_found"
    assert code_of(f"{s3}/fetch/empty", rules) == "media_empty"
    assert code_of(f"{s3}/fetch/large", rules) == "fetch_too_large"


def test_a_large_object_comes_in_parts(s3, rules, monkeypatch):
    monkeypatch.setattr("pipeline.fetch._FIRST_BYTES", 1000)
    fsspec.filesystem("s3").pipe_file(f"{s3}/fetch/parts", DATA)
    assert fetch(f"{s3}/fetch/parts", rules) == DATA


def test_http(site, rules):
    assert fetch(f"{site}/a?token=secret", rules) == DATA
    assert fetch(f"{site}/unstated", rules) == DATA


@pytest.mark.parametrize("name", ["busy-once", "cut-once"])
def test_what_may_pass_is_tried_again(site, rules, name):
    assert fetch(f"{site}/{name}", rules) == DATA
    assert Handler.seen[name] == 2


@pytest.mark.parametrize(
    ("name", "code", "requests"),
    [
        ("404", "fetch_not_found", 1),
        ("403", "fetch_denied", 1),
        ("401", "fetch_denied", 1),
        ("500", "fetch_failed", 4),
        ("always-cut", "fetch_failed", 4),
        ("endless", "fetch_too_large", 1),
    ],
)
def test_http_failures_by_kind(site, rules, name, code, requests):
    assert code_of(f"{site}/{name}", rules) == code
    assert Handler.seen[name] == requests


def test_a_trickle_of_bytes_times_out(site, tmp_path):
    started = time.monotonic()
    assert code_of(f"{site}/slow", FetchRules(100_000, 0.5, str(tmp_path))) == "fetch_timeout"
    assert time.monotonic() - started < 5


def test_nobody_listens(rules):
    assert code_of("http://127.0.0.1:9/a", rules) == "fetch_failed"


def test_messages_have_no_secrets(site, rules):
    for name in ("404", "403", "500"):
        with pytest.raises(RowError) as error:
            fetch(f"{site}/{name}?X-Signature=SECRET", rules)
        assert "SECRET" not in error.value.message


def test_the_stage_keeps_rows_and_marks_the_bad_ones(tmp_path, rules):
    (tmp_path / "a").write_bytes(DATA)
    (tmp_path / "b").write_bytes(b"b")
    media = [
        [{"type": None, "uri": "a"}, {"type": None, "uri": "b"}],
        [{"type": None, "uri": "a"}, {"type": None, "uri": "none"}],
        [],
        None,
        [{"type": None, "uri": "a"}],
    ]
    part = pa.struct([("type", pa.string()), ("uri", pa.string())])
    source = pa.table({"id": list("vwxyz"), "media": pa.array(media, pa.list_(part))})
    manifest = check_manifest_schema(source.schema, "m")
    schema = read_schema(manifest)
    table = manifest.normalise(source)
    for field in schema:
        if field.name not in table.column_names:
            table = table.append_column(field, pa.nulls(5, field.type))
    earlier = pa.array([None, None, None, None, "prompt_invalid"])
    table = table.set_column(table.column_names.index(c.ERROR_CODE), c.ERROR_CODE, earlier)
    found = Fetch(manifest, rules)(table)
    assert found.schema.equals(fetched_schema(manifest))
    assert found["id"].to_pylist() == list("vwxyz")
    assert found[MEDIA_BYTES].to_pylist() == [[DATA, b"b"], None, [], [], []]
    assert found[c.ERROR_CODE].to_pylist() == [
        None,
        "fetch_not_found",
        None,
        None,
        "prompt_invalid",
    ]

"""Bytes of media from paths and URLs: which are read, which are refused, and the size limit."""

import base64
import http.server
import threading
from pathlib import Path
from urllib.parse import quote

import fsspec
import pytest

from mediamill.model.media.media_source import SourceRules, read_source

ALL = SourceRules()
DATA = bytes(range(256)) * 10


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "a picture 100% #1?.png"
    path.write_bytes(DATA)
    return path


def test_local_files(file, monkeypatch):
    monkeypatch.chdir(file.parent)
    for source in (file, str(file), file.name, f"file://{file}", file.as_uri()):
        assert read_source(source, ALL) == DATA
    monkeypatch.setenv("HOME", str(file.parent))
    assert read_source(f"~/{file.name}", ALL) == DATA


def test_s3(s3):
    fsspec.filesystem("s3").pipe_file(f"{s3}/media/a.png", DATA)
    assert read_source(f"{s3}/media/a.png", ALL) == DATA
    with pytest.raises(ValueError, match=r"s3://mill/media/b\.png: found no such file"):
        read_source(f"{s3}/media/b.png", ALL)
    with pytest.raises(ValueError, match="found at least 2560 bytes, expected at most 2559"):
        read_source(f"{s3}/media/a.png", SourceRules(max_bytes=2559))


@pytest.mark.parametrize(
    "url",
    [
        "data:image/png;base64," + base64.b64encode(DATA).decode(),
        "DATA:;BASE64," + base64.b64encode(DATA).decode(),
        "data:;base64," + quote(base64.b64encode(DATA).decode(), safe=""),
        "data:image/png;base64," + base64.encodebytes(DATA).decode(),
        "data:," + "".join(f"%{byte:02x}" for byte in DATA),
    ],
)
def test_data_urls(url):
    assert read_source(url, SourceRules(max_bytes=len(DATA))) == DATA
    with pytest.raises(ValueError, match=r"a data URL: found .*2559"):
        read_source(url, SourceRules(max_bytes=2559))


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("data:image/png;base64", "without a comma"),
        ("data:image/png;base64,a!b=", "a data URL: found no base64"),
        ("data:image/png;base64,é", "a data URL: found no base64"),
        ("data:image/png;base64,", "a data URL: it is empty"),
    ],
)
def test_wrong_data_urls(url, words):
    with pytest.raises(ValueError, match=words):
        read_source(url, ALL)


class Handler(http.server.BaseHTTPRequestHandler):
    """Serves DATA at /file, without ranges; /endless never ends, and does not say its size."""

    def do_HEAD(self):
        self.head()

    def head(self):
        self.send_response(404 if self.path.startswith("/none") else 200)
        if self.path == "/file":
            self.send_header("Content-Length", str(len(DATA)))
        self.end_headers()

    def do_GET(self):
        self.head()
        self.wfile.write(DATA)
        try:
            while self.path == "/endless":
                self.wfile.write(DATA)
        except OSError:
            pass

    def log_message(self, *_args):
        pass


@pytest.fixture(scope="module")
def server():
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as found:
        threading.Thread(target=found.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{found.server_port}"
        found.shutdown()


def test_http(server):
    assert read_source(f"{server}/file", ALL) == DATA
    with pytest.raises(ValueError, match=r"/none: found no such file"):
        read_source(f"{server}/none?token=x", ALL)
    with pytest.raises(ValueError, match="found at least 2560 bytes, expected at most 100"):
        read_source(f"{server}/file", SourceRules(max_bytes=100))
    with pytest.raises(ValueError, match="expected at most 3000000"):
        read_source(f"{server}/endless", SourceRules(max_bytes=3_000_000))


def test_a_file_may_not_be_too_large(file):
    assert read_source(file, SourceRules(max_bytes=2560)) == DATA
    with pytest.raises(ValueError, match="found at least 2560 bytes, expected at most 2559"):
        read_source(file, SourceRules(max_bytes=2559))


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ("none.png", "none.png: found no such file"),
        (".", "found a folder or device, expected a file"),
        ("/dev/zero", "found a folder or device, expected a file"),
        ("a\0b", "cannot be read"),
        ("x" * 5000, "cannot be read"),
        ("simplecache::http://a/b", "the scheme simplecache is not allowed"),
        ("https::file:///etc/passwd", "chain of URLs"),
        ("ftp://u:secret@host/a?token=secret", r"^ftp://host/a: the scheme ftp is not allowed"),
    ],
)
def test_what_is_refused(source, words, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=words) as caught:
        read_source(source, ALL)
    assert "secret" not in str(caught.value)


def test_only_what_is_allowed_is_read(file):
    only_data = SourceRules(schemes=("data",))
    for source in (file, str(file), file.as_uri(), "s3://a/b", "HTTP://a/b"):
        with pytest.raises(ValueError, match="is not allowed, expected data"):
            read_source(source, only_data)
    assert read_source("data:,abc", only_data) == b"abc"
    with pytest.raises(ValueError, match="scheme data is not allowed, expected file"):
        read_source("data:,abc", SourceRules(schemes=("file",)))
    with pytest.raises(ValueError, match="expected a tuple"):
        SourceRules(schemes="file")  # type: ignore[arg-type]


def test_an_empty_file_is_refused(tmp_path):
    Path(tmp_path / "a.png").touch()
    with pytest.raises(ValueError, match=r"a\.png: the file is empty"):
        read_source(tmp_path / "a.png", ALL)

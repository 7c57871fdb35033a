"""Secrets in URLs and in messages: none is shown, and what is no secret stays."""

import subprocess
import sys
import time

import pytest

from mediamill.model.checkpoint.folder import Folder
from mediamill.model.errors import ModelError
from mediamill.model.urls import (
    decoded_path,
    error_text,
    is_url,
    local_path,
    redact,
    redact_text,
    safe_text,
)
from mediamill.pipeline.storage import storage

SECRETS = [
    ("s3://key:SECRET@bucket/a", "s3://bucket/a"),
    ("s3://AKIAKEY:ab/cdSECRET@bucket/model", "s3://bucket/model"),
    ("s3://AKIAKEY:12/cdSECRET/+ef@bucket/model", "s3://bucket/model"),
    ("nope://user:pa/ssSECRET@host/model", "nope://host/model"),
    ("nope://user:SECRET@host", "nope://host"),
    ("https://SECRET@github.com/a", "https://github.com/a"),
    ("https://user:SECRET@host:8080/a?x=y#part", "https://host:8080/a"),
    ("https://user:SECRET@[::1]:8080/a", "https://[::1]:8080/a"),
    ("https://host/a.jpg?X-Amz-Signature=SECRET#part", "https://host/a.jpg"),
    ("https://account.blob/a.jpg?sv=1&sig=SECRET%2F", "https://account.blob/a.jpg"),
    ("https://host?token=SECRET", "https://host"),
    ("https://host/a#SECRET", "https://host/a"),
    ("HTTPS://user:SECRET@host/a", "HTTPS://host/a"),
    ("simplecache::s3://key:SE/CRET@bucket/a", "simplecache::s3://bucket/a"),
    (
        "zip://a.jpg::https://user:SECRET@host/b.zip?sig=SECRET",
        "zip://a.jpg::https://host/b.zip",
    ),
    (
        "zip://a::simplecache::https://user:SE/CRET@host/b?token=SECRET",
        "zip://a::simplecache::https://host/b",
    ),
    # The end of the password cannot be told.
    ("s3://key:SECRET@SECRET/SECRET@bucket/a", "s3://..."),
    ("s3://key:SE?CRET@bucket/a", "s3://..."),
    ("https://user:SECRET@host/a?mail=SECRET@host", "https://..."),
    ("https://user:SE@SE?CRET@host/a", "https://..."),
    ("s3://key:SE://CRET@bucket/a", "s3://..."),
    ("s3://key:SECRET", "s3://..."),  # cut off before its @
    ("https://user%3ASECRET%40host/a", "https://..."),
    # URLs in the path or the query of another one.
    ("https://archive/web/https://user:SECRET@host/a", "https://archive/web/https://host/a"),
    ("https://proxy/https%3A%2F%2Fuser%3ASECRET%40host%2Fa", "https://proxy/..."),
    ("https://host/login?next=https://user:SECRET@other/", "https://host/login"),
    ("s3://bucket/a,https://user:SECRET@host/b", "s3://bucket/a,https://host/b"),
    ("data:image/png;base64,SECRET//+=", "data:image/png;base64,..."),
    ("data:,SECRET", "data:,..."),
]
PLAIN = [
    "s3://bucket/a/b.jpg",
    "s3://bucket/a@b:c.jpg",
    "https://host:8080/a@b.jpg",
    "https://host/a/10:30/b@c",
    "https://[::1]:8080/a@b",
    "https://[::1]/a",
    "hf://owner/name@main/config.json",
    "ray://host:10001",
    "memory://some/model",
    "simplecache::s3://bucket/a",
    "zip://a.jpg::https://host/b.zip",
]
PATHS = [
    "/data/a?b#c.jpg",
    "relative/a@b:c.jpg",
    "file:///data/a?b.jpg",
    "C:/data/a.jpg",
    "a::b.jpg",
    "data",
    "data:set/a.jpg",
    "",
]


@pytest.mark.parametrize(("url", "expected"), SECRETS)
def test_no_secret_is_shown(url, expected):
    assert redact(url) == storage.redact(url) == expected
    text = f"GET {url} failed ('{url}'): <{url}>\n{url}"
    assert redact_text(text) == storage.redact_text(text) == text.replace(url, expected)
    assert "SECRET" not in redact_text(text)
    assert redact(expected) == expected or expected.endswith("...")


@pytest.mark.parametrize("url", [*PLAIN, *PATHS])
def test_what_is_no_secret_is_unchanged(url):
    assert redact(url) == url
    assert redact_text(f"{url} cannot be read") == f"{url} cannot be read"


def test_parameters_of_requests_are_redacted_in_messages():
    for name in ("X-Amz-Signature", "X-Amz-Security-Token", "X-Amz-Credential", "sig", "token"):
        text = f"HTTPSConnectionPool(host='h', port=443): url: /a.jpg?x=1&{name}=SECRET&y=2 (x)"
        assert redact_text(text) == text.replace("SECRET", "...")
    text = "bad access_key=SECRET password=SECRET, aws_secret_access_key=SECRET"
    assert "SECRET" not in redact_text(text)
    assert redact_text("found max_tokens=5, design=blue") == "found max_tokens=5, design=blue"


@pytest.mark.parametrize(
    "text",
    [
        "GET (https://u:SECRET@h/a?sig=SECRET), 's3://k:SE/CRET@b/x' and <gs://SECRET@b>",
        "{'key': 'AKIAABCDEFGHIJKLMNOP', 'secret': 'SECRET', 'token': 'SECRET'}",
        '{"aws_secret_access_key": "SECRET/+x", "a": 1}',
        "aws_secret_access_key = 'SECRET' AWS_SESSION_TOKEN=SECRET",
        "Authorization: Bearer SECRETSECRET12",
        "Authorization: AWS4-HMAC-SHA256 Credential=SECRET/2026, Signature=SECRET",
        "DefaultEndpointsProtocol=https;AccountKey=SECRET==;EndpointSuffix=core.windows.net",
        "1https://u:SECRET@h/ -https://u:SECRET@h/ x=https://u:SECRET@h/ [https://u:SECRET@h/]",
        "http://h/p;token=SECRET",
        "https:/user:SECRET@host/a",
        "postgres://u:SECRET@h:5432/db",
    ],
)
def test_secrets_in_odd_places_of_a_message(text):
    shown = redact_text(text)
    assert "SECRET" not in shown
    assert "ABCDEFGHIJKLMNOP" not in shown
    assert redact_text(shown) == shown


@pytest.mark.parametrize(
    "text",
    [
        "A+b/" * 500_000,
        f"x data:image/png;base64,{'A' * 1_000_000} of https://u:SECRET@h/",
        "https://u:SECRET@h/ " * 100_000,
        f"https://u:{'SECRET' * 200_000}@h",
        "a://" * 300_000,
        "token=" * 200_000,
        "-" * 1_000_000,
        "data:" * 200_000,
        "half \ud800 a pair" * 1000,
    ],
    ids=range(9),
)
def test_long_messages_are_cut_after_they_were_redacted(text):
    began = time.process_time()
    shown = safe_text(text)
    assert time.process_time() - began < 5
    assert len(shown) <= 2000
    assert "SECRET" not in shown
    assert shown.encode("utf-8").decode("utf-8") == shown
    assert safe_text(shown) == shown


def test_a_data_url_is_shortened_and_what_follows_it_is_shown():
    text = f"x data:image/png;base64,{'A' * 1_000_000} of https://u:SECRET@h/"
    assert safe_text(text) == "x data:image/png;base64,... of https://h/"
    assert safe_text("é" * 3000, 10) == "ééééééé..."


def test_what_is_shown_already_stays_as_it_is_in_a_sentence():
    for text in (
        "data:;base64,...(12 characters): found no valid base64",
        "s3://bucket: found a bucket, expected an object in it",
        "at ray://127.0.0.1:1, or http://host:80; then (https://host/a).",
    ):
        assert safe_text(text) == text
    assert safe_text("s3://key:SECRET: no, http://u:SECRET@h: no") == "s3://...: no, http://h: no"


def test_exceptions_become_one_line():
    assert error_text(OSError("https://u:p@host/a broke\nmore")) == "https://host/a broke"
    assert error_text(KeyError()) == "KeyError"


@pytest.mark.parametrize("url", [url for url, _ in SECRETS if is_url(url)])
def test_a_folder_at_a_url_shows_no_secret(url):
    try:
        shown = Folder.of(url).path("config.json")
    except ModelError as error:
        shown = str(error)
    assert "SECRET" not in shown


def test_the_command_line_shows_no_secret():
    command = [sys.executable, "-m", "mediamill.model", "nope://user:pa/ssSECRET@host/model"]
    done = subprocess.run([*command, "--prompt", "hi"], capture_output=True, text=True, timeout=120)
    assert done.returncode == 2
    assert "nope://host/model cannot be opened" in done.stderr
    assert "SECRET" not in done.stdout + done.stderr


def test_paths_of_file_urls(tmp_path):
    (tmp_path / "a b").write_text("")
    (tmp_path / "a%20c").write_text("")
    assert local_path(f"file://{tmp_path}/a%20b") == f"{tmp_path}/a%20b"
    assert local_path("/a/file://b") == "/a/file://b"
    assert local_path("FILE://localhost/a") == "/a"
    assert decoded_path(f"file://{tmp_path}/a%20b") == tmp_path / "a b"
    assert decoded_path(f"file://{tmp_path}/a%20c") == tmp_path / "a%20c"

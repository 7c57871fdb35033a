"""Bytes of files, S3 and HTTP servers, good and bad; budgets; rows of a table."""

import gc
import os
import threading
import time
from pathlib import Path

import fsspec
import numpy as np
import pyarrow as pa
import pytest

from mediamill.pipeline.fetching.budget import ByteBudget, Reservation
from mediamill.pipeline.fetching.fetcher import Fetcher
from mediamill.pipeline.records import MEDIA_BYTES, MEDIA_PATHS, fetched_schema, read_schema
from mediamill.pipeline.stages.fetch import Fetch, FetchRules, fetch
from mediamill.schemas import columns as c
from mediamill.schemas.errors import RowError
from mediamill.schemas.job import load_job
from mediamill.schemas.manifest import check_manifest_schema
from tests.pipeline.fetching.rules import fetch_rules
from tests.servers.faulty_http import faulty_http

DATA = bytes(range(256)) * 40


@pytest.fixture
def site(tmp_path):
    folder = tmp_path / "site"
    folder.mkdir()
    (folder / "a").write_bytes(DATA)
    with faulty_http(folder) as server:
        yield server


@pytest.fixture
def rules(tmp_path):
    return fetch_rules(100_000, 5.0, str(tmp_path), private_addresses=True, tries=4, pause_s=0.01)


def code_of(uri, rules):
    with pytest.raises(RowError) as error:
        fetch(uri, rules)
    return error.value.code.value


def read_table(rows, earlier=None):
    """Rows of media, as the stage before gives them."""
    part = pa.struct([("type", pa.string()), ("uri", pa.string())])
    media = [None if row is None else [{"type": None, "uri": one} for one in row] for row in rows]
    source = pa.table(
        {"id": [str(i) for i in range(len(rows))], "media": pa.array(media, pa.list_(part))}
    )
    manifest = check_manifest_schema(source.schema, "m")
    table = manifest.normalize(source)
    for field in read_schema(manifest):
        if field.name not in table.column_names:
            table = table.append_column(field, pa.nulls(len(rows), field.type))
    codes = pa.array(earlier or [None] * len(rows), pa.string())
    messages = pa.array([code and "said earlier" for code in codes.to_pylist()], pa.string())
    table = table.set_column(table.column_names.index(c.ERROR_CODE), c.ERROR_CODE, codes)
    table = table.set_column(table.column_names.index(c.ERROR_MESSAGE), c.ERROR_MESSAGE, messages)
    return manifest, table


# Files


def test_files_by_path_url_and_relative_to_the_base(tmp_path, rules):
    (tmp_path / "a b#%.bin").write_bytes(DATA)
    for uri in (f"{tmp_path}/a b#%.bin", f"file://{tmp_path}/a b#%.bin", "a b#%.bin"):
        assert fetch(uri, rules) == DATA
    assert fetch(f"FILE://localhost{tmp_path}/a b#%.bin", rules) == DATA
    assert fetch((tmp_path / "a b#%.bin").as_uri(), rules) == DATA


def test_what_is_no_file(tmp_path, rules):
    (tmp_path / "empty").write_bytes(b"")
    (tmp_path / "large").write_bytes(bytes(100_001))
    assert code_of("missing", rules) == "fetch_not_found"
    assert code_of("empty/below", rules) == "fetch_not_found"
    assert code_of("x" * 300, rules) == "fetch_not_found"
    assert code_of("", rules) == code_of(None, rules) == "fetch_not_found"
    assert code_of("empty", rules) == "media_empty"
    assert code_of("large", rules) == "fetch_too_large"
    for uri in ("ftp://a/b", "simplecache::s3://a/b", "memory://x"):
        assert code_of(uri, rules) in ("fetch_denied", "fetch_not_found")


def test_files_that_rows_may_not_read(tmp_path):
    """Nothing outside of the roots, and nothing that is no file, is opened or waited for."""
    inside, outside = tmp_path / "in", tmp_path / "out"
    for folder in (inside, outside, inside / "sub", tmp_path / "in2"):
        folder.mkdir()
    secret = outside / "secret"
    for file in (secret, inside / "sub" / "ok", tmp_path / "in2" / "x"):
        file.write_bytes(DATA)
    (inside / "to-file").symlink_to(secret)
    (inside / "to-folder").symlink_to(outside)
    (inside / "loop").symlink_to(inside / "loop")
    (inside / "to-inside").symlink_to(inside / "sub")
    (inside / "to-proc").symlink_to("/proc/self")
    os.mkfifo(inside / "pipe")
    rules = fetch_rules(10**6, 5.0, str(inside), pause_s=0.01)
    assert fetch("to-inside/ok", rules) == fetch("sub/../sub/./ok", rules) == DATA
    refused = [
        *(str(secret), f"file://{secret}", "../out/secret", "sub/../../out/secret", "to-file"),
        *(
            "to-folder/secret",
            "../in2/x",
            f"{inside}/../out/secret",
            "/etc/passwd",
            "/proc/self/environ",
        ),
        *(
            "to-proc/environ",
            f"file://{inside}/%2e%2e/out/secret",
            "/dev/zero",
            "/dev/stdin",
            "pipe",
        ),
        *("sub", ".", "/", "", "file://", "file:///", f"file://host{inside}/sub/ok", "/dev/fd/0"),
        *(
            f"file://good.test{secret}",
            "file:sub/ok",
            f"file:/{inside}/sub/ok",
            "sub/ok\0",
        ),
        *(
            f"file://{inside}/sub/ok%00",
            f"file://{inside}/%2E%2E%2Fout%2Fsecret",
            "~/x",
            "file://~/x",
        ),
        *(f"file://localhost@evil{inside}/sub/ok", "to-inside/../../out/secret", "loop"),
    ]
    codes = {uri: code_of(uri, rules) for uri in refused}
    others = {uri: code for uri, code in codes.items() if code != "fetch_denied"}
    assert others == {"": "fetch_not_found", "~/x": "fetch_not_found"}  # a folder of the name ~


def test_system_files_are_refused_below_any_root(tmp_path):
    rules = fetch_rules(10**6, 5.0, str(tmp_path), roots=("/",))
    for path in ("/proc/self/environ", "/proc/self/cmdline", "/dev/null", "/sys/kernel/vmcoreinfo"):
        assert code_of(path, rules) == "fetch_denied"


def test_a_file_that_becomes_a_link_meanwhile_is_not_followed(tmp_path, rules):
    """Another process swaps the file for a link to a secret and back, as fast as it can."""
    secret = tmp_path.parent / f"{tmp_path.name}-secret"
    secret.write_bytes(b"secret")
    place, good, bad = tmp_path / "swapped", tmp_path / "good", tmp_path / "bad"
    good.write_bytes(DATA)
    stop = threading.Event()

    def swap():
        while not stop.is_set():
            bad.symlink_to(secret)
            bad.replace(place)
            os.link(good, bad)
            bad.replace(place)

    found = set()
    thread = threading.Thread(target=swap)
    thread.start()
    try:
        for _ in range(300):
            try:
                found.add(fetch("swapped", rules))
            except RowError as error:
                found.add(error.code.value)
    finally:
        stop.set()
        thread.join()
    assert DATA in found
    assert found <= {DATA, "fetch_denied", "fetch_not_found"}


@pytest.mark.parametrize(
    ("manifest", "roots"),
    [
        ("/data/set/m.parquet", ("/data/set", "/base")),
        ("/data/set/manifest/", ("/data/set", "/base")),
        ("file:///data/set/*/x-*.parquet", ("/data/set", "/base")),
        ("m.parquet", ("/base",)),
        ("/m.parquet", ("/m.parquet", "/base")),
        ("s3://bucket/m.parquet", ()),
    ],
)
def test_roots_of_a_job(manifest, roots):
    job = load_job(None, {"manifest": manifest, "output": "o", "model": "m"}, job="caption")
    assert FetchRules.of(job, "/base").roots == roots
    named = {"manifest": manifest, "output": "o", "model": "m", "fetch.roots": ["/a", "b"]}
    assert FetchRules.of(load_job(None, named, job="caption"), "/base").roots == ("/a", "/base/b")


def test_schemes_of_a_job(tmp_path, site):
    only = fetch_rules(10**6, 5.0, str(tmp_path), schemes=("s3",), private_addresses=True)
    with pytest.raises(RowError, match="found the scheme 'http', expected one of s3"):
        fetch(f"{site.url}/a", only)
    assert site.requests == 0


# S3 and HTTP


def test_s3(s3, rules):
    fs = fsspec.filesystem("s3", use_listings_cache=False)
    fs.pipe_file(f"{s3}/fetch/a.bin", DATA)
    fs.pipe_file(f"{s3}/fetch/empty", b"")
    fs.pipe_file(f"{s3}/fetch/large", bytes(100_001))
    assert fetch(f"{s3}/fetch/a.bin", rules) == DATA
    assert code_of(f"{s3}/fetch/none", rules) == "fetch_not_found"
    assert code_of("s3://no-such-bucket-here/none", rules) == "fetch_not_found"
    assert code_of("s3://Not a bucket!/none", rules) == "fetch_denied"
    assert code_of(f"{s3}/fetch/empty", rules) == "media_empty"
    assert code_of(f"{s3}/fetch/large", rules) == "fetch_too_large"


def test_http(site, rules):
    assert fetch(f"{site.url}/a?token=secret", rules) == DATA
    assert site.headers["/a"]["Accept-Encoding"] == "identity"


@pytest.mark.parametrize(
    ("faults", "code", "requests"),
    [
        (["503", "429", "500"], None, 4),
        (["reset", "cut"], None, 3),
        (["500"] * 4, "fetch_failed", 4),
        (["404"], "fetch_not_found", 1),
        (["410"], "fetch_not_found", 1),
        (["401"], "fetch_denied", 1),
        (["403"], "fetch_denied", 1),
        (["400"], "fetch_denied", 1),
    ],
)
def test_http_failures_by_kind(site, rules, faults, code, requests):
    if faults[0] in ("404", "410", "401", "403", "400"):
        site.answers["/a"] = (int(faults[0]), {}, b"no")
    else:
        site.faults.plan("/a", faults)
    if code is None:
        assert fetch(f"{site.url}/a", rules) == DATA
    else:
        assert code_of(f"{site.url}/a", rules) == code
    assert site.requests == requests


def test_a_trickle_of_bytes_times_out(site, rules):
    site.faults.plan("/a", ["trickle"])
    quick = fetch_rules(100_000, 0.5, "/", private_addresses=True)
    started = time.monotonic()
    assert code_of(f"{site.url}/a", quick) == "fetch_timeout"
    assert time.monotonic() - started < 15  # the trickle takes thirty seconds


def test_nobody_listens(rules):
    assert code_of("http://127.0.0.1:9/a", rules) == "fetch_failed"


def test_a_compressed_answer_is_no_way_to_many_bytes(site, rules):
    import gzip

    bomb = gzip.compress(bytes(10**7))
    for headers in ({"Content-Encoding": "gzip"}, {"Content-Encoding": "br, gzip"}):
        site.answers["/bomb"] = (200, headers, bomb)
        assert code_of(f"{site.url}/bomb", rules) == "fetch_failed"
    site.answers["/bomb"] = (200, {}, bomb)
    assert fetch(f"{site.url}/bomb", rules) == bomb


def test_a_stated_size_beyond_the_ceiling_is_enough(site, rules):
    site.answers["/big"] = (200, {"Content-Length": str(10**12)}, b"x")
    assert code_of(f"{site.url}/big", rules) == "fetch_too_large"


# Memory


def test_the_budget_lets_others_wait_and_the_first_go_on():
    budget = ByteBudget(100)
    first, other = Reservation(budget), Reservation(budget, lambda: False)
    other.resize(90)
    first.resize(500)  # may always
    waiting = threading.Thread(target=other.resize, args=(95,))
    waiting.start()
    while not budget.starved:
        time.sleep(0.001)
    first.resize(0)
    waiting.join()
    assert budget.held == 95
    other.resize(0)
    assert (budget.held, budget.starved) == (0, False)


def test_a_table_larger_than_the_budget_comes_in_parts(tmp_path):
    sizes = [300_000, 200_000, 5, 900_000, 100, 100, 2_000_000, 400_000] * 3
    rng = np.random.default_rng(0)
    files = [rng.bytes(size) for size in sizes]
    for number, data in enumerate(files):
        (tmp_path / f"{number}").write_bytes(data)
    rules = fetch_rules(10**7, 30.0, str(tmp_path), at_once=4, ahead_bytes=1_000_000)
    manifest, table = read_table([[str(number)] for number in range(len(sizes))])
    stage = Fetch(manifest, rules)
    budget = stage._fetcher.budget
    found, most = [], 0

    def prepare(part):
        nonlocal most
        most = max(most, budget.held)
        found.extend(part[MEDIA_BYTES].to_pylist())
        return part.num_rows

    rows = list(map(prepare, stage.parts(table)))
    assert found == [[data] for data in files]
    assert sum(rows) == len(sizes)
    assert len(rows) > 3
    assert most <= 1_000_000 + 2_000_000  # the budget, and the one that is waited for
    assert budget.held == 0


def test_small_media_come_as_one_table(tmp_path):
    for number in range(50):
        (tmp_path / f"{number}").write_bytes(DATA)
    manifest, table = read_table([[str(number)] for number in range(50)])
    rules = fetch_rules(10**6, 30.0, str(tmp_path))
    assert [part.num_rows for part in Fetch(manifest, rules).parts(table)] == [50]


def test_two_calls_share_a_budget_without_standing_still(tmp_path):
    for number in range(12):
        (tmp_path / f"{number}").write_bytes(bytes([number]) * 800_000)
    manifest, table = read_table([[str(number)] for number in range(12)])
    stage = Fetch(manifest, fetch_rules(10**7, 30.0, str(tmp_path), at_once=2, ahead_bytes=10**6))
    results: list[list[bytes]] = [[], [], []]

    def call(number):
        for part in stage.parts(table):
            results[number] += [row[0][:1] for row in part[MEDIA_BYTES].to_pylist()]
            del part

    calls = [threading.Thread(target=call, args=(number,)) for number in range(3)]
    for one in calls:
        one.start()
    for one in calls:
        one.join(60)
    assert results == [[bytes([number]) for number in range(12)]] * 3


def test_media_beyond_memory_go_to_files_and_these_go_away(tmp_path, monkeypatch):
    monkeypatch.setattr("mediamill.pipeline.fetching.content.MEMORY_BYTES", 1000)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "tmp"))
    (tmp_path / "tmp").mkdir()
    (tmp_path / "large").write_bytes(DATA)
    (tmp_path / "small").write_bytes(b"small")
    rows = [["large", "small"], ["large"], ["small"], ["large", "none"], ["large"]]
    manifest, table = read_table(rows)
    stage = Fetch(manifest, fetch_rules(10**6, 30.0, str(tmp_path)))
    left = []
    for part in stage.parts(table):
        paths = part[MEDIA_PATHS].to_pylist()
        assert part[MEDIA_BYTES].to_pylist() == [[None, b"small"], [None], [b"small"], None, [None]]
        assert [None if row is None else [one is None for one in row] for row in paths] == [
            [False, True],
            [False],
            [True],
            None,
            [False],
        ]
        own = [Path(one) for row in paths for one in row or [] if one]
        assert len(set(own)) == 3
        own[0].unlink()  # whoever prepared it: the other rows still have theirs
        assert [one.read_bytes() for one in own[1:]] == [DATA, DATA]
        left += own
        del part
    assert not any(one.exists() for one in left)
    assert stage._fetcher.budget.held == 0
    assert not list((tmp_path / "tmp").rglob("spool/*"))


def test_an_unfinished_call_leaves_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr("mediamill.pipeline.fetching.content.MEMORY_BYTES", 1000)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "tmp"))
    (tmp_path / "tmp").mkdir()
    names = [f"large{number}" for number in range(40)]
    for name in names:
        (tmp_path / name).write_bytes(DATA)
    manifest, table = read_table([[name] for name in names])
    stage = Fetch(manifest, fetch_rules(10**6, 30.0, str(tmp_path), ahead_bytes=3 * len(DATA)))
    parts = stage.parts(table)
    next(parts)
    parts.close()
    stage._threads.shutdown()
    gc.collect()
    assert not list((tmp_path / "tmp").rglob("spool/*"))
    assert stage._fetcher.budget.held == 0


# Rows


def test_the_stage_keeps_rows_and_marks_the_bad_ones(tmp_path, rules):
    (tmp_path / "a").write_bytes(DATA)
    (tmp_path / "b").write_bytes(b"b")
    earlier = [None, None, None, None, "prompt_invalid", None]
    manifest, table = read_table([["a", "b"], ["a", "none"], [], None, ["a"], ["b"]], earlier)
    found = Fetch(manifest, rules)(table)
    assert found.schema.equals(fetched_schema(manifest))
    assert found["id"].to_pylist() == list("012345")
    assert found[MEDIA_BYTES].to_pylist() == [[DATA, b"b"], None, [], [], [], [b"b"]]
    assert found[MEDIA_PATHS].to_pylist() == [[None, None], None, [], [], [], [None]]
    assert found[c.ERROR_CODE].to_pylist() == [
        *(None, "fetch_not_found", None, None, "prompt_invalid", None),
    ]
    assert Fetch(manifest, rules)(table.slice(0, 0)).schema.equals(fetched_schema(manifest))


def test_what_rows_share_is_fetched_once(site, rules):
    manifest, table = read_table([[f"{site.url}/a"]] * 20 + [[f"{site.url}/a", f"{site.url}/none"]])
    found = Fetch(manifest, rules)(table)
    assert found[MEDIA_BYTES].to_pylist() == [[DATA]] * 20 + [None]
    assert site.seen == {"/a": 1, "/none": 1}


def test_a_single_medium_is_not_copied(tmp_path):
    (tmp_path / "a").write_bytes(DATA)
    manifest, table = read_table([["a"], ["a"]])
    media = Fetch(manifest, fetch_rules(10**6, 5.0, str(tmp_path)))(table)[MEDIA_BYTES]
    # Not of the scalars: Arrow copies the bytes of a scalar.
    first, second = (chunk.values.buffers()[2].address for chunk in media.chunks)
    assert first == second


def test_messages_have_no_secrets(site, rules, s3):
    """Whatever goes wrong, by whatever library, the URL's secrets are in no message."""
    secret = "SECRETSECRET"
    host = site.url.removeprefix("http://")
    site.answers["/away"] = (302, {"Location": f"http://u:{secret}@10.0.0.1/?{secret}"}, b"")
    site.answers["/downhill"] = (302, {"Location": f"ftp://u:{secret}@h/?k={secret}"}, b"")
    site.answers["/told"] = (403, {"X-Echo": secret}, secret.encode())
    site.answers["/zipped"] = (200, {"Content-Encoding": secret}, b"")
    site.answers["/large"] = (200, {"Content-Length": "999999999"}, b"")
    site.answers["/length"] = (200, {"Content-Length": secret, "Connection": "close"}, b"")
    site.answers["/range"] = (206, {"Content-Range": secret}, b"x")
    strict = fetch_rules(100_000, 5.0, rules.base, tries=1)
    open_rules = fetch_rules(
        100_000, 5.0, rules.base, private_addresses=True, tries=1, pause_s=0.01
    )
    uris = [
        *(
            f"http://u:{secret}@{host}/{path}?sig={secret}#{secret}"
            for path in (
                "none",
                "away",
                "downhill",
                "told",
                "zipped",
                "large",
                "range",
            )
        ),
        *(
            f"{scheme}://{secret}:{secret}@bucket-of-nobody/key?X={secret}"
            for scheme in (
                "s3",
                "gs",
                "az",
                "abfs",
                "hf",
                "https",
                "ftp",
                "nosuch",
            )
        ),
        *(f"http://{secret}@good.test:{port}/?{secret}" for port in ("99999", "x", "0")),
        f"http://u:{secret}@[::1/?{secret}",
        f"http://u:{secret}@{host}@{host}/?{secret}",
        f"http://u:{secret}@{host}/ {secret}"[: -len(secret)],
        f"simplecache::https://u:{secret}@{host}/a?{secret}",
        f"s3://{secret}@a::s3://{secret}@b/c?{secret}",
    ]
    for uri in uris:
        for one in (strict, open_rules):
            with pytest.raises(RowError) as error:
                fetch(uri, one)
            assert secret not in error.value.message, uri
            assert secret.lower() not in error.value.message.lower(), uri


def test_threads_may_share_a_fetcher(site, rules):
    fetcher = Fetcher(rules)
    found = []
    threads = [
        threading.Thread(
            target=lambda: found.append(fetcher.fetch(f"{site.url}/a", Reservation(fetcher.budget)))
        )
        for _ in range(16)
    ]
    for one in threads:
        one.start()
    for one in threads:
        one.join()
    assert len(found) == 16
    assert all(one.data.tobytes() == DATA for one in found)

"""Rows get the further tries of the job's retries within one run, on real actors and a server."""

import threading
from collections import Counter
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from mediamill.pipeline.run import run
from tests.media import jpeg
from tests.pipeline.world import (
    assert_each_once,
    draw_media,
    make_job,
    picture_rows,
    read_output,
    write_manifest,
)


class _Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        self.server.asked[self.path] += 1
        # Each path fails once, /down always.
        is_up = self.server.asked[self.path] > 1 and self.path != "/down"
        self.send_response(200 if is_up else 503)
        body = self.server.picture if is_up else b""
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass


@pytest.fixture(scope="module")
def server():
    with ThreadingHTTPServer(("127.0.0.1", 0), _Handler) as server:
        server.asked, server.picture = Counter(), jpeg(56, 84, seed=7)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server
        server.shutdown()


@pytest.fixture(scope="module")
def done(tmp_path_factory, server, ray_cluster):
    """The rows of a run by id, with its summary."""
    folder = tmp_path_factory.mktemp("ladder")
    rows = picture_rows(draw_media(folder / "media"), 4)
    address = f"http://127.0.0.1:{server.server_port}"
    large = folder / "large.jpg"
    large.write_bytes(jpeg(1200, 1600, seed=3))
    for name, uri in (
        *((f"flaky-{number}", f"{address}/{number}") for number in range(3)),
        ("down", f"{address}/down"),
        ("gone", str(folder / "gone.jpg")),
        ("large", str(large)),
    ):
        rows.append({"id": name, "uri": uri, "kind": "a"})
    manifest = write_manifest(folder / "m.parquet", rows)
    job = make_job(
        manifest,
        folder / "out",
        retries__after_s=0,
        retries__smaller=4,
        retries__again=1,
        fetch__tries=1,
        fetch__private_addresses=True,
        image__max_pixels=28 * 28 * 16384,
    )
    summary = run(job)
    results = read_output(folder / "out")
    assert_each_once(results, [row["id"] for row in rows])
    return {row["id"]: row for row in results}, summary


def test_media_are_fetched_again_at_the_end(done, server):
    rows, summary = done
    for number in range(3):
        row = rows[f"flaky-{number}"]
        assert row["status"] == "ok"
        assert server.asked[f"/{number}"] == 2
        first, *_, last = row["attempt_history"]
        assert first["error_code"] == "fetch_failed"
        assert "503" in first["error_message"]
        assert last["error_code"] is None
        assert last["attempt"] == row["attempt"] >= 2
        assert {entry["run_id"] for entry in row["attempt_history"]} == {summary.run_id}
    assert summary.errors == {"fetch_failed": 1, "fetch_not_found": 1} == summary.new_errors
    assert (summary.rows, summary.ok) == (len(rows), len(rows) - 2)


def test_what_fails_again_is_written_with_its_attempts(done, server):
    row = done[0]["down"]
    assert (row["error_code"], row["attempt"], server.asked["/down"]) == ("fetch_failed", 2, 2)
    assert [entry["error_code"] for entry in row["attempt_history"]] == ["fetch_failed"] * 2
    assert row["error_message"].endswith("; mediamill retry tries it again")
    # What is not there is not waited for.
    gone = done[0]["gone"]
    assert (gone["error_code"], gone["attempt"]) == ("fetch_not_found", 1)
    assert gone["attempt_history"] is None


def test_a_picture_that_is_too_large_is_made_smaller(done):
    row = done[0]["large"]
    assert row["status"] == "ok"
    tries = [entry for entry in row["attempt_history"] if entry["error_code"]]
    assert {entry["error_code"] for entry in tries} == {"context_too_long"}
    assert row["attempt_history"][len(tries)]["changed"] == (
        f"1/{2 ** len(tries)} of the pixels, or frames"
    )
    (receipt,) = row["receipt"]
    area = receipt["height"] * receipt["width"]
    assert area <= 1200 * 1600 / 2 ** len(tries) < 2.5 * area
    assert receipt["notes"][-1].endswith(f"retries.smaller, to 1/{2 ** len(tries)} of the area")


def test_an_answer_that_is_cut_off_is_sampled_again(done):
    row = done[0]["row-00000"]
    cut = row["attempt_history"][0]
    assert (cut["error_code"], cut["error_message"]) == (None, "cut off after 6 tokens")
    assert row["attempt_history"][1]["changed"] == "temperature=0.7, repetition_penalty=1.1"
    assert (row["attempt"], len(row["attempt_history"])) == (2, 2)

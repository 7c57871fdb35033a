"""A job goes through the Jobs API of a real Ray head, whose environment knows nothing of ours."""

import os
import re
import subprocess
import sys
import sysconfig
import threading
import time
from contextlib import contextmanager
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import yaml

from mediamill.jobs.cli import main
from mediamill.jobs.cluster import jobs_api
from mediamill.model.tiny import CAPTION_PROMPT, CHECKPOINT
from mediamill.pipeline.ray_cluster import metrics
from tests.pipeline.world import (
    assert_each_once,
    draw_media,
    picture_rows,
    read_output,
    write_manifest,
)
from tests.ray_head import head_environment, ray_head

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(600),
    pytest.mark.filterwarnings("ignore:ssl=None is deprecated:DeprecationWarning"),  # Ray's own
]

ROOT = Path(__file__).parents[3]
ROWS = 240


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    return tmp_path_factory.mktemp("submit")


@pytest.fixture(scope="module")
def python(home):
    """Of an environment with every package but ours."""
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", home / "venv"], check=True)
    [packages] = (home / "venv").glob("lib/*/site-packages")
    (packages / "others.pth").write_text(sysconfig.get_paths()["purelib"] + "\n")
    found = str(home / "venv" / "bin" / "python")
    command = [found, "-c", "import ray, torch, mediamill"]
    asked = subprocess.run(command, cwd=home, capture_output=True, text=True, check=False)
    assert "No module named 'mediamill'" in asked.stderr
    return found


@pytest.fixture(scope="module")
def head(home, python):
    environment = head_environment(PATH="/usr/bin:/bin")  # `python` is another one, or none
    environment.pop("PYTHONPATH", None)
    with ray_head(home / "head.log", environment, python, cpus=2) as found:
        yield found


@pytest.fixture(scope="module")
def job(home):
    rows = picture_rows(draw_media(home / "media"), ROWS - 1)
    rows.append({**rows[0], "id": "gone", "uri": str(home / "media" / "gone.png")})
    write_manifest(home / "manifest.parquet", rows)
    keys = {
        "job": "caption",
        "manifest": str(home / "manifest.parquet"),
        "output": str(home / "captions"),
        "model": str(CHECKPOINT),
        "prompt": CAPTION_PROMPT,
        "rows_per_file": 16,
        "generation": {"max_new_tokens": 6},
        "resources": {"replicas": 1, "prepare_workers": 1, "batch_rows": 4},
        "fetch": {"roots": [str(home)]},
    }
    (home / "job.yaml").write_text(yaml.safe_dump(keys))
    return str(home / "job.yaml")


@pytest.fixture(scope="module")
def ids(job, home):
    return pq.read_table(home / "manifest.parquet")["id"].to_pylist()


def values(text):
    """Of each of our metrics and its tags but Ray's own."""
    found = {}
    for name, tags, value in re.findall(r"^ray_(mediamill_\w+){(.*)} (\S+)$", text, re.M):
        own = dict(re.findall(r'\b(run|stage|code|kind|part|pool)="([^"]*)"', tags))
        key = (name, own.pop("run", None), *own.values())
        found[key] = found.get(key, 0) + float(value)
    return found


@contextmanager
def scraping(head):
    """The keys of `values` that are there at any time meanwhile, as Prometheus would see them."""
    seen, over = set(), threading.Event()

    def look():
        while not over.wait(2):
            seen.update(values(head.scrape()))

    looking = threading.Thread(target=look)
    looking.start()
    try:
        yield seen
    finally:
        over.set()
        looking.join()


def test_stopped_and_submitted_again(head, job, home, ids, capfd):
    there = ["--address", head.dashboard]
    assert main(["submit", job, *there, "--code", "--detach", "--name", "first"]) == 0
    out, err = capfd.readouterr()
    assert out.split() == ["first"]
    assert err.splitlines()[-2:] == [
        "submitted as first",
        f"follow it: mediamill logs first --address {head.dashboard}",
    ]
    deadline = time.monotonic() + 300
    while not list((home / "captions").rglob("*.parquet")):
        assert time.monotonic() < deadline
        assert main(["status", "first", *there, "--json"]) == 0
        assert '"FAILED"' not in capfd.readouterr().out
        time.sleep(0.5)
    assert main(["submit", job, *there, "--name", "first"]) == 2
    err = capfd.readouterr().err
    assert "error: --name first: a job of this name is at work (RUNNING) on http://" in err
    assert "expected another name, such as first-2" in err
    assert main(["stop", "first", *there, "--wait"]) == 0
    out, err = capfd.readouterr()
    assert re.search(r"^status +STOPPED$", out, re.M)
    assert "first was asked to stop: its rows in flight are finished first, within" in err
    assert "warning" not in err
    assert main(["stop", "first", *there]) == 0
    assert "first had ended already" in capfd.readouterr().err
    assert main(["logs", "first", *there]) == 143
    out, err = capfd.readouterr()
    assert "first was stopped; submit the job again to go on" in err
    assert "terminated: what had begun is finished; to go on, run the same command again" in out
    before = read_output(home / "captions")
    assert 0 < len(before) < ROWS

    with scraping(head) as seen:
        assert main(["submit", job, *there, "--code"]) == 3
    out = capfd.readouterr().out
    rows = read_output(home / "captions")
    assert_each_once(rows, ids)
    assert {row["model"] for row in rows} == {"built-in"}
    assert f"({len(before)} rows are from earlier runs)" in out
    assert main(["status", *there]) == 0
    head_line, last, first = capfd.readouterr().out.splitlines()
    assert head_line.split()[:3] == ["name", "status", "rows"]
    assert re.search(rf"  FINISHED  {ROWS} of {ROWS}  1 ", last)
    assert re.search(rf"^first  +STOPPED   {len(before)} of {ROWS}", first)

    # What Prometheus reads is what the summary says.
    [run] = re.findall(r"^run: (\S+) \(fingerprint", out, re.M)
    counts = [
        int(one) for one in re.findall(r"(\d+) prompt tokens \((\d+) visual\), (\d+) ", out)[0]
    ]
    deadline = time.monotonic() + 60
    while (metrics.ROWS, run, "write") not in (found := values(head.scrape())):
        assert time.monotonic() < deadline
        time.sleep(1)
    new = ROWS - len(before)
    assert found[metrics.ROWS, run, "write"] == new
    # A process that died, or a drain, would make these more.
    assert found[metrics.ROWS, run, "prepare"] == found[metrics.ROWS, run, "generate"] == new
    kinds = [found[metrics.TOKENS, run, kind] for kind in ("prompt", "visual", "output")]
    assert kinds == counts
    errors = {key[2]: value for key, value in found.items() if key[:2] == (metrics.ERROR_ROWS, run)}
    assert sum(errors.values()) <= 1
    assert (metrics.ENGINE_ROWS, run) in seen


def test_every_metric_reaches_the_node(head, python):
    """Those that a sound run has no reason to make, too."""
    totals = {(metrics.ROWS, "write"): 5, (metrics.ERROR_ROWS, "poison"): 2}
    totals |= {(metrics.TOKENS, "output"): 7, (metrics.ENGINES, ""): 3}
    gauges = {(metrics.WAITING_ROWS, ""): 6, (metrics.CACHE_USE, ""): 0.5}
    gauges |= {(metrics.SHARE, "decode"): 0.25, (metrics.PROCESSES, "prepare"): 2}
    code = (
        f"import ray, time; ray.init(address={head.gcs!r}, log_to_driver=False)\n"
        "from mediamill.pipeline.ray_cluster import metrics\n"
        f"told = metrics.ExportedCounters('r', {{}})\n"
        f"told.update({totals!r}); told.update({totals!r})\n"
        "metrics.export_engine_rows(lambda: 4, 'r')\n"
        f"metrics.ExportedGauges('r').set({gauges!r})\n"
        "time.sleep(1); ray.shutdown()"
    )
    environment = {**head.environment, "PYTHONPATH": str(ROOT / "src")}
    subprocess.run([python, "-c", code], env=environment, check=True, timeout=240)
    deadline = time.monotonic() + 60
    expected = {(name, "r", value): total for (name, value), total in totals.items() if value}
    expected |= {(name, "r", value): total for (name, value), total in gauges.items() if value}
    expected |= {(metrics.ENGINES, "r"): 3, (metrics.ENGINE_ROWS, "r"): 4}
    expected |= {(metrics.WAITING_ROWS, "r"): 6, (metrics.CACHE_USE, "r"): 0.5}
    while (found := {key: one for key, one in values(head.scrape()).items() if key[1] == "r"}) != (
        expected
    ):
        assert time.monotonic() < deadline, found
        time.sleep(1)
    assert {name for name, *_ in found} == set(metrics.EXPORTED)


def test_what_is_wrong_is_one_sentence(head, job, home, python, capfd):
    there = ["--address", head.dashboard]
    for command in ("status", "logs", "stop"):
        assert main([command, "nobody", *there]) == 2
        err = capfd.readouterr().err
        assert err.startswith(f"error: {head.dashboard} has no job 'nobody'"), err
    assert main(["status", "fist", *there]) == 2
    assert "has no job 'fist', did you mean 'first'?" in capfd.readouterr().err
    assert main(["submit", job, "--address", "http://127.0.0.1:1"]) == 2
    err = capfd.readouterr().err
    assert err.startswith(
        "error: --address http://127.0.0.1:1: nothing answers at http://127.0.0.1:1 (Connection "
        "refused), expected the dashboard of a running head: it needs the package ray[default]"
    )
    assert main(["submit", job, "--address", f"http://{head.gcs}"]) == 2
    assert f"what listens at http://{head.gcs} is no dashboard of Ray" in capfd.readouterr().err
    # The workers of this cluster have every package but mediamill.
    assert main(["submit", job, *there]) == 2
    out = capfd.readouterr().out
    assert f"{python}, which runs Ray on " in out
    assert "does not have mediamill: install it there, or submit with --code" in out
    command = [sys.executable, "-m", "mediamill", "run", job, "--address", head.gcs]
    command.append(f"output={home / 'never'}")
    asked = subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, timeout=240, check=False
    )
    assert asked.returncode == 1
    assert f"the Ray cluster at {head.gcs} does not have mediamill" in asked.stderr
    assert main(["submit", job, *there, "output=captions/"]) == 2
    assert "output: found the relative path captions/" in capfd.readouterr().err
    token = {**os.environ, "RAY_AUTH_TOKEN": "0" * 64}
    command = [sys.executable, "-m", "mediamill", "status", "first", *there]
    asked = subprocess.run(
        command, env=token, cwd=ROOT, capture_output=True, text=True, timeout=240, check=False
    )
    assert asked.returncode == 2
    assert asked.stderr.count("\n") == 1
    assert "the cluster refused the token of RAY_AUTH_TOKEN" in asked.stderr
    assert "0" * 64 not in asked.stderr


def test_a_cluster_that_has_the_program_needs_none(head, job, home, python, capfd):
    [packages] = Path(python).parents[1].glob("lib/*/site-packages")
    (packages / "ours.pth").write_text(f"{ROOT / 'src'}\n")
    output = home / "again"
    there = ["--address", head.dashboard, f"output={output}"]
    assert main(["submit", job, *there]) == 3
    assert f"{ROWS} rows: {ROWS - 1} ok, 1 error" in capfd.readouterr().out
    assert len(read_output(output)) == ROWS


def test_a_job_of_others_and_a_cluster_that_goes(head, job, capfd, monkeypatch):
    there = ["--address", head.dashboard]
    cluster = jobs_api.Cluster(head.dashboard, os.environ)
    for name in ("short", "long"):
        cluster._client.submit_job(entrypoint="echo here; sleep 600", submission_id=name)
    assert main(["submit", job, *there, "--name", "long"]) == 2
    err = capfd.readouterr().err
    assert "error: --name long: a job of this name is at work" in err
    assert main(["stop", "short", *there, "--wait"]) == 0
    assert "warning: short was not submitted by mediamill" in capfd.readouterr().err

    monkeypatch.setattr(jobs_api, "_UNAVAILABLE_S", 2.0)
    codes = []
    follower = threading.Thread(target=lambda: codes.append(main(["logs", "long", *there])))
    follower.start()
    seen = ""
    while "\nhere" not in seen:
        assert follower.is_alive()
        seen += capfd.readouterr().out
        time.sleep(0.2)
    head.process.terminate()
    head.process.wait(60)
    follower.join(120)
    assert codes == [1]
    err = capfd.readouterr().err
    assert re.search(
        r"^error: http://\S+: the cluster stopped answering; long may still run", err, re.M
    )

"""The metrics that Prometheus reads from a Ray node equal the run's summary."""

import re
import time
import urllib.request

import pytest
import ray

from mediamill.pipeline.ray_cluster import metrics
from mediamill.pipeline.run import run
from tests.pipeline.world import draw_media, make_job, picture_rows, write_manifest

pytestmark = pytest.mark.timeout(600)  # a busy machine starts Ray's workers slowly

TIMEOUT_S = 120  # Ray exports the values every 10 s


def values(run_id):
    """The values of our metrics with this run's tag, by name and other tag."""
    [node] = [node for node in ray.nodes() if node["Alive"]]
    if node["MetricsExportPort"] <= 0:
        pytest.skip("Ray's agent did not come up in the time that Ray gives it")
    url = f"http://{node['NodeManagerAddress']}:{node['MetricsExportPort']}/metrics"
    with urllib.request.urlopen(url, timeout=60) as response:
        text = response.read().decode()
    found = {}
    for name, tags, value in re.findall(r"^ray_(mediamill_\w+){(.*)} (\S+)$", text, re.M):
        labels = dict(re.findall(r'\b(run|stage|code|kind)="([^"]*)"', tags))
        if labels.pop("run", None) == run_id:
            key = (name, *labels.values())
            found[key] = found.get(key, 0) + float(value)
    return found


def wait_for(key, run_id):
    deadline = time.monotonic() + TIMEOUT_S
    while key not in (found := values(run_id)):
        assert time.monotonic() < deadline, found
        time.sleep(1)
    return found


def test_a_runs_counts(ray_cluster, tmp_path):
    rows = picture_rows(draw_media(tmp_path / "media"), 11)
    rows.append({**rows[0], "id": "gone", "uri": str(tmp_path / "media" / "gone.png")})
    manifest = write_manifest(tmp_path / "manifest.parquet", rows)
    summary = run(make_job(manifest, tmp_path / "out"))
    found = wait_for((metrics.ROWS, "write"), summary.run_id)
    found.pop((metrics.ENGINE_ROWS,), None)  # exported only while the process runs
    assert found == {
        (metrics.ROWS, "prepare"): 12,
        (metrics.ROWS, "generate"): 12,
        (metrics.ROWS, "write"): 12,
        (metrics.ERROR_ROWS, "fetch_not_found"): 1,
        (metrics.TOKENS, "prompt"): summary.prompt_tokens,
        (metrics.TOKENS, "visual"): summary.visual_tokens,
        (metrics.TOKENS, "output"): summary.output_tokens,
    }


@pytest.mark.slow
def test_only_the_increase_is_exported(ray_cluster):
    """A restarted coordinator knows what the one before it has exported."""
    counters = metrics.ExportedCounters("grown", {(metrics.TOKENS, "output"): 100})
    engines = (metrics.ENGINES, "")
    for tokens, broken in ((100, 0), (130, 2), (130, 2), (120, 3)):
        counters.update({(metrics.TOKENS, "output"): tokens, engines: broken})
    metrics.export_engine_rows(lambda: 4, "grown")
    found = wait_for((metrics.ENGINE_ROWS,), "grown")
    assert found == {
        (metrics.TOKENS, "output"): 30,
        (metrics.ENGINES,): 3,
        (metrics.ENGINE_ROWS,): 4,
    }

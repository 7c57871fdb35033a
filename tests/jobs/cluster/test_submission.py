"""What a job's paths mean where it is submitted to."""

import os

import pytest

from mediamill.jobs.cluster.submission import for_cluster, path_warnings
from mediamill.model.tiny import CHECKPOINT
from mediamill.pipeline.checkpoint.checkpoint_hash import BUILT_IN, check_checkpoint
from mediamill.schemas.errors import JobError
from tests.pipeline.world import make_job

FAR = "http://head.example.com:8265"


def test_the_model_that_ships_is_named_and_found_again():
    job = for_cluster(make_job("/m.parquet", "/out"))
    assert job.model == BUILT_IN
    place = check_checkpoint(job.model)
    assert (place.path, place.url) == (str(CHECKPOINT), BUILT_IN)
    assert for_cluster(job) == job


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"manifest": "m.parquet"}, "manifest: found the relative path m.parquet"),
        ({"output": "file://out"}, "output: found the relative path out"),
        ({"model": "models/7b"}, "model: found the relative path models/7b"),
        ({"fetch__roots": ["/a", "b"]}, "fetch.roots: found the relative path b"),
        (
            {"canary__uri": "known.jpg", "canary__text": "Cat"},
            "canary.uri: found the relative path known.jpg",
        ),
    ],
)
def test_paths_that_mean_nothing_there_are_refused(changes, sentence):
    named = {"manifest": "/m.parquet", "output": "/out", **changes}
    with pytest.raises(JobError, match="a submitted job runs in a folder of its own") as error:
        for_cluster(make_job(**named))
    assert str(error.value).startswith(sentence)


def test_paths_of_another_machine_are_warned_of(tmp_path):
    job = for_cluster(make_job(tmp_path, "s3://bucket/out"))
    [warning] = path_warnings(job, FAR)
    assert warning.startswith(f"manifest: {tmp_path} is a path on the cluster's machines")
    assert "it exists on this machine, which proves nothing" in warning
    for near in ("http://127.0.0.1:8265", "localhost:8265", f"http://{os.uname().nodename}:8265"):
        assert not list(path_warnings(job, near))
    assert not list(path_warnings(make_job("s3://a/m", "s3://a/o", model=BUILT_IN), FAR))

"""Fingerprints of jobs do not change, so that outputs of earlier versions can be continued."""

import pytest

from mediamill.model.tiny import CHECKPOINT
from mediamill.pipeline.fingerprint import fingerprint, fingerprint_parts
from mediamill.pipeline.storage import storage
from mediamill.pipeline.tasks.tasks import task_kind
from mediamill.schemas.job import load_job
from mediamill.schemas.task import task_of

PATHS = {"manifest": "m", "output": "o", "model": "t"}
SCHEMA = {"type": "object", "properties": {"colour": {"enum": ["red", "blue"]}}}
PROMPTS = {"what": "What?", "colour": {"prompt": "Which?", "json_schema": SCHEMA}}


@pytest.mark.parametrize(
    ("keys", "expected"),
    [
        ({"job": "caption", "prompt": "Describe it."}, "10a8848f6fd0d83ad127dd8c7b1f422b"),
        (
            {"job": "caption", "json_schema": SCHEMA, "prompt": "p", "video.num_frames": 8},
            "42a7103eddcc5764159792bcf896fbcd",
        ),
        (
            {
                "job": "annotate",
                "prompts": PROMPTS,
                "dedupe": True,
                "generation.temperature": 0.5,
                "generation.stop": ["."],
                "generation.min_p": 0.1,
                "generation.min_new_tokens": 2,
                "seed": 7,
                "video.mrope": "hf5",
                "video.max_tokens": 900,
                "video.total_pixels": 90000,
                "json_answers.retries": 3,
            },
            "ef79ecab74661e5498632c5952481ae3",
        ),
        (
            {"job": "score", "prompt": "x", "score.texts": ["a", "b"], "system": "s"},
            "69bcf1f47f71af236afb1f3ac75b2a79",
        ),
        (
            {"job": "score", "prompt": "x", "score.column": "texts", "seed": 9},
            "e4d5a7fdf47ff63d3a1fd66926d63431",
        ),
        (
            {"job": "embed", "embed.pool": "auto", "image.max_pixels": 9000},
            "739ebbb4f36c530b9d2aba5061e03026",
        ),
        (
            {"job": "embed", "embed.pool": "mean", "prompt": "find", "resources.dtype": "float32"},
            "2cd3b79a631692e2bd9a79263b16e5dd",
        ),
    ],
)
def test_fingerprints_are_those_of_earlier_versions(keys, expected):
    job = load_job(None, PATHS | keys)
    task = task_kind(task_of(job, 8)).resolve(storage.resolve(str(CHECKPOINT)))
    parts = fingerprint_parts(job, "0" * 32) | task_kind(task).fingerprint()
    assert fingerprint(parts) == expected

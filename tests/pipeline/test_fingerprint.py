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
        ({"job": "caption", "prompt": "Describe it."}, "f9a2e4215771d3c553c285e70d5b0f35"),
        (
            {"job": "caption", "json_schema": SCHEMA, "prompt": "p", "video.num_frames": 8},
            "c7df1d5be021dcde43ecda2046306eae",
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
            "2c55872b1b26a6f690e3c164f1f8d0c8",
        ),
        (
            {"job": "score", "prompt": "x", "score.texts": ["a", "b"], "system": "s"},
            "0765c51f111f5a5d99113d2bc278ace0",
        ),
        (
            {"job": "score", "prompt": "x", "score.column": "texts", "seed": 9},
            "3e6bf61b68189100141a7eeeb7661db5",
        ),
        (
            {"job": "embed", "embed.pool": "auto", "image.max_pixels": 9000},
            "1f269c9a021f0fbb349755f9592a1cba",
        ),
        (
            {"job": "embed", "embed.pool": "mean", "prompt": "find", "resources.dtype": "float32"},
            "09c83e7e3d4be6bec9dbf2d05e72cd1a",
        ),
    ],
)
def test_fingerprints_are_those_of_earlier_versions(keys, expected):
    job = load_job(None, PATHS | keys)
    task = task_kind(task_of(job, 8)).resolve(storage.resolve(str(CHECKPOINT)))
    parts = fingerprint_parts(job, "0" * 32) | task_kind(task).fingerprint()
    assert fingerprint(parts) == expected


def test_retries_are_a_part_only_if_they_decide_texts():
    def found(**keys):
        pairs = {f"retries.{key}": value for key, value in keys.items()}
        job = load_job(None, PATHS | {"job": "caption", "prompt": "Describe it."} | pairs)
        return fingerprint(fingerprint_parts(job, "0" * 32))

    plain = found()
    assert found(fetch=0, after_s=0, temperature=0.3, repetition_penalty=2.0) == plain
    others = [
        found(smaller=1),
        found(again=1),
        found(again=1, temperature=0.3),
        found(again=1, repetition_penalty=2.0),
    ]
    assert len({plain, *others}) == 5

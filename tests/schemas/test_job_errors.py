"""Every sentence about a wrong job: where, which key, what was found, what was expected."""

import pytest

from mediamill.schemas.errors import JobError
from mediamill.schemas.job import load_job

COMPLETE = "job: caption\nmanifest: m.parquet\noutput: out\nmodel: tiny\n"
TEMPERATURE = "a number of at least 0, or null"
WHOLE = "a whole number of at least 1"
RANGE = "a range with the smaller first such as 2..8"
POSITIVE = "a number greater than 0"
KEYS_THERE = (
    "the keys are: job, manifest, media_column, output, model, prompt, prompts, json_schema, "
    "system, partition_by, rows_per_file, seed, dedupe, generation, json_answers, score, embed, "
    "annotate, image, video, fetch, resources, limits, alarms, retries, canary"
)

# Text of the job file after its four complete lines, and the sentence after "job.yaml:".
WRONG_VALUES = [
    (
        'generation: {max_new_tokens: "64"}',
        f'5: generation.max_new_tokens: found "64" (text), expected {WHOLE}',
    ),
    (
        "generation:\n  max_new_tokens: 0",
        f"6: generation.max_new_tokens: found 0 (a whole number), expected {WHOLE}",
    ),
    (
        "generation: {max_new_tokens: true}",
        f"5: generation.max_new_tokens: found true (true or false), expected {WHOLE}",
    ),
    (
        "generation: {max_new_tokens: 64.0}",
        f"5: generation.max_new_tokens: found 64.0 (a number), expected {WHOLE}",
    ),
    (
        "generation: {max_new_tokens: null}",
        f"5: generation.max_new_tokens: found null, expected {WHOLE}",
    ),
    (
        "generation: {temperature: -0.5}",
        f"5: generation.temperature: found -0.5 (a number), expected {TEMPERATURE}",
    ),
    (
        "generation: {temperature: .nan}",
        f"5: generation.temperature: found NaN (a number), expected {TEMPERATURE}",
    ),
    (
        "generation: {temperature: .inf}",
        f"5: generation.temperature: found Infinity (a number), expected {TEMPERATURE}",
    ),
    (
        "generation: {temperature: false}",
        f"5: generation.temperature: found false (true or false), expected {TEMPERATURE}",
    ),
    (
        "generation: {top_k: -1}",
        "5: generation.top_k: found -1 (a whole number), "
        "expected a whole number of at least 0, or null",
    ),
    (
        "generation: {min_new_tokens: 2.0}",
        "5: generation.min_new_tokens: found 2.0 (a number), "
        "expected a whole number of at least 0, or null",
    ),
    (
        "generation: {min_p: -0.1}",
        "5: generation.min_p: found -0.1 (a number), expected a number from 0 to 1, or null",
    ),
    (
        'generation: {stop: ["a", ""]}',
        '5: generation.stop: found ["a", ""] (a list), '
        "expected a list of texts that are not empty, or null",
    ),
    (
        "generation: {stop: 5}",
        "5: generation.stop: found 5 (a whole number), "
        "expected a list of texts that are not empty, or null",
    ),
    (
        "generation: {max_new_tokens: 4, min_new_tokens: 5}",
        "5: generation: found min_new_tokens 5 above max_new_tokens 4, "
        "expected min_new_tokens to be at most max_new_tokens",
    ),
    (
        "video: {mrope: hf4}",
        '5: video.mrope: found "hf4" (text), expected original or hf5',
    ),
    (
        "generation: {top_p: 1.5}",
        "5: generation.top_p: found 1.5 (a number), "
        "expected a number above 0 and at most 1, or null",
    ),
    (
        "generation: {repetition_penalty: 0}",
        f"5: generation.repetition_penalty: found 0 (a whole number), expected {POSITIVE}, or null",
    ),
    (
        "generation: 64",
        "5: generation: found 64 (a whole number), expected a mapping with keys of "
        "max_new_tokens, min_new_tokens, temperature, top_k, top_p, min_p, repetition_penalty, "
        "stop, stop_loops",
    ),
    (
        "image: {min_pixels: 10000, max_pixels: 5000}",
        "5: image: found min_pixels 10000 above max_pixels 5000, "
        "expected min_pixels to be at most max_pixels",
    ),
    (
        "image: {min_pixels: -1}",
        f"5: image.min_pixels: found -1 (a whole number), expected {WHOLE}, or null",
    ),
    (
        "video: {fps: 0}",
        f"5: video.fps: found 0 (a whole number), expected {POSITIVE}, or null",
    ),
    (
        "video: {fps: 1.0, num_frames: 8}",
        "5: video: found both fps (1.0) and num_frames (8), expected one: fps samples by time, "
        "num_frames a fixed number; set the other to null",
    ),
    (
        "video: {fps: null}",
        "5: video: found null for both fps and num_frames, expected one of them",
    ),
    (
        "video: {min_frames: 10, max_frames: 5}",
        "5: video: found min_frames 10 above max_frames 5, "
        "expected min_frames to be at most max_frames",
    ),
    (
        "resources: {replicas: many}",
        f'5: resources.replicas: found "many" (text), expected auto, {WHOLE}, or {RANGE}',
    ),
    (
        "resources: {replicas: 0}",
        f"5: resources.replicas: found 0 (a whole number), expected auto, {WHOLE}, or {RANGE}",
    ),
    (
        "resources: {prepare_workers: 8..2}",
        f'5: resources.prepare_workers: found "8..2" (text), expected auto, {WHOLE}, or {RANGE}',
    ),
    (
        "resources: {device: gpu}",
        '5: resources.device: found "gpu" (text), expected auto, cpu or cuda',
    ),
    (
        "resources: {labels: {generate: {accelerator: 3}}}",
        '5: resources.labels: found {"generate": {"accelerator": 3}} (a mapping), expected a '
        "mapping from prepare or generate to labels, each with a text",
    ),
    (
        "resources: {labels: {parse: {a: b}}}",
        '5: resources.labels: found {"parse": {"a": "b"}} (a mapping), expected a '
        "mapping from prepare or generate to labels, each with a text",
    ),
    (
        "resources: {dtype: fp16}",
        '5: resources.dtype: found "fp16" (text), expected auto, bfloat16, float16 or float32',
    ),
    (
        "limits: {fetch_timeout_s: soon}",
        f'5: limits.fetch_timeout_s: found "soon" (text), expected {POSITIVE}',
    ),
    ("prompt: 5", "5: prompt: found 5 (a whole number), expected text that is not blank, or null"),
    ('prompt: "  "', '5: prompt: found "  " (text), expected text that is not blank, or null'),
    (
        "prompt: {Describe: it}",
        '5: prompt: found {"Describe": "it"} (a mapping), expected text that is not blank, or null',
    ),
    (
        "partition_by: 5",
        "5: partition_by: found 5 (a whole number), expected a list of column names",
    ),
    (
        "partition_by: [a, 5]",
        '5: partition_by: found ["a", 5] (a list), expected a list of column names',
    ),
    (
        "partition_by: [a, b, a]",
        "5: partition_by: found 'a' more than once, expected each name once",
    ),
    ("seed: -1", "5: seed: found -1 (a whole number), expected a whole number from 0 to 2^63 - 1"),
    (
        "seed: 9223372036854775808",
        "5: seed: found 9223372036854775808 (a whole number), "
        "expected a whole number from 0 to 2^63 - 1",
    ),
    (
        "rows_per_file: 4_096",
        f'5: rows_per_file: found "4_096" (text), expected {WHOLE}',
    ),
]

UNKNOWN_KEYS = [
    ("promt: x", "5: unknown key 'promt', did you mean 'prompt'?"),
    (
        "max_new_tokens: 64",
        "5: unknown key 'max_new_tokens', did you mean 'generation.max_new_tokens'?",
    ),
    (
        "generation: {max_new_token: 64}",
        "5: unknown key 'generation.max_new_token', did you mean 'generation.max_new_tokens'?",
    ),
    (
        "generation: {min_pixels: 64}",
        "5: unknown key 'generation.min_pixels', did you mean 'image.min_pixels'?",
    ),
    ("resource: {}", "5: unknown key 'resource', did you mean 'resources'?"),
    ("zzz: 1", f"5: unknown key 'zzz', {KEYS_THERE}"),
    (
        "image: {zzz: 1}",
        "5: unknown key 'image.zzz', the keys are: min_pixels, max_pixels",
    ),
    ("5: x", f"5: unknown key '5', {KEYS_THERE}"),
    ("<<: {seed: 1}", f"5: unknown key '<<', {KEYS_THERE}"),
]

NOT_YAML = [
    (
        "prompt: Describe: it",
        "5:17: not valid YAML: mapping values are not allowed here "
        "(a text that holds ': ' needs quotes)",
    ),
    ("prompt: [a", "6:1: not valid YAML: expected ',' or ']', but got '<stream end>'"),
    (
        "prompt: !!python/object:os.system x",
        "5:9: not valid YAML: could not determine a constructor",
    ),
    ("output: other", "5: output: given a second time, first in line 3"),
    (
        "image: {max_pixels: 1, max_pixels: 2}",
        "5: max_pixels: given a second time, first in line 5",
    ),
    (
        "seed: 1\nimage: {max_pixels: 1}\nimage.max_pixels: 2",
        "7: image.max_pixels: given a second time, first in ",
    ),
    ("? [a, b]\n: 1", "5: found a list as a key, expected a name"),
    ("prompt: *nobody", "5:9: not valid YAML: found undefined alias 'nobody'"),
    ("---\njob: caption", "5:1: not valid YAML: but found another document"),
]


def message(path, *overrides):
    with pytest.raises(JobError) as caught:
        load_job(str(path), overrides)
    return str(caught.value)


@pytest.fixture
def job_file(tmp_path):
    def write(text):
        path = tmp_path / "job.yaml"
        path.write_text(text, encoding="utf-8")
        return path

    return write


@pytest.mark.parametrize(("text", "sentence"), WRONG_VALUES + UNKNOWN_KEYS)
def test_wrong_value_is_one_sentence(job_file, text, sentence):
    path = job_file(f"{COMPLETE}{text}\n")
    assert message(path) == f"{path}:{sentence}"


@pytest.mark.parametrize(("text", "sentence"), NOT_YAML)
def test_wrong_text_names_its_place(job_file, text, sentence):
    path = job_file(f"{COMPLETE}{text}\n")
    said = message(path)
    assert said.startswith(f"{path}:{sentence}")
    assert "\n" not in said


@pytest.mark.parametrize("key", ["job", "manifest", "output", "model"])
def test_missing_key_is_named(job_file, key):
    kept = [line for line in COMPLETE.splitlines() if not line.startswith(key)]
    path = job_file("\n".join(kept))
    assert message(path).startswith(f"{path}: found no key '{key}', expected ")


def test_every_mistake_is_told_in_the_order_of_the_file(job_file):
    path = job_file("job: scores\nmax_pixel: 1\noutput: out\nvideo: {fps: fast}\nmodel: 7\n")
    assert message(path, "seed=x").split("\n") == [
        f'{path}:1: job: found "scores" (text), expected caption, annotate, score or embed',
        f"{path}:2: unknown key 'max_pixel', did you mean 'image.max_pixels'?",
        f'{path}:4: video.fps: found "fast" (text), expected {POSITIVE}, or null',
        f"{path}:5: model: found 7 (a whole number), expected text that is not blank",
        'command line: seed: found "x" (text), expected a whole number from 0 to 2^63 - 1',
        f"{path}: found no key 'manifest', "
        "expected a Parquet file, folder or glob that lists the media",
    ]


def test_mistake_of_an_override_is_the_command_lines(job_file):
    path = job_file(f"{COMPLETE}generation: {{max_new_tokens: 5}}\n")
    assert message(path, "generation.max_new_tokens=many") == (
        f'command line: generation.max_new_tokens: found "many" (text), expected {WHOLE}'
    )


@pytest.mark.parametrize(
    ("pairs", "sentence"),
    [
        (["seed"], "command line: found 'seed', expected key=value"),
        (["=5"], "command line: found '=5', expected key=value"),
        (["seed=1", "seed=2"], "command line: seed: given a second time, expected it once"),
        (["sed=1"], "command line: unknown key 'sed', did you mean 'seed'?"),
        (
            ["partition_by=[a"],
            "command line: partition_by:1:3: not valid YAML: expected ',' or ']'",
        ),
        (
            ["generation=5"],
            "command line: generation: found 5 (a whole number), expected a mapping",
        ),
        (["prompt=\udcff"], 'command line: prompt: found "\\udcff" (text), expected text that is'),
        (["model="], "command line: model: found null, expected text that is not blank"),
    ],
)
def test_wrong_overrides(job_file, pairs, sentence):
    assert message(job_file(COMPLETE), *pairs).startswith(sentence)


def test_long_values_are_cut_and_line_breaks_escaped(job_file):
    said = message(job_file(COMPLETE), 'seed="' + "x\\n" * 100 + '"')
    assert "\n" not in said
    assert len(said) < 200


@pytest.mark.parametrize("text", ["- a\n- b\n", "just text\n"])
def test_a_job_file_is_a_mapping(job_file, text):
    path = job_file(text)
    assert message(path).startswith(f"{path}:1: found ")
    assert message(path).endswith("expected lines of `key: value`")


def test_files_that_cannot_be_read(tmp_path):
    binary = tmp_path / "binary.yaml"
    binary.write_bytes(b"job: \xff\xfe")
    control = tmp_path / "control.yaml"
    control.write_bytes(b"job: \x00")
    assert message(tmp_path / "none.yaml") == f"{tmp_path}/none.yaml: no such job file"
    assert message(tmp_path) == f"{tmp_path}: the job file cannot be read: Is a directory"
    assert message(binary) == f"{binary}: byte 5 is not UTF-8, expected a YAML text file"
    assert message(control).startswith(f"{control}: not valid YAML: special characters")


def test_deep_nesting_and_self_reference_are_sentences_too(job_file):
    path = job_file(f"{COMPLETE}prompt: {'[' * 5000}\n")
    assert message(path) == f"{path}: not valid YAML: nested too deeply"
    path = job_file(f"{COMPLETE}prompt: &again [*again]\n")
    assert message(path).startswith(f"{path}:")


def test_the_command_may_name_the_job(job_file):
    named = job_file(COMPLETE.replace("caption", "score"))
    with pytest.raises(JobError) as caught:
        load_job(str(named), job="caption")
    assert str(caught.value) == f'{named}:1: job: found "score", expected caption as the command'
    unnamed = job_file(COMPLETE.replace("job: caption\n", ""))
    assert load_job(str(unnamed), job="caption").job == "caption"

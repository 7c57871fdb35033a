"""Job files, overrides, and the way back to YAML."""

import pickle

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from mediamill.schemas.errors import JobError
from mediamill.schemas.job import (
    KEYS,
    CanaryConfig,
    FetchConfig,
    GenerationConfig,
    ImageConfig,
    JobConfig,
    Limits,
    Resources,
    VideoConfig,
    describe_keys,
    job_dict,
    load_job,
    render_job,
)
from mediamill.schemas.job_alarms import LANGUAGES, Alarms
from mediamill.schemas.job_resources import Labels

PATHS = {"job": "caption", "manifest": "m", "output": "o", "model": "t"}
PAIRS = [f"{key}={value}" for key, value in PATHS.items()]


def test_defaults_are_those_of_the_design():
    job = load_job(None, PATHS)
    assert job.generation == GenerationConfig(max_new_tokens=128, temperature=0.0)
    assert (job.video.fps, job.video.num_frames) == (2.0, None)
    assert (job.video.min_frames, job.video.max_frames) == (4, 768)
    assert (job.image.min_pixels, job.image.max_pixels) == (None, None)
    assert (job.resources.replicas, job.resources.tensor_parallel) == ("auto", 1)
    assert job.partition_by == ()
    assert job.seed == 0


def test_the_job_file_of_the_design(tmp_path):
    path = tmp_path / "job.yaml"
    path.write_text(
        "job: caption                      # caption | annotate | score | embed\n"
        "manifest: s3://bucket/manifest/\n"
        "output: s3://bucket/captions/\n"
        "model: s3://models/Qwen2-VL-7B-Instruct\n"
        "prompt: Describe this image.\n"
        "partition_by: [date]\n"
        "generation: {max_new_tokens: 128, temperature: 0.0}\n"
        "image: {min_pixels: 3136, max_pixels: 1003520}\n"
        "video: {fps: 2.0, min_frames: 4, max_frames: 768}\n"
        "resources: {replicas: auto, tensor_parallel: 1, dtype: bfloat16}\n",
        encoding="utf-8",
    )
    job = load_job(str(path))
    assert job.manifest == "s3://bucket/manifest/"
    assert job.partition_by == ("date",)
    assert job.image == ImageConfig(min_pixels=3136, max_pixels=1003520)
    assert job.resources.dtype == "bfloat16"


def test_the_command_line_beats_the_file_key_by_key(tmp_path):
    path = tmp_path / "job.yaml"
    path.write_text(
        "job: caption\nmanifest: m\noutput: o\nmodel: t\n"
        "generation: {max_new_tokens: 5, top_k: 3}\nimage: # nothing yet\n",
        encoding="utf-8",
    )
    job = load_job(
        str(path), ["generation.max_new_tokens=64", "output=other", "image.max_pixels=9000"]
    )
    assert job.generation == GenerationConfig(max_new_tokens=64, top_k=3)
    assert job.output == "other"
    assert job.image.max_pixels == 9000


@pytest.mark.parametrize(
    ("pair", "value"),
    [
        ("prompt=Describe: it", "Describe: it"),
        ('prompt="Describe: it"', "Describe: it"),
        ("prompt='a''b'", "a'b"),
        ('prompt="a\\nb"', "a\nb"),
        ('prompt="No" is an answer', '"No" is an answer'),
        ("prompt=Is #1 first?", "Is #1 first?"),
        ("prompt=[a]", "[a]"),
        ("prompt=a=b", "a=b"),
        ("prompt=5", "5"),
        ("prompt=", None),
        ("prompt=null", None),
        ("partition_by=[kind]", ("kind",)),
        ("partition_by=[kind, day]", ("kind", "day")),
        ("partition_by=kind", ("kind",)),
        ("partition_by=[]", ()),
        ("seed=7", 7),
        ("seed=010", 10),
    ],
)
def test_override_values(pair, value):
    key = pair.partition("=")[0]
    assert getattr(load_job(None, [*PAIRS, pair]), key) == value


@pytest.mark.parametrize(
    ("text", "value"), [("1e-3", 0.001), ("1", 1.0), (".5", 0.5), ("1.0E+0", 1.0), ("1.", 1.0)]
)
def test_numbers_are_those_of_yaml_1_2(text, value):
    assert (
        load_job(None, [*PAIRS, f"generation.temperature={text}"]).generation.temperature == value
    )


@pytest.mark.parametrize("text", ["2024-01-01", "12:30", "yes", "on", "1_000"])
def test_words_stay_words(tmp_path, text):
    path = tmp_path / "job.yaml"
    path.write_text(f"job: caption\nmanifest: m\noutput: o\nmodel: {text}\n", encoding="utf-8")
    assert load_job(str(path)).model == text


@pytest.mark.parametrize(
    ("text", "value"),
    [("null", None), ("[]", ()), ('["\\n", "b: c"]', ("\n", "b: c")), ("END", ("END",))],
)
def test_stop_strings_are_a_list_or_one_text(text, value):
    assert load_job(None, [*PAIRS, f"generation.stop={text}"]).generation.stop == value


def test_dotted_keys_sections_and_mappings_say_the_same(tmp_path):
    path = tmp_path / "job.yaml"
    path.write_text("generation.top_k: 4\n", encoding="utf-8")
    expected = load_job(None, [*PAIRS, "generation.top_k=4"])
    assert load_job(str(path), PATHS) == expected
    assert load_job(None, [*PAIRS, "generation={top_k: 4}"]) == expected
    assert load_job(None, PATHS | {"generation": {"top_k": 4}}) == expected
    assert load_job(None, PATHS | {"generation.top_k": 4}) == expected


def test_num_frames_replaces_the_default_fps():
    video = load_job(None, [*PAIRS, "video.num_frames=8"]).video
    assert (video.fps, video.num_frames) == (None, 8)
    assert load_job(None, [*PAIRS, "video.fps=null", "video.num_frames=8"]).video == video


def test_models_are_frozen_strict_and_survive_pickling():
    job = load_job(None, PATHS)
    with pytest.raises(ValidationError):
        job.seed = 5
    with pytest.raises(ValidationError):
        Resources(batch_row=3)
    with pytest.raises(ValidationError):
        GenerationConfig(max_new_tokens="64")
    assert pickle.loads(pickle.dumps(job)) == job  # noqa: S301 - our own bytes


def test_every_key_has_a_meaning_and_an_expectation():
    described = describe_keys()
    for key, field in KEYS.items():
        assert field.description, key
        assert key in described


counts = st.integers(1, 2**40)
positives = st.floats(1e-300, 1e300)
texts = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=30).filter(str.strip)


@st.composite
def ordered(draw, low, high):
    values = sorted([draw(counts), draw(counts)])
    return {
        low: draw(st.sampled_from([None, values[0]])),
        high: draw(st.sampled_from([None, values[1]])),
    }


@st.composite
def videos(draw):
    frames = sorted([draw(counts), draw(counts)])
    by_time = draw(st.booleans())
    return VideoConfig(
        fps=draw(positives) if by_time else None,
        num_frames=None if by_time else draw(counts),
        min_frames=frames[0],
        max_frames=frames[1],
        **draw(ordered("min_pixels", "max_pixels")),
    )


names = st.lists(texts, unique=True, max_size=3).map(tuple)
jobs = st.builds(
    JobConfig,
    job=st.just("caption"),
    manifest=texts,
    output=texts,
    model=texts,
    prompt=st.none() | texts,
    system=st.none() | texts,
    partition_by=names,
    rows_per_file=counts,
    seed=st.integers(0, 2**63 - 1),
    generation=st.builds(
        GenerationConfig,
        max_new_tokens=counts,
        temperature=st.none() | st.floats(0, 1e300),
        top_k=st.none() | st.integers(0, 2**40),
        min_p=st.none() | st.floats(0, 1),
        min_new_tokens=st.none() | st.integers(0, 1),
        stop=st.none() | st.lists(st.text(min_size=1, max_size=9), max_size=3).map(tuple),
        top_p=st.none() | st.floats(0, 1, exclude_min=True),
        repetition_penalty=st.none() | positives,
        stop_loops=st.booleans(),
    ),
    alarms=st.builds(
        Alarms,
        loop=st.none() | st.floats(0, 1),
        language=st.none(),
        expect_language=st.none() | st.sampled_from(LANGUAGES),
        rows=counts,
    ),
    image=ordered("min_pixels", "max_pixels").map(lambda pixels: ImageConfig(**pixels)),
    video=videos(),
    resources=st.builds(
        Resources,
        replicas=st.sampled_from(["auto", "1..1", "2..800"]) | counts,
        device=st.sampled_from(["auto", "cpu", "cuda"]),
        labels=st.builds(Labels, generate=st.dictionaries(texts, texts, max_size=2)),
        tensor_parallel=counts,
        dtype=st.sampled_from(["auto", "bfloat16", "float16", "float32"]),
        prepare_workers=st.just("auto") | counts,
        batch_rows=st.just("auto") | counts,
        grace_s=st.floats(0, 1e6),
    ),
    fetch=st.builds(
        FetchConfig,
        schemes=st.none() | names,
        hosts=st.none() | names,
        private_addresses=st.booleans(),
    ),
    limits=st.builds(
        Limits,
        max_bytes=counts,
        max_duration_s=positives,
        max_error_rate=st.none() | st.floats(0, 1),
    ),
    canary=st.builds(CanaryConfig) | st.builds(CanaryConfig, uri=texts, text=texts),
)


@settings(deadline=None)
@given(job=jobs)
def test_a_rendered_job_loads_as_the_same_job(tmp_path_factory, job):
    path = tmp_path_factory.mktemp("job") / "job.yaml"
    path.write_text(render_job(job), encoding="utf-8", newline="")
    assert load_job(str(path)) == job
    assert load_job(None, job_dict(job)) == job


@settings(deadline=None)
@given(text=texts)
def test_a_text_override_is_taken_as_it_stands(text):
    if text in ("~", "null") or text[0] in "\"'":
        return
    assert load_job(None, [*PAIRS, f"prompt={text}"]).prompt == text


@settings(deadline=None)
@given(text=st.text(max_size=60))
def test_any_text_is_a_job_or_a_job_error(tmp_path_factory, text):
    path = tmp_path_factory.mktemp("job") / "job.yaml"
    path.write_bytes(text.encode("utf-8", "surrogatepass"))
    with pytest.raises(JobError):
        load_job(str(path))

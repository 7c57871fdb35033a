"""The known row is asked at the start and among the rows, the way that rows go; a wrong answer is
fatal, and it is never a row itself.
"""

from pathlib import Path

import pyarrow as pa
import pytest

from mediamill.model.tiny import CAPTION_PROMPT, CHECKPOINT
from mediamill.pipeline.checkpoint.checkpoint_hash import CheckpointHash
from mediamill.pipeline.faults import CanaryError
from mediamill.pipeline.plan import check
from mediamill.pipeline.records import read_schema
from mediamill.pipeline.replica.canary import Canary, check_canary
from mediamill.pipeline.run import GenerateStage, PrepareStage
from mediamill.pipeline.storage import storage
from mediamill.schemas import columns as c
from mediamill.schemas.errors import JobError
from mediamill.schemas.manifest import check_manifest_schema
from tests.pipeline.world import draw_media, make_job, picture_rows, write_manifest

CONTENT = CheckpointHash.of(storage.resolve(str(CHECKPOINT)))
MANIFEST = check_manifest_schema(pa.schema([("id", pa.string()), ("uri", pa.string())]), "m")


def nothing(number):
    pass


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    return tmp_path_factory.mktemp("canary")


def make_stage(job, home, count=nothing):
    return GenerateStage(
        job, MANIFEST, (str(CHECKPOINT), CONTENT), str(home), count, threads=1, rows=4, on_gpu=False
    )


@pytest.fixture(scope="module")
def answered(home):
    """The row of a picture: its prepared table, and its text."""
    media = draw_media(home / "media")
    job = make_job("m", "o", fetch__roots=[str(home)])
    rows = [
        {"id": row["id"], "uri": row["uri"], "row": {"file": 0, "index": number}}
        for number, row in enumerate(picture_rows(media, 3))
    ]
    schema = read_schema(MANIFEST)
    columns = {field.name: pa.nulls(len(rows), field.type) for field in schema}
    given = pa.Table.from_pylist(rows)
    columns |= {name: given[name] for name in given.column_names}
    table = pa.table(columns).select(schema.names).cast(schema)
    prepare = PrepareStage(job, MANIFEST, (str(CHECKPOINT), CONTENT), str(home), nothing)
    prepared = prepare(table)
    texts = make_stage(job, home)(prepared)[c.TEXT].to_pylist()
    return prepared, rows[0]["uri"], texts[0]


def job_with(uri, text, **changes):
    return make_job("m", "o", canary__uri=uri, canary__text=text, **changes)


def test_the_canary_gets_the_answer_of_the_row_and_is_no_row(answered, home):
    prepared, uri, text = answered
    counted = []
    stage = make_stage(job_with(uri, text), home, counted.append)
    found = stage(prepared)
    assert found[c.ID].to_pylist() == prepared[c.ID].to_pylist()
    assert found[c.TEXT][0].as_py() == text
    assert counted == [3]


def test_a_table_without_rows_passes_as_one(answered, home):
    """The stages get such a table once the run drains."""
    prepared, _, _ = answered
    stage = make_stage(make_job("m", "o"), home)
    assert stage(prepared.slice(0, 0)).num_rows == 0
    job = make_job("m", "o", fetch__roots=[str(home)])
    prepare = PrepareStage(job, MANIFEST, (str(CHECKPOINT), CONTENT), str(home), nothing)
    empty = prepare(prepared.select(read_schema(MANIFEST).names).slice(0, 0))
    assert (empty.num_rows, empty.schema) == (0, prepared.schema)


def test_a_relative_path_is_the_drivers(answered, home):
    _, uri, text = answered
    make_stage(job_with(str(Path(uri).relative_to(home)), text), home)


@pytest.mark.parametrize("end", [" ", ".", "\n"])
def test_another_answer_is_fatal_and_shows_both(answered, home, end):
    _, uri, text = answered
    with pytest.raises(CanaryError) as error:
        make_stage(job_with(uri, text + end), home)
    assert uri in str(error.value)
    assert f"found the answer {text!r}, expected {text + end!r}" in str(error.value)


def test_it_is_checked_among_the_rows(answered, home):
    """It runs once in so many rows, from any thread; an error is raised then."""
    _, uri, text = answered
    asked, answers = [], [text] * 3

    def answer(request):
        asked.append(request.id)
        return answers.pop(0) if answers else "nonsense"

    job = job_with(uri, text)
    sampling = make_stage(make_job("m", "o"), home)._generate.sampling
    canary = Canary(job, CHECKPOINT, home, sampling, answer, every_rows=1000)
    canary.check()
    for _ in range(40):
        canary.count(64)
    assert len(asked) == len(set(asked)) == 1 + 2
    with pytest.raises(CanaryError, match="nonsense"):
        canary.count(1000)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"prompt": None}, r"canary.prompt: found no prompt there and none in the job"),
        ({"canary__uri": "gone.jpg"}, r"canary.uri: gone.jpg cannot be read .*No such file"),
    ],
)
def test_a_canary_that_cannot_be_used_is_a_job_error(answered, changes, words):
    _, uri, text = answered
    settings = {"canary__uri": uri, "canary__text": text, **changes}
    with pytest.raises(JobError, match=words):
        check_canary(make_job("m", "o", **settings))


def test_the_plan_checks_it_and_the_fingerprint_ignores_it(answered, home):
    _, uri, text = answered
    rows = [{"id": "a", "uri": uri, "prompt": CAPTION_PROMPT}]
    manifest = write_manifest(home / "m.parquet", rows)
    plain = check(make_job(manifest, home / "out"))
    with_canary = make_job(manifest, home / "out", canary__uri=uri, canary__text=text)
    assert check(with_canary).fingerprint == plain.fingerprint
    with pytest.raises(JobError, match=r"canary\.uri"):
        check(make_job(manifest, home / "out", canary__uri="gone", canary__text=text))

"""A job that draws its answers: the same again with the same seed, and cut at its stop strings."""

import pyarrow as pa

from benchmarks.questions import Way
from mediamill.model.tiny import CAPTION_PROMPT, CHECKPOINT
from mediamill.pipeline.stages import generate
from mediamill.pipeline.stages.generate import EngineSize, Generate
from mediamill.pipeline.tasks.row_seed import row_seed
from mediamill.schemas.manifest import check_manifest_schema
from tests.pipeline.world import assert_each_once, draw_media, make_job, picture_rows

DRAWN = {"generation.max_new_tokens": 6, "generation.temperature": 3.0, "generation.top_k": 0}


def test_a_seed_decides_the_answers_and_a_stop_string_ends_them(tmp_path):
    """Once more, in other batches: the same answers, each cut before the stop string."""
    rows = picture_rows(draw_media(tmp_path / "media"), 12)

    def texts(batch_rows, **changes):
        keys = {**DRAWN, "seed": 1, "prompt": CAPTION_PROMPT, **changes}
        stages = Way(rows, tmp_path, str(CHECKPOINT), **keys)
        found = []
        for first in range(0, len(rows), batch_rows):
            found += stages.answers_of(stages.table.slice(first, batch_rows))
        assert_each_once(found, [row["id"] for row in rows])
        assert not [row["error_message"] for row in found if row["error_message"]]
        return {row["id"]: row["text"] for row in found}

    whole = texts(12)
    assert len(set(whole.values())) > 6
    stop = next(text for text in whole.values() if len(text) > 8)[4:7]
    cut = texts(3, **{"generation.stop": [stop]})
    assert cut == {name: text.partition(stop)[0] for name, text in whole.items()}
    assert cut != whole


def test_rows_have_seeds_of_their_own():
    seeds = {row_seed(seed, name) for seed in range(30) for name in ("a", "b", 5, "0/a")}
    assert len(seeds) == 120
    assert all(0 <= seed < 2**63 for seed in seeds)
    # For ever: outputs that are continued later have to go on alike.
    assert row_seed(0, "row-00000") == 1686964637029006099


def test_all_that_a_job_says_reaches_the_engine(monkeypatch):
    job = make_job(
        "m", "o", seed=9, video__mrope="hf5",
        generation__max_new_tokens=7, generation__min_new_tokens=2, generation__temperature=0.5,
        generation__top_k=3, generation__top_p=0.9, generation__min_p=0.1,
        generation__repetition_penalty=1.1, generation__stop=["x", "y"],
    )  # fmt: skip
    options = {}
    load = generate.load_engine

    def load_engine(*arguments, **keywords):
        options.update(keywords)
        return load(*arguments, **keywords)

    monkeypatch.setattr(generate, "load_engine", load_engine)
    manifest = check_manifest_schema(pa.schema([("id", pa.string()), ("uri", pa.string())]), "m")
    stage = Generate(manifest, job, CHECKPOINT, lambda _: None, EngineSize(16, 1, False))
    assert options["mrope"] == "hf5"
    for name, value in job.generation.model_dump().items():
        assert getattr(stage.sampling, name) == value, name
    assert stage.sampling.seed == 9

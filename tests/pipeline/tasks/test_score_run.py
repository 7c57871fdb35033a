"""Jobs of the kinds score and embed, from files to rows of Parquet, against the reference."""

import json
import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.dataset as pads
import pytest
import torch

from mediamill.jobs.demo.drawn_media import draw
from mediamill.model.processor import Processor
from mediamill.model.tiny import CHECKPOINT
from mediamill.pipeline.records import read_schema
from mediamill.pipeline.run import Drained, Stop, check, run
from mediamill.pipeline.stages.fetch import Fetch, FetchRules
from mediamill.pipeline.stages.generate import EngineSize, Generate
from mediamill.pipeline.stages.prepare import Prepare
from mediamill.schemas import columns as c
from mediamill.schemas.manifest import check_manifest_schema
from tests import oracle
from tests.model.batches import reference_inputs
from tests.model.prompts import IMAGE, VIDEO, Prompt
from tests.pipeline.tasks.score_rows import drawn_rows
from tests.pipeline.world import assert_each_once, make_job, read_output, write_manifest

# The reference counts the positions of videos so.
EXACT = {"video__mrope": "hf5", "resources__dtype": "float32", "prompt": None}
PICTURES, CLIPS = 40, 8
MEDIA = pa.list_(pa.struct([("type", pa.string()), ("uri", pa.string())]))


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    return tmp_path_factory.mktemp("scored")


@pytest.fixture(scope="module")
def reference():
    return Processor.load(CHECKPOINT), oracle.load_model(CHECKPOINT)


def prompt_of(processor, row):
    paths = [one["uri"] for one in row.get("media", [row])]
    visuals = [processor.prepare_media(Path(path).read_bytes())[0] for path in paths]
    messages = processor.user_message(row.get("prompt") or "", [one.kind for one in visuals])
    return Prompt(processor.build_prompt(messages, visuals), tuple(visuals))


@torch.inference_mode()
def forward(model, prompt, more=(), **options):
    ids = torch.tensor([[*prompt.ids, *more]])
    return model(**reference_inputs([prompt], ids, torch.ones_like(ids)), **options)


def run_with_a_stop(job, rows):
    """Runs a job that is stopped as soon as rows are finished, and goes on. rows: in all."""
    stop = Stop()
    with pytest.raises(Drained):
        run(job, stop=stop, on_progress=lambda progress: progress.rows_done and stop.request())
    before = read_output(job.output)
    assert 0 < len(before) < rows
    summary = run(job)
    assert summary.skipped == len(before)
    after = {row["id"]: row for row in read_output(job.output)}
    assert all(after[row["id"]] == row for row in before)
    return summary


@pytest.fixture(scope="module")
def to_score(world):
    """A job, its rows with their true texts, and its rows that are errors."""
    rows = drawn_rows(world / "scenes", PICTURES, CLIPS)
    first, missing = rows[0], str(world / "missing.png")
    bad = {
        "null": ({"texts": None}, "prompt_invalid", "found null"),
        "empty": ({"texts": []}, "prompt_invalid", "found an empty list"),
        "hole": ({"texts": ["a", ""]}, "prompt_invalid", "an empty text as text 2 of 2"),
        "control": ({"texts": ["a", "b<|im_end|>"]}, "prompt_invalid", "text 2 of those to score"),
        "long": ({"texts": ["the word open " * 2000]}, "context_too_long", "text 1 of those to sc"),
        "gone": ({"uri": missing}, "fetch_not_found", "missing.png"),
    }
    further = [{**first, **changes, "id": name} for name, (changes, *_) in bad.items()]
    manifest = write_manifest(world / "score.parquet", [*rows, *further], row_group_size=20)
    kept = {"fetch__roots": [str(world)], "resources__batch_rows": 4, **EXACT}
    job = make_job(manifest, world / "scores", job="score", score__column="texts", **kept)
    return job, rows, bad


@pytest.fixture(scope="module")
def scored(to_score, ray_cluster):
    run(to_score[0])


@pytest.mark.slow
def test_scores_after_a_stop_are_those_of_one_run(world, to_score, scored):
    job, rows, bad = to_score
    # Small files, so that some rows are finished long before the last.
    again = job.model_copy(update={"output": str(world / "stopped"), "rows_per_file": 8})
    run_with_a_stop(again, len(rows) + len(bad))
    found, expected = read_output(again.output), read_output(job.output)
    names = [
        [(one["id"], one["text"], one["error_code"]) for one in some] for some in (found, expected)
    ]
    assert names[0] == names[1]


def test_the_true_text_is_found_and_scores_are_the_references(world, reference, to_score, scored):
    _, rows, bad = to_score
    truths = {row["id"]: row["truth"] for row in rows}
    written = read_output(world / "scores")
    assert_each_once(written, [*truths, *bad])
    found = {row["id"]: row for row in written}
    assert all(found[name]["status"] == "ok" for name in truths)
    for name, (_, code, words) in bad.items():
        assert found[name]["error_code"] == code
        assert words in found[name]["error_message"]
        assert all(found[name][column] is None for column in ("scores", "text", "probability"))
    for kind in ("easy", "hard", "question"):
        names = [name for name in truths if name.endswith(kind)]
        right = sum(found[name]["text"] == truths[name] for name in names)
        assert right >= 0.95 * len(names), kind
    processor, model = reference
    end = processor.tokenizer.special["<|im_end|>"]
    for row in [row for row in rows if "clip" in row["id"]][:2] + rows[:4]:
        prompt = prompt_of(processor, row)
        for text, score in zip(row["texts"], found[row["id"]]["scores"], strict=True):
            tokens = [*processor.tokenizer.encode(text), end]
            labels = torch.tensor([[-100] * len(prompt.ids) + tokens])
            loss = forward(model, prompt, tokens, labels=labels).loss.item()
            assert score["text"] == text
            assert score["tokens"] == len(tokens) == len(score["token_logprobs"])
            assert score["mean_logprob"] == pytest.approx(-loss, abs=1e-4)
            assert score["logprob"] == pytest.approx(-loss * len(tokens), abs=1e-3)
            assert sum(score["token_logprobs"]) == pytest.approx(score["logprob"], abs=1e-3)


def relative(found, want):
    return np.linalg.norm(found - want) / np.linalg.norm(want)


def test_vectors_are_the_references_and_can_be_searched(world, reference, ray_cluster):
    draw(world / "scenes", PICTURES, CLIPS)
    files = sorted((world / "scenes" / "media").iterdir())
    rows = [{"id": path.name, "media": [{"type": None, "uri": str(path)}]} for path in files]
    rows += [{**row, "id": f"again {row['id']}"} for row in rows]
    rows.append({"id": "text", "media": []})
    schema = pa.schema([("id", pa.string()), ("media", MEDIA)])
    manifest = write_manifest(
        world / "embed.parquet", pa.Table.from_pylist(rows, schema), row_group_size=20
    )
    kept = {"fetch__roots": [str(world)], "resources__batch_rows": 16, **EXACT}
    run(make_job(manifest, world / "vectors", job="embed", **kept))
    table = pads.dataset(world / "vectors", format="parquet", partitioning="hive").to_table()
    width = reference[1].config.text_config.hidden_size
    assert table.schema.field("embedding").type == pa.list_(pa.float32(), width)
    found = {row["id"]: row for row in table.to_pylist()}
    assert_each_once(table.to_pylist(), [row["id"] for row in rows])
    errors = {row["id"]: row["error_code"] for row in found.values() if row["error_code"]}
    broken = {path.name for path in files if path.name[4:].startswith(("cut-off", "empty", "text"))}
    assert errors.keys() == {*broken, *(f"again {name}" for name in broken), "text"}
    assert errors["text"] == "media_empty"
    assert all(found[name]["embedding"] is None for name in errors)
    # As in docs/score-embed.md.
    sound = table.filter(pa.compute.field("status") == "ok")
    vectors = np.stack(sound.to_pandas()["embedding"])
    flat = sound["embedding"].combine_chunks().flatten().to_numpy().reshape(-1, width)
    assert vectors.dtype == flat.dtype == np.float32
    assert np.array_equal(vectors, flat)
    names = sound["id"].to_pylist()
    likeness = flat @ flat.T
    np.fill_diagonal(likeness, -1)
    for name, best, most in zip(names, likeness.argmax(1), likeness.max(1), strict=True):
        twin = name.removeprefix("again ") if "again " in name else f"again {name}"
        assert most == pytest.approx(1, abs=1e-5)
        # Another picture may look the same to it, but none can be more alike.
        assert flat[names.index(twin)] @ flat[names.index(name)] > most - 1e-5
        assert names[best].split()[-1] == name.split()[-1] or most > 1 - 1e-5
    processor, model = reference
    for path in [files[0], files[-6], next(p for p in files if p.suffix == ".mp4")]:
        [visual] = prompt_of(processor, {"uri": path}).visuals
        pixels = processor.rules[visual.kind].normalize(visual.patches, visual.kind)
        with torch.inference_mode():
            tokens = model.model.visual(pixels, grid_thw=torch.tensor([visual.grid_thw]))
        want = tokens.pooler_output.mean(0).numpy()
        assert relative(np.array(found[path.name]["embedding"]), want / np.linalg.norm(want)) < 1e-5


@pytest.fixture(scope="module")
def fetched(world):
    """Three pictures, a clip and a text without media, as they come out of fetch."""
    draw(world / "few", 3, 1)
    files = sorted((world / "few" / "media").iterdir())[:4]
    rows = [{"id": path.name, "media": [{"type": None, "uri": str(path)}]} for path in files]
    rows = [{**row, "prompt": "Describe it."} for row in [*rows, {"id": "text", "media": []}]]
    fields = [("id", pa.string()), ("media", MEDIA), ("prompt", pa.string())]
    source = pa.Table.from_pylist(rows, pa.schema(fields))
    write_manifest(world / "few.parquet", source)
    manifest = check_manifest_schema(source.schema, "m")
    table = manifest.normalize(source)
    columns = {field.name: pa.nulls(len(rows), field.type) for field in read_schema(manifest)}
    ordinals = pa.array([{"file": 0, "index": i} for i in range(len(rows))])
    columns |= {name: table[name] for name in table.column_names} | {c.ROW: ordinals}
    table = pa.table(columns).cast(read_schema(manifest))
    job = make_job("m", "o", fetch__roots=[str(world)], **EXACT)
    return rows, manifest, Fetch(manifest, FetchRules.of(job, "/"))(table)


@pytest.fixture(scope="module")
def made_for_vectors(world):
    """The checkpoint with the files of one that was trained for embeddings."""
    folder = world / "vectors-checkpoint"
    shutil.copytree(CHECKPOINT, folder)
    (folder / "1_Pooling").mkdir()
    modules = [{"path": "", "type": "x.Transformer"}, {"path": "1_Pooling", "type": "x.Pooling"}]
    (folder / "modules.json").write_text(json.dumps(modules))
    config = {"pooling_mode_lasttoken": False, "pooling_mode_mean_tokens": True}
    (folder / "1_Pooling" / "config.json").write_text(json.dumps(config))
    return folder


@pytest.mark.parametrize("pool", ["last", "mean", "visual_tokens", "auto"])
def test_hidden_states_are_the_references(world, reference, fetched, made_for_vectors, pool):
    """And a text has a vector only where the checkpoint was made for such."""
    rows, manifest, table = fetched
    model = made_for_vectors if pool == "auto" else CHECKPOINT
    kept = {"embed__pool": pool, "embed__normalize": False, "model": str(model), **EXACT}
    job = make_job(world / "few.parquet", world / "o", job="embed", **kept)
    task = check(job).task
    prepare = Prepare(manifest, job, task, model, lambda number: None)
    generate = Generate(
        manifest, job, model, lambda number: None, EngineSize(4, 1, False), task=task
    )
    found = generate(prepare(table)).to_pylist()
    prepare.close()
    processor, network = reference
    for row, answer in zip(rows, found, strict=True):
        if not row["media"] and pool != "auto":
            assert (answer["error_code"], answer["embedding"]) == ("media_empty", None)
            assert f"pooled as '{pool}'" in answer["error_message"]
            continue
        prompt = prompt_of(processor, row)
        hidden = forward(network, prompt, output_hidden_states=True).hidden_states[-1][0]
        visual = torch.tensor([token in (IMAGE, VIDEO) for token in prompt.ids])
        pools = {"last": hidden[-1:], "mean": hidden, "visual_tokens": hidden[visual]}
        want = pools["mean" if pool == "auto" else pool].mean(0).numpy()
        assert relative(np.array(answer["embedding"]), want) < 1e-5
        assert (answer["finish_reason"], answer["output_tokens"]) == ("done", 0)

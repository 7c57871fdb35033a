"""Timelines on a real Ray cluster: every event is found in its window, nothing is done twice."""

import hashlib
import json
import shutil

import numpy as np
import pyarrow as pa
import pyarrow.dataset as pads
import pyarrow.parquet as pq
import pytest

from mediamill.model.processor import Processor
from mediamill.model.tiny import CAPTION_PROMPT, CHECKPOINT
from mediamill.pipeline.annotate.annotate import WindowStage, annotate, check_annotation
from mediamill.pipeline.ledger import ledger
from mediamill.pipeline.storage import storage
from mediamill.schemas.errors import JobError
from tests.films import film
from tests.media import audio_only, cut, jpeg
from tests.pipeline.annotate.test_split import table_of
from tests.pipeline.world import make_job, write_manifest

WINDOW_S = 3.0


def annotation(manifest, output, **changes):
    changes = {"job": "annotate", "annotate__window_s": WINDOW_S, **changes}
    changes.setdefault("generation__max_new_tokens", 12)
    return check_annotation(make_job(manifest, output, **changes))


def read(folder):
    return pads.dataset(str(folder), format="parquet", partitioning="hive").to_table().to_pylist()


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    return tmp_path_factory.mktemp("timelines")


@pytest.fixture(scope="module")
def films(home):
    """(row, events) of each sound video; the last one is not in the manifest yet."""
    made = []
    for number in range(4):
        data, events = film(number, [3] * (4 + number))
        path = home / f"film-{number}.mp4"
        path.write_bytes(data)
        row = {"id": number, "uri": str(path), "kind": "ab"[number % 2], "parts": [number, 7]}
        made.append((row, events))
    return made


@pytest.fixture(scope="module")
def broken(home):
    contents = {
        "cut": (cut((home / "film-0.mp4").read_bytes()), "decode_corrupt"),
        "picture": (jpeg(), "decode_unsupported"),
        "sound": (audio_only(), "decode_unsupported"),
        "empty": (b"", "media_empty"),
        "missing": (None, "fetch_not_found"),
    }
    rows = {}
    for number, (name, (data, code)) in enumerate(contents.items(), start=100):
        if data is not None:
            (home / name).write_bytes(data)
        rows[number] = ({"id": number, "uri": str(home / name), "kind": None, "parts": []}, code)
    return rows


@pytest.fixture(scope="module")
def job(home, films, broken, ray_cluster):
    rows = [row for row, _ in films[:3]] + [row for row, _ in broken.values()]
    write_manifest(home / "manifest" / "a.parquet", rows)
    settings = {"partition_by": ["kind"], "annotate__videos": True}
    made = annotate(annotation(home / "manifest", home / "out", **settings))
    return settings, made


def test_every_event_is_found_in_its_window(home, films, broken, job):
    _, made = job
    rows = read(home / "out" / "windows")
    sound = [row for row in rows if row["status"] == "ok"]
    assert len(rows) == made.windows.rows == 4 + 5 + 6 + 5
    by_window = {(row["video_id"], row["window"]): row for row in sound}
    for number, (video, events) in enumerate(films[:3]):
        assert [key for key in sorted(by_window) if key[0] == number] == [
            (number, window) for window in range(len(events))
        ]
        for window, event in enumerate(events):
            row = by_window[number, window]
            assert row["id"] == f"{number}#{window:05}"
            assert (row["start_s"], row["end_s"]) == (event.start_s, event.end_s)
            assert row["text"] == event.caption
            assert (row["kind"], row["parts"]) == (video["kind"], video["parts"])
            times = row["frame_times_s"]
            assert times[0] == event.start_s
            assert all(event.start_s <= one < event.end_s for one in times)


def test_what_cannot_be_split_is_one_row_with_the_error_of_a_caption(home, broken, job):
    _, made = job
    rows = [row for row in read(home / "out" / "windows") if row["status"] == "error"]
    assert {row["video_id"]: row["error_code"] for row in rows} == {
        number: code for number, (_, code) in broken.items()
    }
    assert all((row["window"], row["start_s"], row["end_s"]) == (0, None, None) for row in rows)
    assert all(row["error_message"] for row in rows)
    assert not [name for name in rows[0] if name.startswith("split_")]
    assert made.split.errors == made.windows.errors


def test_each_video_is_one_row_with_its_timeline(home, films, broken, job):
    rows = {row["id"]: row for row in read(home / "out" / "videos")}
    assert set(rows) == {0, 1, 2, *broken}
    for number, (_, events) in enumerate(films[:3]):
        row = rows[number]
        assert row["duration_s"] == events[-1].end_s
        assert (row["status"], row["windows"], row["failed_windows"]) == ("ok", len(events), 0)
        assert [(one["start_s"], one["text"]) for one in row["segments"]] == [
            (event.start_s, event.caption) for event in events
        ]
    for number, (_, code) in broken.items():
        assert (rows[number]["status"], rows[number]["error_code"]) == ("error", code)


def test_windows_of_one_file_are_what_each_is_alone(home, films, job, monkeypatch):
    """Whatever a process keeps of a file between its windows: the patches are the same."""
    monkeypatch.setattr("tempfile.tempdir", str(home))
    manifest = home / "out" / "_manifest"
    rows = [
        row
        for row in pads.dataset(str(manifest), format="parquet").to_table().to_pylist()
        if row["split_error_code"] is None
    ]
    order = np.random.default_rng(5).permutation(len(rows))
    schema = pq.read_schema(next(manifest.glob("*.parquet")))
    schemas, table = table_of([rows[at] for at in order], schema)
    job = annotation(home / "manifest", home / "elsewhere").job
    from mediamill.pipeline.checkpoint.checkpoint_hash import CheckpointHash, place_of

    by_id = {row["id"]: row for row in read(home / "out" / "windows") if row["status"] == "ok"}
    content = CheckpointHash.of(place_of(str(CHECKPOINT)))
    stage = WindowStage(job, schemas, (str(CHECKPOINT), content), str(home), lambda _: None)
    found = stage(_with_ordinals(table))
    for at, patches, ids in zip(
        order, found["patches"].to_pylist(), found["id"].to_pylist(), strict=True
    ):
        (medium,) = rows[at]["media"]
        alone = Processor.load(CHECKPOINT)
        visual, receipt = alone.prepare_media(
            (home / medium["uri"]).read_bytes(), "video", medium["start_s"], medium["end_s"]
        )
        assert ids == rows[at]["id"]
        assert patches == visual.patches.contiguous().numpy().tobytes()
        assert receipt.frame_times_s[0] == rows[at]["start_s"]
        written = by_id[rows[at]["id"]]["receipt"][0]
        assert written["seen_sha256"] == receipt.seen_sha256
        assert written["seen_sha256"] == hashlib.sha256(patches).hexdigest()
    assert len({one["receipt"][0]["seen_sha256"] for one in by_id.values()}) == len(rows)


def _with_ordinals(table):
    from mediamill.pipeline.records import ROW_STRUCT
    from mediamill.schemas import columns as c

    ordinals = [{"file": 0, "index": index} for index in range(table.num_rows)]
    at = table.schema.get_field_index(c.ROW)
    return table.set_column(at, table.schema.field(c.ROW), pa.array(ordinals, ROW_STRUCT))


def test_the_same_job_again_does_nothing_and_a_changed_one_is_refused(home, job):
    settings, first = job
    again = annotate(annotation(home / "manifest", home / "out", **settings))
    assert again.windows.skipped == again.windows.rows == first.windows.rows
    assert again.merged == 0
    for change, message in (
        ({"annotate__window_s": 2.0}, r"annotate\.window_s = 3\.0, and the job has 2\.0"),
        ({"annotate__windows": "scenes"}, "annotate.windows"),
        ({"prompt": "What else?"}, "prompt ="),
        ({"annotate__summary_prompt": "Sum up."}, "without annotate.summary_prompt"),
    ):
        with pytest.raises(JobError, match=message) as caught:
            annotation(home / "manifest", home / "out", **{**settings, **change})
        assert f"{home}/out:" in str(caught.value)
        assert "_split" not in str(caught.value)


def test_new_videos_are_added_and_old_files_stay(home, films, job):
    """The videos of the first run are in another file than before."""
    settings, first = job
    shutil.copytree(home / "out", home / "grown")
    shutil.copytree(home / "manifest", home / "more")
    row, events = films[3]
    old = pq.read_table(home / "more" / "a.parquet").to_pylist()
    (home / "more" / "a.parquet").unlink()
    write_manifest(home / "more" / "all.parquet", [row, *reversed(old)])
    before = _files(home / "grown")
    made = annotate(annotation(home / "more", home / "grown", **settings))
    assert made.split.skipped == first.split.rows
    assert (made.windows.skipped, made.windows.rows) == (20, 20 + len(events))
    assert made.merged == 1
    after = _files(home / "grown")
    assert {name: after[name] for name in before} == before
    rows = {row["id"]: row for row in read(home / "grown" / "videos")}
    assert [one["text"] for one in rows[3]["segments"]] == [event.caption for event in events]
    assert len(rows) == 9


def _files(folder):
    found = [path for path in folder.rglob("*.parquet") if ledger.HIDDEN not in path.parts]
    return {str(path.relative_to(folder)): path.read_bytes() for path in found}


@pytest.mark.slow
def test_given_windows_several_questions_copies_and_a_summary(home, films, ray_cluster):
    row, events = films[2]
    starts = pa.list_(pa.float64())
    chosen = [4, 0, 5, 2]
    table = pa.table(
        {
            "id": ["a", "gone", "copy"],
            "uri": [row["uri"], str(home / "nowhere.mp4"), str(home / "copy.mp4")],
            "start_s": pa.array([(at := [events[n].start_s for n in chosen]), [0.0], at], starts),
            "end_s": pa.array([(to := [events[n].end_s for n in chosen]), [1.0], to], starts),
        }
    )
    write_manifest(home / "given.parquet", table)
    shutil.copy(row["uri"], home / "copy.mp4")
    made = annotate(
        annotation(
            home / "given.parquet",
            home / "given",
            prompt=None,
            prompts={"what": CAPTION_PROMPT, "colour": "what color is it?"},
            dedupe=True,
            annotate__windows="given",
            annotate__videos=True,
            annotate__summary_prompt="What happens?",
        )
    )
    assert (made.windows.rows, made.windows.errors) == (9, {"fetch_not_found": 1})
    windows = read(home / "given" / "windows")
    names = {one["id"]: one["video_id"] for one in windows}
    asked = [one for one in windows if one["content_hash"] and one["duplicate_of"] is None]
    copies = [one for one in windows if one["duplicate_of"] is not None]
    assert len(asked) == len(copies) == len({one["content_hash"] for one in asked}) == 4
    for one in copies:
        original = next(row for row in asked if row["id"] == one["duplicate_of"])
        assert names[original["id"]] != one["video_id"]
        for column in ("content_hash", "window", "start_s", "what", "colour"):
            assert original[column] == one[column]
    rows = {row["id"]: row for row in read(home / "given" / "videos")}
    found = rows["a"]
    assert rows["copy"]["segments"] == found["segments"]
    assert rows["copy"]["text"] == found["text"]
    # In the order of time, with the numbers that they have in the row.
    assert [one["window"] for one in found["segments"]] == [1, 3, 0, 2]
    texts = [events[n].caption for n in sorted(chosen)]
    assert [one["what"] for one in found["segments"]] == texts
    assert all(one["colour"] for one in found["segments"])
    assert found["text"]
    assert found["status"] == "ok"
    for event, one in zip(texts, found["prompt"].splitlines()[2:], strict=True):
        assert f"what: {event}; colour: " in one
    assert rows["gone"]["error_code"] == "fetch_not_found"
    summary = json.loads(json.dumps(made.summaries.errors))
    assert summary == {"fetch_not_found": 1}


def test_an_output_of_another_kind_is_not_written_into(home, films, ray_cluster):
    write_manifest(home / "one.parquet", [films[0][0]])
    (home / "foreign").mkdir()
    (home / "foreign" / "notes.txt").write_text("mine")
    with pytest.raises(JobError, match=r"holds 'notes\.txt'"):
        annotation(home / "one.parquet", home / "foreign")
    storage.put(storage.resolve(str(home / "caption")) / ledger.HIDDEN / "log" / "x", b"")
    with pytest.raises(JobError, match="job of another kind"):
        annotation(home / "one.parquet", home / "caption")
    write_manifest(home / "clash.parquet", [{"id": 1, "uri": "a.mp4", "window": 3}])
    with pytest.raises(JobError, match="column 'window'"):
        annotation(home / "clash.parquet", home / "clash")

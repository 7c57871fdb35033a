"""From rows of videos to rows of windows and back: nothing is lost, moved or doubled."""

import json

import numpy as np
import pyarrow as pa
import pyarrow.dataset as pads
import pyarrow.parquet as pq
import pytest

from mediamill.pipeline.annotate import merge_videos
from mediamill.pipeline.annotate.merge_videos import merge
from mediamill.pipeline.annotate.summaries import (
    SummaryRules,
    evenly,
    prompt_table,
    summary_prompt,
)
from mediamill.pipeline.annotate.video_table import plain_table
from mediamill.pipeline.annotate.window_columns import (
    SPLIT_FIELDS,
    check_columns,
    split_schema,
    window_schema,
    without_split_error,
)
from mediamill.pipeline.annotate.window_manifest import make_windows, windows_of
from mediamill.pipeline.faults import RunError
from mediamill.pipeline.storage import storage
from mediamill.schemas import columns as c
from mediamill.schemas.errors import JobError
from mediamill.schemas.manifest import check_manifest_schema
from mediamill.schemas.task import CAPTION, Question, TextTask

COLUMNS = {"id": pa.int64(), "uri": pa.string(), "tag": pa.list_(pa.string())}
MANIFEST = check_manifest_schema(pa.schema(list(COLUMNS.items())), "m")


def split_row(number, count):
    """Of a video with so many windows of 2 s; 0 = it cannot be split."""
    ok = count > 0
    return {
        "id": number,
        "uri": f"{number}.mp4",
        "tag": [str(number)],
        "duration_s": 2.0 * count if ok else None,
        "windows": [{"start_s": 2.0 * i, "end_s": 2.0 * i + 2} for i in range(count)]
        if ok
        else None,
        "status": "ok" if ok else "error",
        "error_code": None if ok else "decode_corrupt",
        "error_message": None if ok else "broken",
    }


def write_split(folder, name, rows):
    folder.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist(rows, split_schema(MANIFEST)), folder / name)


def place(path):
    return storage.resolve(str(path))


def answer(rows, folder, name, rng, failing=0.1):
    """The result of a caption run over rows of windows: shuffled, with errors of its own."""
    done = []
    for row in rows:
        row = {key: value for key, value in row.items() if not key.startswith("split_")}
        failed = rng.random() < failing or row.get("start_s") is None
        row |= {"status": "error", "error_code": "engine_oom"} if failed else {"status": "ok"}
        row["text"] = None if failed else f"seen at {row['start_s']} of {row['video_id']}"
        done.append(row)
    fields = [pa.field("text", pa.string()), *list(split_schema(MANIFEST))[-4:]]
    schema = without_split_error(pa.schema([*window_schema(MANIFEST), *fields]))
    order = rng.permutation(len(done)).tolist()
    folder.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist([done[i] for i in order], schema), folder / name)
    return done


def test_windows_of_a_video_are_neighbours_with_names_and_times_of_their_own(tmp_path):
    rng = np.random.default_rng(1)
    counts = [int(count) for count in rng.integers(0, 30, 300)] + [5000]
    rows = [split_row(number, count) for number, count in enumerate(counts)]
    write_split(tmp_path / "split", "part-1.parquet", rows[:150])
    write_split(tmp_path / "split", "part-2.parquet", rows[150:])
    (tmp_path / "split" / "_mediamill").mkdir()
    write_split(tmp_path / "split" / "_mediamill", "part-0.parquet", rows[:1])
    split, windows = place(tmp_path / "split"), place(tmp_path / "windows")
    assert make_windows(split, windows, MANIFEST) == 2
    found = [
        row
        for name in ("part-1.parquet", "part-2.parquet")
        for row in pq.read_table(tmp_path / "windows" / name).to_pylist()
    ]
    expected = [
        (number, window if count else 0, f"{number}#{window:05}")
        for number, count in enumerate(counts)
        for window in range(max(1, count))
    ]
    assert [(one["video_id"], one["window"], one["id"]) for one in found] == expected
    for one in found:
        (medium,) = one["media"]
        assert medium["uri"] == f"{one['video_id']}.mp4"
        assert medium["type"] == "video"
        assert one["tag"] == [str(one["video_id"])]
        count = counts[one["video_id"]]
        if not count:
            assert (one["start_s"], one["split_error_code"]) == (None, "decode_corrupt")
            continue
        assert (one["start_s"], one["end_s"]) == (2.0 * one["window"], 2.0 * one["window"] + 2)
        assert medium["start_s"] == one["start_s"]
        # The last one goes to the last frame, whatever the header said.
        last = one["window"] == count - 1
        assert medium["end_s"] == (None if last else one["end_s"])
    names = {row: (tmp_path / "windows" / row).read_bytes() for row in ("part-1.parquet",)}
    stamp = (tmp_path / "windows" / "part-1.parquet").stat().st_mtime_ns
    write_split(tmp_path / "split", "part-3.parquet", [split_row(10_000, 2)])
    assert make_windows(split, windows, MANIFEST) == 1
    assert (tmp_path / "windows" / "part-1.parquet").stat().st_mtime_ns == stamp
    (tmp_path / "windows" / "part-1.parquet").unlink()
    assert make_windows(split, windows, MANIFEST) == 1  # made anew: the same bytes
    assert (tmp_path / "windows" / "part-1.parquet").read_bytes() == names["part-1.parquet"]


def test_a_part_of_a_video_and_pictures_beside_it_stay_as_the_row_has_them():
    manifest = check_manifest_schema(
        pa.schema([("id", pa.string()), window_schema(MANIFEST).field("media")]), "m"
    )
    picture = {"type": "image", "uri": "p.jpg", "start_s": None, "end_s": None}
    video = {"type": "video", "uri": "v.mp4", "start_s": 3.0, "end_s": 7.0}
    windows = [{"start_s": 3.0, "end_s": 5.0}, {"start_s": 5.0, "end_s": 7.0}]
    row = {"id": "a#b", "media": [picture, video], "duration_s": 9.0, "windows": windows}
    found = list(windows_of({**row, "status": "ok"}, manifest))
    assert [one["id"] for one in found] == ["a#b#00000", "a#b#00001"]
    assert [one["media"][0] for one in found] == [picture, picture]
    assert [one["media"][1]["end_s"] for one in found] == [5.0, 7.0]


def test_columns_that_the_job_makes_are_refused_by_name():
    for name, given, said in (
        ("window", False, "'window'"),
        ("start_s", False, "'start_s'"),
        ("segments", True, "'segments'"),
    ):
        fields = [*COLUMNS.items(), (name, pa.float64())]
        with pytest.raises(JobError, match=said):
            check_columns(check_manifest_schema(pa.schema(fields), "m"), given, "m")
    with pytest.raises(JobError, match="no column 'start_s'"):
        check_columns(MANIFEST, True, "m")
    fields = [*COLUMNS.items(), ("start_s", pa.string()), ("end_s", pa.float64())]
    with pytest.raises(JobError, match="has type string, expected double"):
        check_columns(check_manifest_schema(pa.schema(fields), "m"), True, "m")


@pytest.fixture(params=[10**6, 40])
def small_buckets(request, monkeypatch):
    monkeypatch.setattr(merge_videos, "_BUCKET_WINDOWS", request.param)
    monkeypatch.setattr(merge_videos, "_ROW_GROUP_VIDEOS", 7)


def add(tmp_path, part, first, counts, rng):
    """More videos, split and answered; what their rows are to say."""
    rows = [split_row(first + number, count) for number, count in enumerate(counts)]
    write_split(tmp_path / "split", f"part-{part}.parquet", rows)
    windows = [one for row in rows for one in windows_of({**row}, MANIFEST)]
    half = len(windows) // 3
    done = answer(windows[half:], tmp_path / "windows", f"part-{part}-a.parquet", rng)
    done += answer(windows[:half], tmp_path / "windows", f"part-{part}-b.parquet", rng)
    return rows, done


def expected_of(rows, done):
    found = {}
    for row in rows:
        own = sorted((one for one in done if one["video_id"] == row["id"]), key=lambda o: o["id"])
        own = sorted(own, key=lambda one: one["window"])
        failed = [one for one in own if one["status"] != "ok"]
        found[row["id"]] = {
            "segments": [(one["window"], one.get("start_s"), one["text"]) for one in own],
            "duration_s": row["duration_s"],
            "windows": len(own),
            "failed_windows": len(failed),
            "status": "error" if failed else "ok",
            "error_code": failed[0]["error_code"] if failed else None,
            "tag": row["tag"],
        }
    return found


def read_videos(folder):
    table = pads.dataset(str(folder), format="parquet").to_table().to_pylist()
    found = {}
    for row in table:
        assert row["id"] not in found
        segments = [(one["window"], one["start_s"], one["text"]) for one in row["segments"]]
        names = ("duration_s", "windows", "failed_windows", "status", "error_code", "tag")
        found[row["id"]] = {"segments": segments, **{name: row[name] for name in names}}
    return found


def test_merged_rows_say_what_the_windows_said_each_once_and_new_ones_later(
    tmp_path, small_buckets
):
    rng = np.random.default_rng(3)
    places = [place(tmp_path / name) for name in ("split", "windows", "videos")]
    rules = plain_table(MANIFEST, CAPTION)
    rows, done = add(tmp_path, 1, 0, rng.integers(0, 40, 60).tolist(), rng)
    assert merge(*places, rules) == 60
    assert read_videos(tmp_path / "videos") == expected_of(rows, done)
    before = {one.name: one.read_bytes() for one in (tmp_path / "videos").glob("*.parquet")}
    assert merge(*places, rules) == 0
    more, further = add(tmp_path, 2, 100, rng.integers(0, 9, 20).tolist(), rng)
    # A merge that was killed has left some of its files, and no note.
    (tmp_path / "videos" / "part-0123456789abcdef-00000.parquet").write_bytes(b"half")
    assert merge(*places, rules) == 20
    assert read_videos(tmp_path / "videos") == expected_of(rows + more, done + further)
    for name, content in before.items():
        assert (tmp_path / "videos" / name).read_bytes() == content


def test_a_merge_that_was_killed_makes_the_same_files_again(tmp_path, small_buckets):
    rng = np.random.default_rng(4)
    places = [place(tmp_path / name) for name in ("split", "windows", "videos")]
    add(tmp_path, 1, 0, rng.integers(0, 40, 60).tolist(), rng)
    merge(*places, plain_table(MANIFEST, CAPTION))
    whole = {one.name: one.read_bytes() for one in (tmp_path / "videos").glob("*.parquet")}
    for note in (tmp_path / "videos" / "_merged").iterdir():
        note.unlink()
    next(iter((tmp_path / "videos").glob("*.parquet"))).unlink()
    merge(*places, plain_table(MANIFEST, CAPTION))
    assert whole == {one.name: one.read_bytes() for one in (tmp_path / "videos").glob("*.parquet")}


def test_a_window_that_is_missing_is_never_left_out_in_silence(tmp_path):
    rng = np.random.default_rng(5)
    places = [place(tmp_path / name) for name in ("split", "windows", "videos")]
    add(tmp_path, 1, 0, [3, 4, 5, 6], rng)
    next(iter((tmp_path / "windows").iterdir())).unlink()
    with pytest.raises(RunError, match="windows, expected"):
        merge(*places, plain_table(MANIFEST, CAPTION))


def test_answers_to_several_questions_are_all_in_the_segments():
    task = TextTask(questions=(Question("what", "?"), Question("who", "?")))
    segment = plain_table(MANIFEST, task).schema.field("segments").type.value_type
    assert {"what", "who"} <= {field.name for field in segment}
    rules = SummaryRules("Sum up.", 10**6, len)
    told = {"window": 0, "start_s": 0.0, "end_s": 2.0, "status": "ok", "error_code": None}
    ask = prompt_table(MANIFEST, task, rules)
    row = ask.make_row(split_row(7, 1), [{**told, "what": "a  dog\n", "who": "<|im_end|>me"}])
    assert row["prompt"] == "Sum up.\n\n[0.0-2.0 s] what: a dog; who: < |im_end|>me"
    assert check_manifest_schema(ask.schema, "m").user  # nested columns pass through a manifest
    assert row[c.MEDIA] == []


def test_a_long_timeline_is_thinned_evenly_until_it_fits():
    lines = [f"[{number}] {'x' * (number % 17)}" for number in range(1000)]
    for room in (0, 10, 300, 5000, 10**6):
        rules = SummaryRules("What?", room, len)
        prompt, note = summary_prompt(lines, rules)
        kept = prompt.splitlines()[2:]
        assert kept == sorted(kept, key=lines.index)
        assert set(kept) <= set(lines)
        assert len(prompt) <= max(room, len("What?\n\n"))
        if room == 10**6:
            assert (kept, note) == (lines, None)
        else:
            assert note is not None
            assert note.startswith(f"{len(kept)} of 1000 windows")
    prompt, _ = summary_prompt(lines, SummaryRules("", 5000, len))
    places = [lines.index(line) for line in prompt.split("\n")[2:]]
    steps = np.diff(places)
    assert steps.max() - steps.min() <= 1


def test_evenly_gives_different_numbers_of_the_range():
    for total in range(1, 40):
        for count in range(1, total + 1):
            found = evenly(total, count)
            assert len(set(found)) == count
            assert min(found) >= 0
            assert max(found) < total


def test_the_note_of_a_merge_names_files_only(tmp_path):
    rng = np.random.default_rng(6)
    places = [place(tmp_path / name) for name in ("split", "windows", "videos")]
    add(tmp_path, 1, 0, [1, 2], rng)
    merge(*places, plain_table(MANIFEST, CAPTION))
    (note,) = (tmp_path / "videos" / "_merged").iterdir()
    listed = json.loads(note.read_text())
    assert listed["videos"] == ["part-1.parquet"]
    assert listed["windows"] == ["part-1-a.parquet", "part-1-b.parquet"]
    assert [field.name for field in SPLIT_FIELDS] == ["duration_s", "windows"]


def test_an_object_store_holds_windows_and_videos_as_a_disk_does(tmp_path, s3):
    rng = np.random.default_rng(7)
    rows, done = add(tmp_path, 1, 0, rng.integers(0, 20, 30).tolist(), rng)
    far = [storage.resolve(f"{s3}/windows-test/{name}") for name in ("split", "windows", "videos")]
    for name, folder in zip(("split", "windows"), far, strict=False):
        for path in (tmp_path / name).iterdir():
            storage.put_file(folder / path.name, path)
    assert make_windows(far[0], storage.resolve(f"{s3}/windows-test/manifest"), MANIFEST) == 1
    make_windows(place(tmp_path / "split"), place(tmp_path / "manifest"), MANIFEST)
    made = storage.read(storage.resolve(f"{s3}/windows-test/manifest/part-1.parquet"))
    assert made == (tmp_path / "manifest" / "part-1.parquet").read_bytes()
    assert merge(*far, plain_table(MANIFEST, CAPTION)) == 30
    assert merge(*far, plain_table(MANIFEST, CAPTION)) == 0
    for name in storage.list_files(far[2]):
        if name.endswith(".parquet"):
            storage.put(place(tmp_path / "near") / name, storage.read(far[2] / name))
    assert read_videos(tmp_path / "near") == expected_of(rows, done)

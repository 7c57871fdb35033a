"""The split of real files: what each video is, in a process that may break."""

import numpy as np
import pyarrow as pa
import pytest

from mediamill.pipeline.annotate.annotate import with_failures
from mediamill.pipeline.annotate.split import SplitVideos, split_in_flight_schema, the_video
from mediamill.pipeline.decoding.probe import ProbeResult
from mediamill.pipeline.decoding.reply import DecodeReply, parse_probe_reply
from mediamill.pipeline.records import RowFailure, failure_columns, read_schema
from mediamill.pipeline.stages.fetch import Fetch
from mediamill.schemas.errors import ErrorCode, RowError
from mediamill.schemas.job import Limits
from mediamill.schemas.job_tasks import AnnotateConfig
from mediamill.schemas.manifest import MEDIA_TYPE, check_manifest_schema
from tests import videos
from tests.films import film
from tests.media import audio_only, cut, jpeg, numbered_frames
from tests.pipeline.annotate.test_partial_fetch import MIB, padded
from tests.pipeline.fetching.rules import fetch_rules
from tests.servers.faulty_http import faulty_http


def table_of(rows, schema=None):
    source = pa.Table.from_pylist(rows, schema)
    manifest = check_manifest_schema(source.schema, "m")
    table = manifest.normalize(source)
    for field in read_schema(manifest):
        if field.name not in table.column_names:
            nulls = pa.nulls(table.num_rows, field.type)
            table = table.append_column(field, nulls)
    return manifest, table


def split(folder, rows, config, schema=None, **fetching):
    """The rows after the split, as dictionaries."""
    manifest, table = table_of(rows, schema)
    settings = {"memory_bytes": 1000, "in_place": True, "pause_s": 0.01, "private_addresses": True}
    fetch = fetch_rules(10**8, 30.0, str(folder), **{**settings, **fetching})
    limits = Limits(decode_timeout_s=60.0, decode_bytes=10**9)
    counts = []
    stage = SplitVideos(manifest, config, limits, fetch, Fetch(manifest, fetch), counts.append)
    try:
        assert stage(table.slice(0, 0)).schema == split_in_flight_schema(manifest)
        found = stage(table)
    finally:
        stage.close()
    assert found.schema == split_in_flight_schema(manifest)
    assert counts == [0, len(rows)]
    return [
        {**row, "windows": [(w["start_s"], w["end_s"]) for w in row["windows"] or []]}
        for row in found.to_pylist()
    ]


@pytest.fixture(scope="module")
def media(tmp_path_factory):
    folder = tmp_path_factory.mktemp("media")
    long, events = film(0, [3, 2, 3], side=64)
    (folder / "long.mp4").write_bytes(long)
    (folder / "long.mkv").write_bytes(film(0, [3, 2, 3], side=64, form="matroska")[0])
    (folder / "fragments.mp4").write_bytes(
        film(0, [3, 2, 3], side=64, movflags="frag_keyframe+empty_moov")[0]
    )
    (folder / "cut.mp4").write_bytes(cut(long))
    (folder / "sound.mp4").write_bytes(audio_only())
    (folder / "picture.jpg").write_bytes(jpeg())
    (folder / "empty.mp4").write_bytes(b"")
    (folder / "text.mp4").write_bytes(b"no video at all" * 100)
    (folder / "noise.mp4").write_bytes(long[:48] + np.random.default_rng(1).bytes(5000))
    return folder, events


def test_fixed_windows_of_sound_and_broken_files(media):
    folder, _ = media
    names = [path.name for path in sorted(folder.iterdir())] + ["missing.mp4", "../out.mp4"]
    rows = [{"id": name, "uri": name} for name in names]
    found = {row["id"]: row for row in split(folder, rows, AnnotateConfig(window_s=3.0))}
    for name in ("long.mp4", "long.mkv", "fragments.mp4"):
        assert found[name]["status"] is None
        assert found[name]["duration_s"] == pytest.approx(8.0, abs=1 / 12)
        assert [start for start, _ in found[name]["windows"]] == [0, 3, 6]
        assert found[name]["windows"][-1][1] == found[name]["duration_s"]
    codes = {name: found[name]["error_code"] for name in names if found[name]["status"]}
    assert codes == {
        "cut.mp4": "decode_corrupt",
        "sound.mp4": "decode_unsupported",
        "picture.jpg": "decode_unsupported",
        "empty.mp4": "media_empty",
        "text.mp4": "decode_unsupported",
        "noise.mp4": "decode_corrupt",
        "missing.mp4": "fetch_not_found",
        "../out.mp4": "fetch_denied",
    }
    assert all(found[name]["windows"] == [] for name in codes)


def test_scene_windows_begin_where_the_scenes_do(media):
    folder, events = media
    rows = [{"id": 1, "uri": "long.mp4"}, {"id": 2, "uri": "picture.jpg"}]
    found = split(folder, rows, AnnotateConfig(windows="scenes", min_s=0.5))
    starts = [start for start, _ in found[0]["windows"]]
    assert starts == pytest.approx([event.start_s for event in events], abs=1 / 12)
    assert found[1]["error_code"] == "decode_unsupported"


def test_given_windows_need_no_file():
    lists = pa.list_(pa.float64())
    schema = pa.schema([("id", pa.int64()), ("uri", pa.string()), ("start_s", lists)])
    schema = schema.append(pa.field("end_s", lists))
    rows = [
        {"id": 1, "uri": "nowhere.mp4", "start_s": [0.0, 5.0], "end_s": [2.5, 9.0]},
        {"id": 2, "uri": "nowhere.mp4", "start_s": [0.0], "end_s": [0.0]},
        {"id": 3, "uri": "nowhere.mp4", "start_s": None, "end_s": None},
    ]
    found = split("/", rows, AnnotateConfig(windows="given"), schema)
    assert found[0]["windows"] == [(0, 2.5), (5, 9)]
    assert [row["error_code"] for row in found] == [None, "prompt_invalid", "prompt_invalid"]
    assert found[0]["duration_s"] is None


def test_only_the_part_that_a_row_names_is_split(media):
    folder, _ = media
    rows = [
        {"id": number, "media": [{"type": None, "uri": "long.mp4", "start_s": start, "end_s": end}]}
        for number, (start, end) in enumerate([(1.5, 6.0), (None, 5.0), (7.0, None), (9.0, 10.0)])
    ]
    schema = pa.schema([("id", pa.int64()), ("media", MEDIA_TYPE)])
    found = split(folder, rows, AnnotateConfig(window_s=2.0), schema)
    assert found[0]["windows"] == [(1.5, 3.5), (3.5, 6.0)]
    assert found[1]["windows"] == [(0, 2), (2, 4), (4, 5)]
    assert found[2]["windows"] == [(7.0, 8.0)]
    assert found[3]["error_code"] == "media_empty"


def test_of_several_media_one_is_the_video():
    def row(*kinds):
        return [{"type": kind} for kind in kinds]

    assert the_video(row(None)) == 0
    assert the_video(row("image", "video", "image")) == 1
    for kinds in (("image", "image"), ("video", "video"), (None, "video"), (None, None)):
        with pytest.raises(RowError, match="expected one video") as caught:
            the_video(row(*kinds))
        assert caught.value.code == ErrorCode.PROMPT_INVALID


def test_rows_without_a_video_or_a_window(media):
    folder, _ = media
    nan, inf, row = float("nan"), float("inf"), {"type": None, "uri": "long.mp4"}
    rows = [
        *(None, [], [None], [row, None], [{**row, "start_s": nan}], [{**row, "end_s": nan}]),
        *([{**row, "start_s": inf}], [{**row, "start_s": 3.0, "end_s": 2.0}]),
        [{**row, "start_s": -inf, "end_s": inf}],
    ]
    schema = pa.schema([("id", pa.int64()), ("media", MEDIA_TYPE)])
    table = [{"id": number, "media": one} for number, one in enumerate(rows)]
    found = split(folder, table, AnnotateConfig(window_s=4.0), schema)
    assert [row["error_code"] for row in found] == [*["media_empty"] * 8, None]
    assert found[8]["windows"] == [(0, 4), (4, 8)]


def test_of_large_remote_files_only_header_and_index_are_fetched(media, tmp_path):
    folder, _ = media
    plain = (folder / "long.mp4").read_bytes()
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "long.mp4").write_bytes(padded(plain, 6 * MIB))
    free = (6 * MIB).to_bytes(4, "big") + b"free" + bytes(6 * MIB - 8)
    fragments = (folder / "fragments.mp4").read_bytes() + free
    (tmp_path / "site" / "fragments.mp4").write_bytes(fragments)
    with faulty_http(tmp_path / "site") as site:
        rows = [{"id": n, "uri": f"{site.url}/{n}.mp4"} for n in ("long", "fragments", "none")]
        found = split(tmp_path, rows, AnnotateConfig(window_s=3.0))
        sizes = site.seen
        ranges = [one for one in site.ranges if one[0] == "/long.mp4"]
    assert [row["error_code"] for row in found] == [None, None, "fetch_not_found"]
    assert found[0]["windows"] == [(0, 3), (3, 6), (6, 8)]
    assert [start for start, _ in found[1]["windows"]] == [0, 3, 6]
    assert len(ranges) == 2
    assert sizes["/long.mp4"] == 2


def test_what_the_process_says_is_held_against_its_bounds():
    def said(measured):
        return ProbeResult.model_validate(measured).model_dump_json()

    sound = said({"duration_s": 8.0, "cuts": [1.0, 2.0]})
    header = f'{{"probe": {sound}, "failure": null, "data_bytes": 5}}'.encode()
    reply = parse_probe_reply(header)
    assert reply.probe is not None
    assert (reply.probe.cuts, reply.failure, reply.data_bytes) == ([1.0, 2.0], None, 5)
    for wrong in (
        '{"probe": null, "failure": null, "data_bytes": 0}',
        '{"probe": {"duration_s": -1.0}, "failure": null, "data_bytes": 0}',
        '{"probe": {"duration_s": NaN}, "failure": null, "data_bytes": 0}',
        '{"probe": {"duration_s": 1e12}, "failure": null, "data_bytes": 0}',
        '{"probe": {"duration_s": 5.0, "cuts": [2.0, 1.0]}, "failure": null, "data_bytes": 0}',
        '{"probe": {"duration_s": 5.0, "cuts": [0.0]}, "failure": null, "data_bytes": 0}',
        '{"probe": {"duration_s": 5.0, "cuts": [6.0]}, "failure": null, "data_bytes": 0}',
        '{"probe": {"duration_s": 5.0, "more": 1}, "failure": null, "data_bytes": 0}',
        '{"probe": null, "failure": {"code": "fetch_denied", "message": ""}, "data_bytes": 0}',
        header.decode().replace("5}", "-5}"),
    ):
        with pytest.raises(ValueError):  # noqa: PT011 - of whatever kind
            parse_probe_reply(wrong.encode())


def test_rows_bring_what_is_wrong_with_their_videos():
    texts = {name: pa.string() for name in ("uri", "split_error_code", "split_error_message")}
    schema = pa.schema([("id", pa.int64()), *texts.items()])
    rows = [
        {"id": 1, "split_error_code": "decode_corrupt", "split_error_message": "broken"},
        {"id": 2},
        {"id": 3, "split_error_code": "decode_corrupt", "split_error_message": "broken"},
    ]
    _, table = table_of(rows, schema)
    poison = failure_columns([None, None, RowFailure("poison", "it kills")])
    for name, values in poison.items():
        at = table.schema.get_field_index(name)
        table = table.set_column(at, table.schema.field(name), pa.array(values, pa.string()))
    found = with_failures(table)
    assert found.schema == table.schema
    assert found["error_code"].to_pylist() == ["decode_corrupt", None, "poison"]
    assert found["status"].to_pylist() == ["error", None, "error"]
    assert found["error_message"].to_pylist() == ["broken", None, "it kills"]
    assert DecodeReply().probe is None


def test_joined_recordings_are_split_over_all_of_what_a_player_plays(tmp_path):
    part = videos.encoded(numbered_frames(100, 48, 64), "mpegts", rate=25)
    (tmp_path / "joined.ts").write_bytes(part * 5)
    (row,) = split(tmp_path, [{"id": "1", "uri": "joined.ts"}], AnnotateConfig(window_s=4.0))
    assert row["duration_s"] == pytest.approx(20.0, abs=1e-3)
    assert row["windows"] == [(start, pytest.approx(start + 4.0)) for start in range(0, 20, 4)]

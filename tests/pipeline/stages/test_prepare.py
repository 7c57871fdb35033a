"""The prepare stage: rows of a table in, inputs of the engine and receipts out."""

import json
import subprocess
import sys
from collections import Counter

import numpy as np
import pyarrow as pa
import pytest

from mediamill.model.processor import Processor
from mediamill.model.tiny import CAPTION_PROMPT, CHECKPOINT
from mediamill.pipeline.decoding.decoder_pool import DecodeRequest, DecoderPool, MediumRequest
from mediamill.pipeline.fetching.spool import Spool
from mediamill.pipeline.records import MEDIA_BYTES, MEDIA_PATHS, fetched_schema, prepared_schema
from mediamill.pipeline.stages.prepare import Prepare
from mediamill.schemas import columns as c
from mediamill.schemas.manifest import check_manifest_schema
from mediamill.schemas.task import CAPTION, TextTask
from tests.media import jpeg, numbered_frames, video
from tests.pipeline.world import make_job

PICTURE, CLIP = jpeg(56, 84), video(numbered_frames(8, 56, 56))
MEDIUM = pa.struct(
    [
        pa.field(c.MEDIA_TYPE, pa.string()),
        pa.field(c.MEDIA_URI, pa.string()),
        pa.field(c.MEDIA_START_S, pa.float64()),
        pa.field(c.MEDIA_END_S, pa.float64()),
    ]
)
MANIFEST = check_manifest_schema(
    pa.schema(
        [
            pa.field(c.ID, pa.string()),
            pa.field(c.MEDIA, pa.list_(MEDIUM)),
            pa.field(c.PROMPT, pa.string()),
            pa.field(c.SYSTEM, pa.string()),
            pa.field(c.MESSAGES, pa.string()),
        ]
    ),
    "manifest",
)
JOB = make_job("manifest", "output")


def row(*media, **columns):
    """media: (content, kind, start_s, end_s), the last three if they are given."""
    full = [(*one, None, None, None)[:4] for one in media]
    described = [
        {
            c.MEDIA_TYPE: kind,
            c.MEDIA_URI: f"file://{number}",
            c.MEDIA_START_S: start_s,
            c.MEDIA_END_S: end_s,
        }
        for number, (_, kind, start_s, end_s) in enumerate(full)
    ]
    contents = [content for content, *_ in full]
    in_files = [one if isinstance(one, str) else None for one in contents]
    return {
        c.ID: "r",
        c.ROW: {"file": 0, "index": 0},
        c.MEDIA: described,
        MEDIA_BYTES: [None if isinstance(one, str) else one for one in contents],
        MEDIA_PATHS: in_files if any(in_files) else None,
        **columns,
    }


def fetched(*rows):
    schema = fetched_schema(MANIFEST)
    return pa.table(
        {
            field.name: pa.array([one.get(field.name) for one in rows], field.type)
            for field in schema
        },
        schema,
    )


@pytest.fixture(scope="module")
def counts():
    return Counter()


@pytest.fixture(scope="module")
def prepare(counts):
    stage = Prepare(MANIFEST, JOB, CAPTION, CHECKPOINT, lambda rows: counts.update(rows=rows))
    yield stage
    stage.close()


@pytest.fixture(scope="module")
def processor():
    return Processor.load(CHECKPOINT)


def test_a_table_of_all_kinds_of_rows(prepare, processor, counts):
    chat = [{"role": "user", "content": [{"type": "video"}, {"type": "text", "text": "Hm?"}]}]
    rows = [
        row((PICTURE,)),
        row((PICTURE, "image"), (CLIP, "video", 0.2, 0.7), prompt="Both?", system="Be brief."),
        row((CLIP,), messages=json.dumps(chat)),
        row(prompt="No media at all."),
        row((PICTURE[:300],)),
        row((PICTURE, "audio")),
        row((PICTURE,), messages="no JSON"),
        row((PICTURE,), messages='{"role": "user"}'),
        row((PICTURE,), messages="[" * 100_000),
        row((PICTURE,), prompt="<|im_end|>"),
        row((PICTURE,), status="error", error_code="fetch_failed", error_message="gone"),
    ]
    before = counts["rows"]
    table = prepare(fetched(*rows))
    assert table.schema == prepared_schema(MANIFEST)
    assert counts["rows"] == before + len(rows)
    assert table[c.ERROR_CODE].to_pylist() == [
        *[None] * 4,
        "decode_corrupt",
        "decode_unsupported",
        *["prompt_invalid"] * 4,
        "fetch_failed",
    ]
    picture, _ = processor.prepare_media(PICTURE)
    clip, clip_receipt = processor.prepare_media(CLIP, "video", 0.2, 0.7)
    patches = table[c.PATCHES].to_pylist()
    assert patches[0] == picture.patches.numpy().tobytes()
    assert patches[1] == patches[0] + clip.patches.numpy().tobytes()
    assert patches[3] == b""
    assert patches[4:] == [None] * 7
    assert table[c.GRID_THW][1].as_py() == [*picture.grid_thw, *clip.grid_thw]
    assert table[c.MEDIA_KINDS].to_pylist()[:3] == [["image"], ["image", "video"], ["video"]]
    messages = processor.user_message("Both?", ["image", "video"], "Be brief.")
    assert table[c.INPUT_IDS][1].as_py() == [processor.build_prompt(messages, [picture, clip])]
    whole, _ = processor.prepare_media(CLIP)
    assert table[c.INPUT_IDS][2].as_py() == [processor.build_prompt(chat, [whole])]
    receipts = table[c.RECEIPT].to_pylist()
    assert [one["uri"] for one in receipts[1]] == ["file://0", "file://1"]
    assert receipts[1][1]["frame_times_s"] == list(clip_receipt.frame_times_s)
    assert receipts[3] == []
    # What has been looked at is told, also where the prompt was wrong.
    assert [None if one is None else len(one) for one in receipts[4:]] == [
        *[None] * 2,
        *[1] * 4,
        None,
    ]
    assert table[c.SHA256][6].as_py() == table[c.SHA256][0].as_py()
    assert table[c.ERROR_MESSAGE][10].as_py() == "gone"


def test_no_prompt_at_all_is_told_and_an_empty_table_is_none(prepare):
    job = JOB.model_copy(update={"prompt": None})
    silent = Prepare(MANIFEST, job, CAPTION, CHECKPOINT, lambda rows: None)
    try:
        table = silent(fetched(row((PICTURE,)), row((PICTURE,), prompt=CAPTION_PROMPT)))
        assert table[c.ERROR_CODE].to_pylist() == ["prompt_invalid", None]
    finally:
        silent.close()
    assert prepare(fetched()).num_rows == 0


def test_spooled_media_are_read_from_their_files_and_removed(prepare):
    spool = Spool()
    paths = [spool.new() for _ in range(4)]
    contents = [CLIP, PICTURE[:200], PICTURE, PICTURE]
    for path, content in zip(paths, contents, strict=True):
        path.write_bytes(content)
    inner = (str(paths[0]), "video")
    table = prepare(
        fetched(
            row(inner, (PICTURE, "image")),
            row((str(paths[1]),)),
            row((str(paths[2]), "audio")),
            row((str(paths[3]),), status="error", error_code="poison", error_message="x"),
            row((CLIP, "video"), (PICTURE, "image")),
        )
    )
    assert table[c.ERROR_CODE].to_pylist() == [
        None,
        "decode_corrupt",
        "decode_unsupported",
        "poison",
        None,
    ]
    assert table[c.PATCHES][0] == table[c.PATCHES][4]
    assert table[c.SHA256][0] == table[c.SHA256][4]
    assert not any(path.exists() for path in paths)


def test_patches_are_those_of_their_own_row_in_a_long_table(prepare, processor):
    """Rows are decoded at once and end in any order."""
    files = [jpeg(56 + 28 * (i % 7), 700 if i % 5 else 84, seed=i) for i in range(40)]
    table = prepare(fetched(*[row((one,)) for one in files]))
    for data, patches, sha256 in zip(files, table[c.PATCHES], table[c.SHA256], strict=True):
        visual, receipt = processor.prepare_media(data)
        assert np.array_equal(np.frombuffer(patches.as_py(), np.uint8), visual.patches.flatten())
        assert sha256.as_py() == receipt.sha256


@pytest.mark.parametrize(
    "module", ["stages.prepare", "run", "annotate.annotate", "coordinator.coordinator"]
)
def test_driver_coordinator_and_the_actors_that_prepare_need_no_torch(module):
    code = f"import sys, mediamill.pipeline.{module}; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)


def test_rows_that_are_alike_are_decoded_once_where_copies_matter(tmp_path, monkeypatch):
    """Alike in media, windows and prompts; what comes out is the same as without that."""
    (tmp_path / "clip").write_bytes(CLIP)
    (tmp_path / "same").hardlink_to(tmp_path / "clip")
    (tmp_path / "other").write_bytes(CLIP)
    rows = [
        row((PICTURE,), id="a"),
        row((PICTURE,), id="b"),
        row((PICTURE,), id="c", prompt="Another?"),
        row((jpeg(56, 84, seed=1),), id="d"),
        row((CLIP, "video", 0.0, 0.5), id="e"),
        row((CLIP, "video", 0.2, 0.7), id="f"),
        row((PICTURE[:300],), id="g"),
        row((PICTURE[:300],), id="h"),
        row((PICTURE,), messages="no JSON", id="i"),
    ]
    asked = []
    decode = DecoderPool.prepare
    monkeypatch.setattr(
        DecoderPool, "prepare", lambda self, them: asked.append(len(them)) or decode(self, them)
    )
    found = []
    for task in (TextTask(), TextTask(dedupe=True)):
        stage = Prepare(MANIFEST, JOB, task, CHECKPOINT, lambda rows: None)
        found.append(stage(fetched(*rows)))
        stage.close()
    assert asked == [9, 7]
    assert found[0].equals(found[1])
    contents = [
        DecodeRequest([MediumRequest(tmp_path / name)]).content_hash()
        for name in ("clip", "same", "other")
    ]
    assert contents[0] == contents[1] != contents[2]

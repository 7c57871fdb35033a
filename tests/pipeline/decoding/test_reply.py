"""Every field of a worker's reply is checked against its bounds."""

import json

import numpy as np
import pytest

from mediamill.pipeline.decoding.reply import PatchShape, parse_reply
from tests.pipeline.decoding.test_row_batches import GOOD

SHAPES = {"image": PatchShape(patch_bytes=588, patch_size=14, merge_size=2)}


def parse(reply):
    def fill(array):
        array[:] = 0

    return parse_reply(
        json.dumps(reply).encode(),
        lambda size: np.empty(size, np.uint8),
        fill,
        4 * 588,
        [None],
        1,
        SHAPES,
    )


def test_a_sound_reply_is_taken():
    reply = parse(GOOD)
    assert reply.receipts[0].height == 28
    assert (len(reply.patches), len(reply.ids), reply.failure) == (4 * 588, 1, None)
    failure = {"code": "media_empty", "message": "no frames"}
    failed = parse({**GOOD, "visuals": [], "ids": [], "failure": failure})
    assert (failed.failure.code, failed.failure.message) == ("media_empty", "no frames")


@pytest.mark.parametrize(
    "change",
    [
        {"kind": "audio"},
        {"sha256": "0" * 63},
        {"sha256": "0" * 64 + "\n"},
        {"sha256": "A" * 64},
        {"height": 0},
        {"height": 2**31},
        {"height": "28"},
        {"height": 28.0},
        {"height": True},
        {"frame_times_s": [float("nan")], "frame_indices": [0]},
        {"frame_times_s": ["0.0"], "frame_indices": [0]},
        {"frame_times_s": [0.0]},
        {"frame_indices": [-1]},
        {"frame_indices": [2**63]},
        {"visual_tokens": -1},
        {"visual_tokens": 2},
        {"source_width": 0},
        {"notes": [1]},
        {"notes": "clamped"},
        {"bound_by": ["budget"]},
        {"seen_sha256": ""},
        {"more": 1},
    ],
)
def test_a_receipt_beyond_its_bounds_is_refused(change):
    with pytest.raises(ValueError):  # noqa: PT011 - of whatever kind
        parse({**GOOD, "receipts": [{**GOOD["receipts"][0], **change}]})


@pytest.mark.parametrize("name", GOOD["receipts"][0])
def test_a_receipt_without_one_of_its_fields_is_refused(name):
    receipt = {key: value for key, value in GOOD["receipts"][0].items() if key != name}
    with pytest.raises(ValueError):  # noqa: PT011 - of whatever kind
        parse({**GOOD, "receipts": [receipt]})


@pytest.mark.parametrize(
    "failure",
    [
        {"code": "fetch_failed", "message": "x"},
        {"code": "no such code", "message": "x"},
        {"code": "media_empty", "message": 1},
        {"code": "media_empty"},
        {"code": "media_empty", "message": "x", "more": 1},
    ],
)
def test_a_failure_that_no_decoder_reports_is_refused(failure):
    with pytest.raises(ValueError):  # noqa: PT011 - of whatever kind
        parse({**GOOD, "visuals": [], "ids": [], "failure": failure})

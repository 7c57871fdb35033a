"""Advice in the notes of error rows: it is true, and there is none where nothing helps."""

import re

import pytest

from mediamill.model.errors import PromptError
from mediamill.model.processor import Processor, VideoRules
from mediamill.model.tiny import CHECKPOINT
from mediamill.pipeline.ladder.advice import with_advice
from mediamill.pipeline.ladder.steps import shrinking_helps
from mediamill.schemas.errors import ErrorCode
from tests.media import jpeg, numbered_frames, video

LARGE = 28 * 28 * 16384
CODE = ErrorCode.CONTEXT_TOO_LONG.value


def load(image_pixels=LARGE, shrink=1, **rules):
    return Processor.load(CHECKPOINT, None, image_pixels, VideoRules(**rules)).shrunk(shrink)


def prepare(processor, data, text="Describe it.", count=1):
    """The receipts, and the message of the error or None."""
    receipts, visuals = [], []
    try:
        for _ in range(count):
            visual, receipt = processor.prepare_media(data)
            visuals.append(visual)
            receipts.append({**vars(receipt), "type": receipt.kind})
        messages = processor.user_message(text, [visual.kind for visual in visuals])
        processor.build_prompt(messages, visuals)
    except PromptError as error:
        return receipts, str(error)
    return receipts, None


def advice(receipts, message, shrunk=0):
    noted = with_advice(CODE, message, receipts, shrunk, True)
    assert noted.startswith(message)
    return noted.removeprefix(message)


@pytest.mark.parametrize(
    ("size", "count", "text"),
    [
        ((1200, 1600), 1, "Describe it."),  # the picture alone is beyond the context
        ((3000, 2000), 1, "Describe it."),
        ((1120, 1400), 1, "word " * 120),  # the picture and the text are
        ((840, 700), 3, "Compare them."),
    ],
)
def test_the_pixels_that_are_named_fit(size, count, text):
    data = jpeg(*size)
    receipts, message = prepare(load(), data, text, count)
    noted = advice(receipts, message)
    pixels = int(re.search(r"image\.max_pixels=(\d+) or ", noted)[1])
    halvings = int(re.search(r"retries\.smaller=(\d+) would fit it", noted)[1])
    assert prepare(load(pixels), data, text, count)[1] is None
    assert prepare(load(shrink=2**halvings), data, text, count)[1] is None
    if receipts:  # else room is left for a text of unknown length
        assert prepare(load(shrink=2 ** (halvings - 1)), data, text, count)[1] is not None
    assert shrinking_helps(CODE, message)


def test_the_tokens_of_a_video_that_are_named_fit():
    data = video(numbered_frames(48, 280, 280))
    rules = {"fps": 100.0, "max_pixels": 280 * 280, "min_pixels": 28 * 28}
    receipts, message = prepare(load(**rules), data, "word " * 100)
    noted = advice(receipts, message)
    tokens = int(re.search(r"video\.max_tokens=(\d+)", noted)[1])
    assert prepare(load(**rules, max_tokens=tokens), data, "word " * 100)[1] is None
    halvings = int(re.search(r"retries\.smaller=(\d+)", noted)[1])
    assert prepare(load(**rules, shrink=2**halvings), data, "word " * 100)[1] is None


def test_a_text_that_is_too_long_is_not_helped_by_pixels():
    receipts, message = prepare(load(), jpeg(56, 84), "word " * 5000)
    assert "image.max_pixels" not in advice(receipts, message)
    assert not shrinking_helps(CODE, message)


@pytest.mark.parametrize(
    ("code", "message", "expected"),
    [
        ("fetch_not_found", "a.jpg: no such file", ""),
        ("fetch_failed", "http://a/b: the server answered 503", "; mediamill retry tries it again"),
        ("fetch_failed", "data:image/png;...: found no comma", ""),
        (
            "decode_too_large",
            "the PNG picture is 20000 x 10000 = 200000000 pixels; the limit is 150000000",
            "; limits.max_image_pixels=200000000 would allow it",
        ),
        (
            "decode_too_large",
            "20000.0 s of the MP4 video would have to be decoded; the limit is 14400 s",
            "; limits.max_duration_s=20000 would allow it",
        ),
        ("decode_too_large", "the JPEG picture has 300 scans; the limit is 200", ""),
        (
            "decode_unsupported",
            "the file is a PDF document; expected a picture or video",
            "; converted to JPEG, PNG or MP4, it can be read",
        ),
        ("decode_unsupported", "the file is a ZIP archive; expected a picture or video", ""),
        ("decode_unsupported", "the file is a web page; expected a picture or video", ""),
        ("decode_unsupported", "the picture is 9000 x 3 pixels; expected no side more than", ""),
        ("json_invalid", "json_schema: no object", ""),
        ("prompt_invalid", "found no prompt", ""),
    ],
)
def test_one_clause_or_nothing(code, message, expected):
    assert with_advice(code, message, [], 0, True) == message + expected


def test_long_messages_keep_their_limit():
    noted = with_advice("fetch_timeout", "x" * 5000, [], 0, True)
    assert len(noted) <= 2000
    assert noted.endswith("waits longer")

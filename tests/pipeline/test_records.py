"""What a row's failure stores, whoever wrote its message."""

from mediamill.pipeline.records import RowFailure, failure_columns
from mediamill.schemas import columns as c
from mediamill.schemas.errors import ErrorCode, RowError


def test_every_message_of_a_row_is_cut_and_holds_no_secret():
    texts = [
        f"data:image/png;base64,{'A' * 1_000_000} is not a picture",
        "https://u:SECRET@h/a?sig=SECRET cannot be read",
        "half \ud800 a pair",
        "x" * 5000,
        "two\nlines",
    ]
    failures = [RowFailure("fetch_failed", text) for text in texts]
    failures.append(RowFailure.of(RowError(ErrorCode.FETCH_FAILED, texts[1])))
    stored = failure_columns([*failures, None])[c.ERROR_MESSAGE]
    assert stored == [
        "data:image/png;base64,... is not a picture",
        "https://h/a cannot be read",
        "half ? a pair",
        f"{'x' * 1997}...",
        "two\nlines",
        "https://h/a cannot be read",
        None,
    ]

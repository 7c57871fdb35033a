"""Writes everything about one row as lines for a terminal."""

import shutil
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from mediamill.jobs.page.card import clock
from mediamill.jobs.page.row_card import text_of
from mediamill.model.urls import redact, redact_text
from mediamill.pipeline.inspect.answers import AnswerLayout
from mediamill.pipeline.inspect.seen import SeenMedium
from mediamill.schemas import columns as c

_LABEL = 14  # letters


def row_lines(
    row: Mapping[str, Any],
    layout: AnswerLayout,
    media: Sequence[tuple[SeenMedium, str]],
    prompts: Sequence[tuple[str, str]],
    run: Mapping[str, Any] | None,
) -> Iterator[str]:
    """Yields the lines of a row, without line breaks.

    media: what the model saw, and the drawing of it (lines that are printed as they are).
    prompts: names and texts. run: its entry in the history; None if it is unknown.
    """
    status = text_of(row.get(c.STATUS))
    if row.get(c.STATUS) == c.STATUS_ERROR:
        status = f"error: {text_of(row.get(c.ERROR_CODE))}"
    yield from _entry("id", text_of(row.get(c.ID)))
    yield from _entry("status", status)
    if row.get(c.ERROR_MESSAGE):
        yield from _entry("message", redact_text(text_of(row[c.ERROR_MESSAGE])))
    yield from _answers(row, layout)
    yield from _scores(row)
    yield from _tokens(row)
    if not media and row.get(c.URI):
        yield from _entry("uri", redact(text_of(row[c.URI])))
    for number, (medium, drawing) in enumerate(media):
        yield from _medium(medium, (row.get(c.RECEIPT) or [{}])[number])
        yield from drawing.rstrip("\n").split("\n") if drawing else ()
    for name, text in prompts:
        yield from _entry(f"prompt {name}".strip(), text)
    for name in layout.user:
        if row.get(name) is not None:
            yield from _entry(name, text_of(row[name]))
    attempt = row.get(c.ATTEMPT)
    if attempt is not None:
        yield from _entry("attempt", str(attempt))
    if row.get(c.DUPLICATE_OF) is not None:
        yield from _entry("copy of", text_of(row[c.DUPLICATE_OF]))
    yield from _entry("model", text_of(row.get(c.MODEL)))
    yield from _entry("run", _run(row, run))


def _answers(row: Mapping[str, Any], layout: AnswerLayout) -> Iterator[str]:
    for answer in layout.answers if layout.job not in ("embed",) else ():
        label = answer.name or "text"
        if answer.text is not None and row.get(answer.text) is not None:
            yield from _entry(label, text_of(row[answer.text]))
        for name, column in answer.fields.items():
            if row.get(column) is not None:
                yield from _entry(f"{answer.name} {name}".strip(), text_of(row[column]))
        if answer.name:
            words = [text_of(row.get(answer.finish_reason or ""))]
            logprob = row.get(answer.mean_logprob or "")
            if logprob is not None:
                words.append(f"log-probability {logprob:.3f}")
            yield from _entry("", ", ".join(word for word in words if word))


def _scores(row: Mapping[str, Any]) -> Iterator[str]:
    scores = row.get(c.SCORES)
    for score in sorted(scores or (), key=lambda s: s.get("rank") or 0):
        share = min(1.0, max(0.0, score.get("probability") or 0.0))
        bar = "█" * round(20 * share)
        yield from _entry("", f"{share:7.2%} {bar:<20} {text_of(score.get('text'))}")
    vector = row.get(c.EMBEDDING)
    if vector:
        beginning = ", ".join(f"{value:.4f}" for value in vector[:6])
        yield from _entry("vector", f"{len(vector)} numbers: {beginning}, ...")


def _tokens(row: Mapping[str, Any]) -> Iterator[str]:
    names = ((c.PROMPT_TOKENS, "in the prompt"), (c.VISUAL_TOKENS, "visual"),
             (c.OUTPUT_TOKENS, "written"))  # fmt: skip
    words = [f"{row[name]:,} {label}" for name, label in names if row.get(name) is not None]
    if words:
        yield from _entry("tokens", ", ".join(words))
    words = (
        [f"ended by {row[c.FINISH_REASON]}"]
        if row.get(c.FINISH_REASON) not in (None, "done")
        else []
    )
    if row.get(c.MEAN_LOGPROB) is not None:
        words.append(f"log-probability {row[c.MEAN_LOGPROB]:.4f}".replace("-0.0000", "0.0000"))
    if words:
        yield from _entry("answer", ", ".join(words))


def _medium(medium: SeenMedium, receipt: Mapping[str, Any]) -> Iterator[str]:
    yield from _entry(medium.kind, medium.uri or "(not in a file)")
    source = f"{receipt.get('source_height')} × {receipt.get('source_width')}"
    seen = f"seen at {medium.height} × {medium.width}, from {source} pixels (height × width)"
    yield from _entry("", seen)
    times = receipt.get("frame_times_s") or ()
    if times:
        shown = ", ".join(clock(time) for time in times[:12])
        more = f", ... {clock(times[-1])}" if len(times) > 12 else ""
        yield from _entry("", f"{len(times)} frames at {shown}{more}")
    for note in receipt.get("notes") or ():
        yield from _entry("", text_of(note))
    if receipt.get("bound_by"):
        yield from _entry("", f"bound by {', '.join(receipt['bound_by'])}")
    yield from _entry("", medium.note)


def _run(row: Mapping[str, Any], run: Mapping[str, Any] | None) -> str:
    name = text_of(row.get(c.RUN_ID))
    if run is None:
        return name
    return f"{name}, started {text_of(run.get('started'))[:19]}, {run.get('end') or 'was killed'}"


def _entry(label: str, text: str) -> Iterator[str]:
    """A label and its text, wrapped; nothing for an empty text. Control signs become escapes."""
    if not text:
        return
    width = max(40, shutil.get_terminal_size((100, 24)).columns - _LABEL - 1)
    first = True
    for line in text.splitlines() or [""]:
        for part in textwrap.wrap(_plain(line), width, drop_whitespace=False) or [""]:
            yield f"{label if first else '':<{_LABEL}} {part}".rstrip()
            first = False


def _plain(text: str) -> str:
    return "".join(
        letter if letter.isprintable() else letter.encode("unicode_escape").decode()
        for letter in text.encode("utf-8", "replace").decode()
    )

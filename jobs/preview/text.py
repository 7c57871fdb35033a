"""Writes a preview as lines for a terminal, and as a dictionary."""

import shutil
from collections import Counter
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from mediamill.jobs.show.row_text import row_lines
from mediamill.jobs.show.terminal_pictures import Protocol, draw
from mediamill.model.urls import redact, redact_text
from mediamill.schemas import columns as c

if TYPE_CHECKING:
    from mediamill.pipeline.preview.preview import Preview
    from mediamill.pipeline.preview.rows import PreviewRow

_LEFT_OUT = (c.RECEIPT, c.MODEL, c.EMBEDDING)  # of the rows' JSON; the vector comes as `dimension`


def preview_lines(preview: "Preview", protocol: Protocol) -> Iterator[str]:
    """Yields the lines of all rows, without line breaks. protocol: draws the pictures."""
    columns = shutil.get_terminal_size((100, 24)).columns
    for number, row in enumerate(preview.rows):
        if number:
            yield ""
        yield f"─── {preview.unit} {number + 1} of {len(preview.rows)}: {row.stratum} "
        media = [(m, draw([f.pixels for f in m.frames], protocol, columns)) for m in row.media]
        values = {name: value for name, value in row.values.items() if name != c.MODEL}
        yield from row_lines(values, preview.layout, media, prompts_of(preview, row), None)
        yield f"{'seconds':<14} {seconds_text(row)}"


def prompts_of(preview: "Preview", row: "PreviewRow") -> list[tuple[str, str]]:
    """Returns the prompts of a row as the model was given them, by name of the question."""
    names = [answer.name for answer in preview.layout.answers]
    names += [""] * (len(row.prompts) - len(names))
    return list(zip(names, map(_visible, row.prompts), strict=False))


def seconds_text(row: "PreviewRow") -> str:
    """Returns what a row took."""
    text = f"{row.prepare_s:.2f} to decode and prepare"
    if row.generate_s is not None:
        text += f", {row.generate_s:.2f} to answer (beside the other rows)"
    return text


def summary_lines(preview: "Preview", price: float | None) -> Iterator[str]:
    """Yields what the rows took together, and what a million of them would take."""
    rows, unit = len(preview.rows), preview.unit
    codes = Counter(row.values[c.ERROR_CODE] for row in preview.rows if is_error(row))
    word = "error" if codes.total() == 1 else "errors"
    errors = f", {codes.total()} {word} ({_counts(codes)})" if codes else ""
    of = f" from {preview.total:,} videos" if unit == "window" else f" of {preview.total:,}"
    yield f"{rows} {unit}s{of}, by kind and size{errors}"
    seconds = preview.seconds
    yield (
        f"fetch {seconds.fetch:.2f} s, decode and prepare {seconds.prepare:.2f} s (one worker), "
        f"answers {seconds.generate:.2f} s; the model was loaded in {preview.load_s:.1f} s"
    )
    if rows:
        yield million_text(preview, price)
    for note in preview.notes:
        yield f"note: {redact_text(note)}"


def million_text(preview: "Preview", price: float | None) -> str:
    """Returns the sentence about a million rows."""
    hours = preview.million_hours
    cost = "" if price is None else f", {hours * price:,.2f} at {price:g} an hour"
    return (
        f"a million such {preview.unit}s: about {_hours(hours)} on this machine{cost}, or less: a "
        f"rough figure from {len(preview.rows)} {preview.unit}s in one batch, and full batches "
        "are faster (mediamill plan forecasts the job)"
    )


def is_error(row: "PreviewRow") -> bool:
    """Whether the row failed."""
    return bool(row.values[c.STATUS] == c.STATUS_ERROR)


def preview_dict(preview: "Preview", price: float | None) -> dict[str, Any]:
    """Returns the preview with the keys that docs/preview.md lists."""
    seconds, hours = preview.seconds, preview.million_hours
    return {
        "event": "preview",
        "rows": [_row_dict(preview, row) for row in preview.rows],
        "unit": preview.unit,
        "total": preview.total,
        "errors": sum(map(is_error, preview.rows)),
        "seconds": {
            "load": round(preview.load_s, 3),
            "fetch": round(seconds.fetch, 3),
            "prepare": round(seconds.prepare, 3),
            "generate": round(seconds.generate, 3),
        },
        "million": {
            "hours": round(hours, 3),
            "cost": None if price is None else round(hours * price, 2),
            "rough": True,
        },
        "notes": list(preview.notes),
    }


def _row_dict(preview: "Preview", row: "PreviewRow") -> dict[str, Any]:
    values = {name: value for name, value in row.values.items() if name not in _LEFT_OUT}
    vector = row.values.get(c.EMBEDDING)
    if vector is not None:
        values["dimension"] = len(vector)
    if isinstance(values.get(c.URI), str):
        values[c.URI] = redact(values[c.URI])
    for medium in values.get(c.MEDIA) or ():
        if medium and medium.get(c.MEDIA_URI):
            medium[c.MEDIA_URI] = redact(medium[c.MEDIA_URI])
    receipts = row.values.get(c.RECEIPT) or ()
    return {
        **values,
        "stratum": row.stratum,
        "prompts_given": dict(zip(dict(prompts_of(preview, row)), row.prompts, strict=False)),
        "notes": [note for receipt in receipts for note in receipt.get("notes") or ()],
        "source_bytes": row.source_bytes,
        "prepare_s": round(row.prepare_s, 4),
        "generate_s": None if row.generate_s is None else round(row.generate_s, 4),
    }


def _visible(text: str) -> str:
    """Writes letters that cannot be seen, such as those that turn the direction, as escapes."""
    return "".join(
        letter
        if letter.isprintable() or letter == "\n"
        else letter.encode("unicode_escape").decode()
        for letter in text
    )


def _counts(codes: Counter[str]) -> str:
    return ", ".join(f"{number} {code}" for code, number in codes.most_common())


def _hours(hours: float) -> str:
    if hours < 1:
        return f"{hours * 60:.0f} minutes"
    return f"{hours:.1f} hours" if hours < 48 else f"{hours:,.0f} hours ({hours / 24:,.0f} days)"

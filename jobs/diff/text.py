"""Writes a comparison as lines for a terminal, and as Markdown."""

import shutil
import textwrap
from collections.abc import Iterator, Sequence

from mediamill.jobs.diff.facts import Table, headline, notes, same, tables
from mediamill.jobs.diff.samples import Samples, answer_texts
from mediamill.jobs.diff.words import plain, terminal_diff
from mediamill.pipeline.diff.compare import Difference

_WIDEST = 44  # letters of a cell
_SHORT = 60  # letters of both values of a setting in one line
_MARKDOWN = str.maketrans({letter: f"\\{letter}" for letter in "\\`*_{}[]<>#|~"})


def lines(
    names: tuple[str, str], difference: Difference, samples: Samples, shown: int, coloured: bool
) -> Iterator[str]:
    """Yields the lines. names: of the outputs. shown: rows whose words are compared, at most."""
    yield from _outputs(names, difference)
    width = max(40, shutil.get_terminal_size((100, 24)).columns - 1)
    for table in tables(difference, samples):
        yield ""
        yield from _table(table, width, coloured)
    entries = [
        (sample, entry)
        for sample in samples.answers[:shown]
        for entry in answer_texts(sample, difference)
    ]
    if entries:
        yield ""
        yield _bold("Answers that changed", coloured)
        for sample, (name, first, second) in entries:
            label = f"{plain(sample.id)} {name}".strip()
            yield f"  {label}"
            yield from _indented(first, second, coloured, width)
    yield ""
    for note in notes(difference):
        yield f"note: {note}"
    if difference.differs and (text := same(difference)):
        yield f"the same: {text}"
    yield headline(difference)


def _outputs(names: tuple[str, str], difference: Difference) -> Iterator[str]:
    rows, errors = (
        (difference.rows_a, difference.rows_b),
        (difference.errors_a, difference.errors_b),
    )
    for letter, name, count, failed in zip("AB", names, rows, errors, strict=True):
        words = f"{_count(count, 'row')}, {_count(failed, 'error')}"
        yield f"{letter}  {plain(name)}: {words}"


def _table(table: Table, width: int, coloured: bool) -> Iterator[str]:
    yield _bold(table.title, coloured)
    if table.title == "Settings":  # values may be long texts
        for name, first, second in table.rows:
            if name.startswith("columns of"):
                yield from _wrapped(f"{name}: {plain(first or second)}", width, 2)
                continue
            if len(first) + len(second) < _SHORT:
                yield f"  {plain(name)}: {plain(first)} → {plain(second)}"
                continue
            yield f"  {plain(name)}"
            yield from _indented(first, second, coloured, width)
        return
    rows = [[plain(cell) for cell in row] for row in (table.head, *table.rows)]
    widths = [min(_WIDEST, max(len(row[i]) for row in rows)) for i in range(len(table.head))]
    for row in rows:
        cells = [
            f"{cell:<{size}}" if number in (0, len(row) - 1) else f"{cell:>{size}}"
            for number, (cell, size) in enumerate(zip(row, widths, strict=True))
        ]
        yield from _wrapped("  ".join(cells).rstrip(), width, 2, 4)


def _indented(first: str, second: str, coloured: bool, width: int) -> Iterator[str]:
    for line in terminal_diff(first, second, coloured, width - 4):
        yield f"    {line}"


def _wrapped(text: str, width: int, first: int = 4, rest: int = 4) -> Iterator[str]:
    if len(text) + first <= width:
        yield " " * first + text
        return
    yield from textwrap.wrap(
        text,
        width,
        initial_indent=" " * first,
        subsequent_indent=" " * rest,
        break_on_hyphens=False,
    )


def _bold(text: str, coloured: bool) -> str:
    return f"\x1b[1m{text}\x1b[0m" if coloured else text


def markdown(
    names: tuple[str, str], difference: Difference, samples: Samples, shown: int
) -> Iterator[str]:
    """Yields the lines of a comment for a pull request."""
    yield f"**{_escaped(headline(difference))}**"
    yield ""
    for line in _outputs(names, difference):
        yield f"- {_escaped(line)}"
    for note in notes(difference):
        yield f"- note: {_escaped(note)}"
    if difference.differs and (text := same(difference)):
        yield f"- the same: {_escaped(text)}"
    for table in tables(difference, samples):
        yield ""
        yield f"### {table.title}"
        yield ""
        yield _markdown_row(table.head)
        ends = [":--", *["--:"] * (len(table.head) - 2), ":--"]
        yield "|" + "|".join(ends) + "|"
        yield from map(_markdown_row, table.rows)
    if samples.answers and shown:
        yield ""
        yield "### Answers that changed"
        yield ""
        yield _markdown_row(("id", "A", "B"))
        yield "|:--|:--|:--|"
    for sample in samples.answers[:shown]:
        for name, first, second in answer_texts(sample, difference):
            yield _markdown_row((f"{sample.id} {name}".strip(), first[:500], second[:500]))


def _markdown_row(cells: Sequence[str]) -> str:
    return "| " + " | ".join(map(_escaped, cells)) + " |"


def _escaped(text: str) -> str:
    return plain(text).translate(_MARKDOWN)


def _count(number: int, word: str) -> str:
    return f"{number:,} {word}" if number == 1 else f"{number:,} {word}s"

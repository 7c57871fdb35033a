"""The command `mediamill show`: one row of an output with everything that is known of it."""

import argparse
import json
import shlex
import shutil
from collections.abc import Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

from mediamill.jobs.commands import new_parser, parse
from mediamill.schemas import columns as c

_HELP = """\
The media are fetched again, and shown as the model saw them: upright, resized, the same frames.

examples:
  mediamill show captions/ photo-17
  mediamill show captions/ 17 --open
  mediamill show captions/ --where "error_code == 'fetch_timeout'" --limit 5
  mediamill show captions/ -- -17

docs/report.md describes it.
"""
_FRAMES = 8


def run_show(argv: Sequence[str], environment: Mapping[str, str], is_terminal: bool) -> int:
    """Parses the arguments, shows the rows, and returns the exit code.

    environment: variables that tell what the terminal can show.
    """
    options = _parse(argv)
    from mediamill.jobs.show.row_text import row_lines
    from mediamill.jobs.show.terminal_pictures import draw, protocol_of
    from mediamill.pipeline.inspect.answers import answer_layout
    from mediamill.pipeline.inspect.find import find_by_id, find_where
    from mediamill.pipeline.inspect.output import Output
    from mediamill.pipeline.inspect.prompt import prompts_of
    from mediamill.pipeline.inspect.seen import SeenReader, ShownSize, media_of

    output = Output(options.output)
    if options.id is None:
        matches = find_where(output, options.where, options.limit)
    else:
        matches = find_by_id(output, options.id, options.limit)
    layout = answer_layout(output)
    if options.json:
        for row in matches.rows:
            parts = output.parts
            texts = dict(prompts_of(row, layout, parts, str(row.get(c.MODEL) or "")))
            values = {**row, "prompt_given": texts.get("", texts)}
            print(json.dumps(values, ensure_ascii=False, default=str))
        return 0 if matches.rows else 1
    if not matches.rows:
        print(f"no row of {output.url} meets the condition")
        return 1
    runs = _runs(options.output, output.header is not None)
    protocol = protocol_of(environment, is_terminal) if options.pictures else "none"
    columns = shutil.get_terminal_size((100, 24)).columns
    with closing(SeenReader(ShownSize(_FRAMES, 448, 448))) as reader:
        if options.pictures or options.open:
            media = list(reader.read(matches.rows))
        else:
            media = [media_of(row) for row in matches.rows]
    for number, row in enumerate(matches.rows):
        seen = media[number]
        drawn = [(m, draw([f.pixels for f in m.frames], protocol, columns)) for m in seen]
        prompts = prompts_of(row, layout, output.parts, str(row.get(c.MODEL) or ""))
        run = runs.get(str(row.get(c.RUN_ID)))
        if number:
            print()
        for line in row_lines(row, layout, drawn, prompts, run):
            print(line)
    print()
    if options.id is not None and len(matches.rows) > 1 and not output.annotates:
        print(f"{len(matches.rows)} rows have this id")
    if matches.is_more:
        print(f"more rows match: --limit shows more than {options.limit}")
    if options.open:
        _open(output.url, matches.rows, media, layout, output.parts, options.page)
    else:
        print(f"next: {_again(options)} --open shows it in a browser")
    return 0


def _open(
    url: str, rows: Sequence[Any], media: Sequence[Any], layout: Any, parts: Any, page: str | None
) -> None:
    from mediamill.jobs.report.command import open_page
    from mediamill.jobs.show.page import write_rows

    path = Path(page) if page else Path(f"{Path(url).name or 'output'}-row.html")
    write_rows(url, rows, media, layout, parts, path)
    print(f"page: {path}")
    open_page(path)


def _runs(url: str, has_log: bool) -> dict[str, Mapping[str, Any]]:
    from mediamill.pipeline.annotate.window_columns import STEPS
    from mediamill.pipeline.coordinator.run_history import past_runs

    if not has_log:
        return {}
    return {str(run["run"]): run for run in past_runs(url, STEPS)}


def _again(options: argparse.Namespace) -> str:
    start = f"mediamill show {quoted(options.output)}"
    if options.id is not None:
        return f"{start} {quoted(options.id)}"
    return f"{start} --where {quoted(options.where)}"


def quoted(text: str) -> str:
    """Returns a word for a shell, in double quotes where that is easier to read."""
    if "'" in text and not set(text) & set('"$`\\!'):
        return f'"{text}"'
    return shlex.quote(text)


def _parse(argv: Sequence[str]) -> argparse.Namespace:
    parser = new_parser(
        "show",
        "OUTPUT ID | OUTPUT --where CONDITION [options]",
        "Show one row of an output: its text, prompt, pictures, tokens and run.",
        _HELP,
    )
    parser.add_argument("output", help="output folder of a job")
    parser.add_argument("id", nargs="?", help="of a row; of an annotation also of a video")
    parser.add_argument("--where", metavar="CONDITION", help="show the rows that meet it")
    parser.add_argument(
        "--limit", type=_count, default=3, metavar="N", help="rows to show, at most (default: 3)"
    )
    parser.add_argument(
        "--pictures",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="fetch the media and draw them on the terminal, if it can",
    )
    parser.add_argument("--open", action="store_true", help="show the rows in a browser")
    parser.add_argument("--page", metavar="PAGE.html", help="file for --open")
    parser.add_argument("--json", action="store_true", help="print the rows as JSON")
    options = parse(parser, argv)
    if (options.id is None) == (options.where is None):
        parser.error("expected the ID of a row, or --where CONDITION")
    return options


def _count(text: str) -> int:
    number = int(text)
    if not 1 <= number <= 1000:
        raise argparse.ArgumentTypeError(f"found {number}, expected 1 to 1000")
    return number

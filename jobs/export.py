"""The commands `mediamill export` and `mediamill compact`: their options, and what they print."""

import argparse
import json
from collections.abc import Sequence
from dataclasses import asdict

from mediamill.jobs.commands import new_parser, parse
from mediamill.jobs.progress.activity import working
from mediamill.schemas.nearest import nearest

_FILES = ("sidecar", "jsonl", "csv", "parquet", "webdataset", "imagefolder", "fiftyone")
_FORMATS = (*_FILES, "lance", "iceberg")

_EXPORT_HELP = """\
A killed export goes on when the same command is given again; given later, it adds the rows that
are new. docs/export.md describes the forms and the conditions.

examples:
  mediamill export captions/ photos/ --to sidecar
  mediamill export captions/ captions.jsonl --to jsonl --columns id,text
  mediamill export captions/ s3://bucket/shards/ --to webdataset --root photos/
  mediamill export captions/ wide/ --to imagefolder --where 'width >= 512'
"""
_COMPACT_HELP = """\
Readers see each row once meanwhile; docs/export.md says what that means on which storage. A killed
compaction goes on when the same command is given again.
"""


def run_export(argv: Sequence[str]) -> int:
    """Parses the arguments, exports, prints the summary, and returns the exit code."""
    options = _parse_export(argv)
    from mediamill.pipeline.export.export import ExportOptions, export

    with working("exporting rows"):
        summary = export(
            ExportOptions(
                output=options.output,
                target=options.target,
                to=options.to,
                where=options.where,
                columns=_names(options.columns),
                text=options.text,
                suffix=options.suffix.lstrip("."),
                table=options.table,
                errors=options.errors,
                media=options.media,
                rows_per_file=options.rows_per_file,
                roots=tuple(options.root),
                hosts=tuple(options.host) or None,
                overwrite=options.overwrite,
            )
        )
    if options.json:
        print(json.dumps({"event": "summary", **asdict(summary)}))
        return 0
    earlier = summary.exported - summary.new
    line = f"{summary.exported} rows exported" + (f" ({earlier} of them before)" if earlier else "")
    print(f"{line} in {summary.seconds:.1f} s")
    if summary.left_out:
        reasons = sorted(summary.left_out.items(), key=lambda item: (-item[1], item[0]))
        print(f"left out: {', '.join(f'{reason} {count}' for reason, count in reasons)}")
    if "fetch_denied" in summary.left_out:
        print("hint: --root FOLDER and --host NAME allow folders and hosts of media")
    print(f"target: {summary.target}")
    return 0


def run_compact(argv: Sequence[str]) -> int:
    """Parses the arguments, compacts, prints the summary, and returns the exit code."""
    parser = new_parser(
        "compact",
        "OUTPUT [--rows-per-file N] [--json]",
        "Rewrite the small files of an output to few large ones.",
        _COMPACT_HELP,
    )
    parser.add_argument("output", help="output folder of a job")
    parser.add_argument(
        "--rows-per-file",
        type=_count,
        metavar="N",
        help="rows of a file, at most (default: rows_per_file of the last run)",
    )
    parser.add_argument("--json", action="store_true", help="print the summary as JSON")
    options = parse(parser, argv)
    from mediamill.pipeline.compact import compact

    with working("compacting files"):
        summary = compact(options.output, options.rows_per_file)
    if options.json:
        print(json.dumps({"event": "summary", **asdict(summary)}))
        return 0
    print(
        f"{summary.files_before} files are {summary.files_after} now, of {summary.rows} rows, "
        f"in {summary.seconds:.1f} s"
    )
    if not summary.atomic and summary.files_after < summary.files_before:
        print(
            "files were replaced one by one, since this storage cannot exchange folders: readers "
            "may have missed rows for moments, without _SUCCESS"
        )
    if summary.skipped:
        print(f"left as they are, since they hold links or folders: {', '.join(summary.skipped)}")
    print(f"output: {summary.output}")
    return 0


def _parse_export(argv: Sequence[str]) -> argparse.Namespace:
    parser = new_parser(
        "export",
        "OUTPUT TARGET --to FORM [options]",
        "Write the finished rows of an output in another form.",
        _EXPORT_HELP,
    )
    parser.add_argument("output", help="output folder of a job")
    parser.add_argument("target", help="folder (jsonl, csv: or file) to write")
    parser.add_argument("--to", required=True, metavar="FORM", help=", ".join(_FORMATS))
    parser.add_argument("--where", metavar="CONDITION", help="export only these rows")
    parser.add_argument("--columns", metavar="A,B,...", help="export only these columns")
    parser.add_argument("--text", default="text", metavar="COLUMN", help="the column of the text")
    parser.add_argument(
        "--suffix", default="txt", choices=("txt", "caption", "json"), help="sidecar: of the files"
    )
    parser.add_argument("--table", metavar="NAME", help="annotate: windows (default) or videos")
    parser.add_argument("--errors", action="store_true", help="export error rows, too")
    parser.add_argument(
        "--media",
        action=argparse.BooleanOptionalAction,
        help="export the media, too (webdataset: the default; parquet: not)",
    )
    parser.add_argument("--rows-per-file", type=_count, metavar="N", help="rows of a file or shard")
    parser.add_argument(
        "--root",
        action="append",
        default=[],
        metavar="FOLDER",
        help="folder that media may lie in; sidecar: that names are relative to",
    )
    parser.add_argument(
        "--host", action="append", default=[], metavar="NAME", help="host that media may come from"
    )
    parser.add_argument(
        "--overwrite", action="store_true", help="begin anew, and replace files of others"
    )
    parser.add_argument("--json", action="store_true", help="print the summary as JSON")
    options = parse(parser, argv)
    if options.to not in _FORMATS:
        guess = nearest(options.to, _FORMATS)
        hint = f"did you mean '{guess}'?" if guess else f"expected one of {', '.join(_FORMATS)}"
        parser.error(f"--to: found '{options.to}', {hint}")
    return options


def _names(text: str | None) -> tuple[str, ...] | None:
    if text is None:
        return None
    return tuple(name.strip() for name in text.split(",") if name.strip())


def _count(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"found {number}, expected at least 1")
    return number

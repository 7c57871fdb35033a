"""The command `mediamill check`: whether the files of an output are what its log says."""

import json
from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from mediamill.jobs.commands import new_parser, parse
from mediamill.schemas.errors import FAILS_AGAIN

if TYPE_CHECKING:
    from mediamill.pipeline.retry.check import Check

_HELP = """\
Nothing is changed. The next run of the job does rows again whose files are gone.
With --json, each checked folder is one object: output, rows, errors, files, bytes, hidden_rows,
gone, changed, added (file names with rows and bytes), missing_rows, problems, notes.

exit codes: 0 all is there; 3 something differs; 2 no output

examples:
  mediamill check captions/
  mediamill check s3://bucket/captions/ --deep
"""
_UNITS = ("bytes", "KB", "MB", "GB", "TB")


def run_check(argv: Sequence[str]) -> int:
    """Parses the arguments, checks, prints what was found, and returns the exit code."""
    parser = new_parser(
        "check", "OUTPUT [--deep] [--json]", "Check the files of an output against its log.", _HELP
    )
    parser.add_argument("output", metavar="OUTPUT", help="output of a job")
    parser.add_argument("--deep", action="store_true", help="read every file, and compare all ids")
    parser.add_argument("--json", action="store_true", help="print JSON, one object a line")
    options = parse(parser, argv)
    from mediamill.pipeline.annotate.window_columns import STEPS
    from mediamill.pipeline.retry.check import check_output

    checks = check_output(options.output, options.deep, STEPS)
    for check in checks:
        if options.json:
            print(json.dumps(_values(check), ensure_ascii=False))
        else:
            print("\n".join(_lines(check, options.output)))
    return max(check.exit_code for check in checks)


def _lines(check: "Check", output: str) -> list[str]:
    errors = sum(check.errors.values())
    size = _size(check.bytes)
    lines = [
        f"{check.output}: {check.rows:,} finished rows, {errors:,} of them error rows; "
        f"{check.files:,} file{'' if check.files == 1 else 's'}, {size}"
    ]
    lines += [f"differs: {problem}" for problem in check.problems]
    lines += [f"note: {note}" for note in check.notes]
    if not check.problems:
        read = "every file was read" if check.deep else "names and sizes; --deep reads the files"
        lines.append(f"all files are there and unchanged ({read})")
    elif check.inventory.gone or check.inventory.missing_rows:
        lines.append("to make the missing rows again: run the job's command again")
    if check.errors.keys() - FAILS_AGAIN:
        lines.append(f"to redo the errors: mediamill retry {output}")
    return lines


def _size(number: int) -> str:
    size, unit = float(number), 0
    while size >= 1000 and unit + 1 < len(_UNITS):
        size, unit = size / 1000, unit + 1
    return f"{size:.0f} {_UNITS[unit]}" if unit == 0 else f"{size:.1f} {_UNITS[unit]}"


def _values(check: "Check") -> dict[str, Any]:
    values = asdict(check)
    inventory = values.pop("inventory")
    for name in ("gone", "changed", "added"):
        values[name] = {
            file: {"rows": rows, "bytes": size} for file, (rows, size) in inventory[name].items()
        }
    values["missing_rows"] = inventory["missing_rows"]
    return {"event": "check", **values, "exit_code": check.exit_code}

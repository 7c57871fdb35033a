"""The demo: draws media, captions them with the built-in model, and writes an HTML report.

A second run only does what is missing.
"""

from pathlib import Path

from mediamill.jobs.demo.drawn_media import BROKEN, BROKEN_FILES, CLIPS, PICTURES, draw
from mediamill.jobs.per_row import run_per_row
from mediamill.jobs.report.report import ReportOptions, write_report
from mediamill.model.tiny import CAPTION_PROMPT
from mediamill.pipeline.checkpoint.checkpoint_hash import BUILT_IN
from mediamill.pipeline.inspect.output import Output
from mediamill.pipeline.inspect.statistics import Statistics, count
from mediamill.schemas.job import JobConfig, load_job

_CARDS = 1000


def main(
    directory: str = "demo",
    *,
    model: str | None = None,
    pictures: int = PICTURES,
    clips: int = CLIPS,
) -> int:
    """Runs the demo in `directory` with the checkpoint folder `model` (None: the built-in one).

    Returns 0 when exactly the broken files are error rows, else 1.
    Raises JobError when the job cannot start.
    """
    folder = Path(directory)
    print(f"Drawing {pictures} pictures and {clips} clips in {folder / 'media'}/", flush=True)
    if not draw(folder, pictures, clips):
        print("They exist already")
    captions, page = folder / "captions", folder / "report.html"
    run_per_row(_job(folder, captions, model or BUILT_IN))
    if _is_current(page, captions):
        print("Nothing to do: media, captions and page exist already")
        counts = count(Output(str(captions)))
    else:
        counts = write_report(str(captions), page, ReportOptions(_CARDS)).statistics
    print(f"\n{_table(counts)}\n")
    as_expected = _failed_rows(counts) == {BROKEN: BROKEN_FILES}
    if as_expected:
        print(
            f"{BROKEN_FILES} rows failed as expected: the demo includes {BROKEN_FILES} broken files"
        )
    else:
        print("error: other rows than those of the broken files failed; see the page")
    print(f"Open {page} in a browser")
    return 0 if as_expected else 1


def _job(folder: Path, captions: Path, model: str) -> JobConfig:
    values = {
        "manifest": str(folder / "manifest"),
        "output": str(captions),
        "model": model,
        "prompt": CAPTION_PROMPT,
        "partition_by": ["kind"],
        "generation.max_new_tokens": 32,
    }
    return load_job(None, values, job="caption")


def _is_current(page: Path, captions: Path) -> bool:
    """Whether the page is newer than every file of the result."""
    if not page.exists():
        return False
    written = page.stat().st_mtime_ns
    return all(file.stat().st_mtime_ns <= written for file in captions.rglob("*.parquet"))


def _failed_rows(counts: Statistics) -> dict[str, int]:
    """Error rows by kind, for the kinds that have any."""
    failed = {group.name: group.rows - group.ok for group in counts.groups.values()}
    return {kind: rows for kind, rows in failed.items() if rows}


def _table(counts: Statistics) -> str:
    """A table of the exact matches of each kind."""
    compared = [group for group in counts.groups.values() if group.compared]
    lines = ["kind     rows   right   exact match"]
    lines += [_line(group.name, group.rows, group.matches, group.match_rate) for group in compared]
    rate = counts.matches / counts.compared if counts.compared else None
    lines.append(_line("all", sum(group.rows for group in compared), counts.matches, rate))
    return "\n".join(lines)


def _line(name: str, rows: int, matches: int, rate: float | None) -> str:
    share = "-" if rate is None else f"{rate:.1%}"
    return f"{name:<6}{rows:>7}{matches:>8}{share:>14}"

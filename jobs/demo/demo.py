"""Turns an empty folder into a captioned collection and a page: a newcomer's first run.

Draws media, runs the ordinary caption job on them with the tiny model, counts what is right, and
writes the page. Does again only what is not there yet.
"""

from pathlib import Path

from mediamill.jobs.demo.drawn_media import BROKEN, BROKEN_FILES, CLIPS, PICTURES, draw
from mediamill.jobs.per_row import run_per_row
from mediamill.jobs.report import counts
from mediamill.jobs.report.counts import Counts
from mediamill.jobs.report.report import write_report
from mediamill.model.tiny import CAPTION_PROMPT, CHECKPOINT
from mediamill.schemas.job import JobConfig, load_job


def main(
    directory: str = "demo",
    *,
    model: str | None = None,
    pictures: int = PICTURES,
    clips: int = CLIPS,
) -> int:
    """Run the demo in `directory` with the checkpoint folder `model` (None = the tiny one).

    Returns 0 if every picture and clip has a caption and only the broken files have none, else 1.
    Raises JobError where the job cannot start.
    """
    folder = Path(directory)
    print(f"Drawing {pictures} pictures and {clips} clips in {folder / 'media'}/", flush=True)
    if not draw(folder, pictures, clips):
        print("They are there already")
    captions, page = folder / "captions", folder / "report.html"
    run_per_row(_job(folder, captions, model or _built_in()))
    if _is_current(page, captions):
        print("Nothing was left to do: media, captions and page are there already")
        counted = counts.count(counts.open_result(str(captions)))
    else:
        counted = write_report(str(captions), page)
    print(f"\n{_table(counted)}\n")
    as_expected = _failed_rows(counted) == {BROKEN: BROKEN_FILES}
    if as_expected:
        print(f"{BROKEN_FILES} rows failed: the broken files that the demo brings, as they should")
    else:
        print("error: the rows that failed are not just the broken files; see the page")
    print(f"Open {page} in a browser")
    return 0 if as_expected else 1


def _built_in() -> str:
    """The tiny model's folder, short where it lies below the current one: results quote it."""
    here = Path.cwd()
    return str(CHECKPOINT.relative_to(here) if CHECKPOINT.is_relative_to(here) else CHECKPOINT)


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
    """Whether the page was written after every file of the result."""
    if not page.exists():
        return False
    written = page.stat().st_mtime_ns
    return all(file.stat().st_mtime_ns <= written for file in captions.rglob("*.parquet"))


def _failed_rows(counted: Counts) -> dict[str, int]:
    """Error rows by kind, without the kinds that have none."""
    failed = {group.name: group.rows - group.ok for group in counted.groups}
    return {kind: rows for kind, rows in failed.items() if rows}


def _table(counted: Counts) -> str:
    """The exact matches of each kind, in aligned columns."""
    judged = [group for group in counted.groups if group.judged]
    lines = ["kind     rows   right   exact match"]
    lines += [_line(group.name, group.rows, group.right, group.rate) for group in judged]
    rate = counted.right / counted.judged if counted.judged else None
    lines.append(_line("all", sum(group.rows for group in judged), counted.right, rate))
    return "\n".join(lines)


def _line(name: str, rows: int, right: int, rate: float | None) -> str:
    share = "-" if rate is None else f"{rate:.1%}"
    return f"{name:<6}{rows:>7}{right:>8}{share:>14}"

"""What a write task commits, and the record of the log that finishes it."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field

from mediamill.pipeline.ledger.state import Counts, LedgerState, Part, Record, Rows, text_of

Published = Mapping[str, int] | Iterable[str]  # names of groups, with the bytes of their files


@dataclass(frozen=True)
class Commit:
    """Rows that one write task has staged, to be finished all at once or not at all.

    token: unique to this attempt of this task.
    rows, counts: of the staged rows.
    parts: the same rows by folder of the result; a folder may come more than once.
    replacements: parts of rows that were done again, by the visible file that holds the old row.
    replaced: the counts of these old rows.
    texts: how many of the answers have each text, and an example, by `text_key`; not logged.
    """

    token: str
    rows: Rows
    counts: Counts
    parts: tuple[tuple[str, Part], ...] = ()
    replacements: tuple[tuple[str, Part], ...] = ()
    replaced: Counts = field(default_factory=Counts)
    texts: tuple[Mapping[str, int], Mapping[str, str]] = ({}, {})


def record_of(
    state: LedgerState,
    commits: Sequence[Commit] = (),
    published: Published = (),
    everything: bool = False,
) -> Record:
    """Returns the next record: it finishes the rows of commits, and drops published groups.

    published: names of groups, with the bytes of their files if they are known.

    In the folders of the commits, rows that fill whole files become groups; with `everything`, all
    waiting rows of all folders do.
    """
    added: Counter[str] = Counter(state.waiting if everything else ())
    for commit in commits:
        for folder, part in commit.parts:
            added[folder] += part.rows
    groups: list[tuple[str, int, str]] = []
    for folder, rows in added.items():
        left = rows if everything else rows + state.waiting.get(folder, 0)
        while left >= state.rows_per_file or (everything and left):
            # Unique, since no other record has this number.
            name = f"part-{state.sequence + 1:012}-{len(groups):05}.parquet"
            groups.append((folder, min(left, state.rows_per_file), f"{folder}/{name}".lstrip("/")))
            left -= groups[-1][1]
    return {
        "kind": "commit",
        "run": state.run,
        "commits": [_entry(commit) for commit in commits],
        "groups": groups,
        **_published(published),
    }


def _published(published: Published) -> Record:
    sizes = published if isinstance(published, Mapping) else dict.fromkeys(published, -1)
    return {"published": [*sizes], "bytes": [*sizes.values()]}


def _entry(commit: Commit) -> Record:
    entry: Record = {
        "token": commit.token,
        "rows": {str(number): text_of(indices) for number, indices in commit.rows.items()},
        "counts": asdict(commit.counts),
        "parts": _part_entries(commit.parts),
    }
    if commit.replacements:
        entry["replacements"] = _part_entries(commit.replacements)
        entry["replaced"] = asdict(commit.replaced)
    return entry


def _part_entries(parts: Iterable[tuple[str, Part]]) -> list[tuple[str, int, int, int]]:
    return [(name, part.offset, part.length, part.rows) for name, part in parts]

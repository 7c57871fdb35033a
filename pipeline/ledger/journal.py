"""The journal of a compaction: which visible files are being replaced by which.

It is one hidden object. Once it names a folder, the compaction of that folder is only finished,
never undone; `readable_files` shows rows once at any moment of it, on any storage.
"""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Literal

from mediamill.pipeline.ledger.log import HIDDEN
from mediamill.pipeline.ledger.publish import visible_files
from mediamill.pipeline.storage import storage
from mediamill.pipeline.storage.storage import Place

MOVED = "compacting"  # the visible folder of files that are being replaced, in an output without
# partitions
SOURCES = b"mediamill.sources"  # key of a compacted file's footer: names and rows of its sources
# Key of a file with rows that a retry replaced: a list of retries, each with the rows' positions.
REPLACED = b"mediamill.replaced"

Mode = Literal["exchange", "moved", "replace"]


@dataclass(frozen=True)
class Merged:
    """A file that replaces others. name, sources: in their folder; rows: of each source."""

    name: str
    sources: tuple[str, ...]


@dataclass(frozen=True)
class Journal:
    """number: of changes of the journal, so that a reader sees that there was one meanwhile.

    folder: of the files, in the output; None if nothing is being replaced.
    mode: exchange = the folder is exchanged as a whole; moved = the files are moved to the folder
    `MOVED`, which is exchanged; replace = old files are removed before the new one appears.
    success: the content of `_SUCCESS`, which is away while files are replaced one by one.
    """

    number: int = 0
    folder: str | None = None
    mode: Mode = "exchange"
    files: tuple[Merged, ...] = ()
    success: str | None = None


def work_folder(output: Place) -> Place:
    """Returns the hidden folder of the files that are not visible yet."""
    return output / HIDDEN / "compaction"


def hidden_file(output: Place, name: str) -> Place:
    """Returns where a merged file is before it is visible. Its suffix is not .parquet."""
    return work_folder(output) / f"{name.removesuffix('.parquet')}.whole"


def in_folder(folder: str, name: str) -> str:
    """Returns the path of a file in the output."""
    return f"{folder}/{name}".lstrip("/")


def read_journal(output: Place) -> Journal:
    """Returns the journal, empty if the output has none."""
    try:
        values = json.loads(storage.read(_place(output)))
    except FileNotFoundError:
        return Journal()
    files = tuple(Merged(one["name"], tuple(one["sources"])) for one in values.pop("files"))
    return Journal(**values, files=files)


def write_journal(output: Place, journal: Journal) -> None:
    """Writes the journal atomically."""
    storage.put(_place(output), json.dumps(asdict(journal)).encode())


def readable_files(output: Place) -> Mapping[str, Place]:
    """Returns the files of an output that hold each finished row once, by name, sorted.

    Also while a compaction replaces files, and after it was killed. A file may be gone when it is
    opened (FileNotFoundError): then this is to be called again.
    """
    while True:
        journal = read_journal(output)
        names = visible_files(output)
        if read_journal(output).number == journal.number:
            break
    files = {name: output / name for name in names}
    if journal.folder is None:
        return files
    if journal.mode == "replace":
        for merged in journal.files:
            for source in merged.sources:
                files.pop(in_folder(journal.folder, source), None)
            name = in_folder(journal.folder, merged.name)
            files.setdefault(name, hidden_file(output, merged.name))
    elif journal.mode == "moved":
        files = {name.removeprefix(f"{MOVED}/"): place for name, place in files.items()}
    return dict(sorted(files.items()))


def _place(output: Place) -> Place:
    return output / HIDDEN / "compaction.json"

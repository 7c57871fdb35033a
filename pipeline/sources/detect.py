"""Finds out what a source is, by its name and by what is in it, and opens it."""

import posixpath
import re
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from itertools import islice
from typing import Any, Literal

import pyarrow as pa

from mediamill.pipeline.sources import (
    braces,
    imagefolder,
    lakehouse,
    listing,
    media_names,
    tables,
    webdataset,
    zip_archive,
)
from mediamill.pipeline.sources.left_out import LeftOut
from mediamill.pipeline.sources.media_names import NameRules
from mediamill.pipeline.sources.table_columns import ColumnRules
from mediamill.pipeline.sources.tables import PARQUET, TableRules, table_kind
from mediamill.pipeline.sources.unit import Source
from mediamill.pipeline.storage import storage
from mediamill.pipeline.storage.storage import Place
from mediamill.schemas.errors import JobError

Kind = Literal["folder", "table", "imagefolder", "webdataset", "zip", "lance", "iceberg"]
KINDS: tuple[Kind, ...] = (
    "folder", "table", "imagefolder", "webdataset", "zip", "lance", "iceberg"
)  # fmt: skip
_PEEKED = 1000  # files that show what a folder is
_LOOKUPS = 16  # at once, of files that braces name
_WILDCARD = re.compile(r"[*?\[]")


@dataclass(frozen=True)
class SourceRules:
    """What the user says of a source.

    kind: None = found out. names: which files. table: how tables are read.
    """

    kind: Kind | None = None
    names: NameRules = field(default_factory=NameRules)
    table: TableRules = field(default_factory=TableRules)


@dataclass(frozen=True)
class Known:
    """What earlier runs have found: the schema and the settings of their source."""

    schema: pa.Schema
    settings: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class _Found:
    """kind: None for nothing known. root: a folder. file: its name below it, if it is one file.

    names: below the root, of one medium, or of the files that braces stand for.
    """

    kind: Kind | None
    root: Place
    file: str | None = None
    glob: str | None = None
    names: tuple[str, ...] = ()
    parquet: bool = False
    suffixes: str = ""


def is_manifest(url: str) -> bool:
    """Whether a job reads `url` itself: Parquet, or what does not exist or is no known source."""
    found = _find(url, None)
    return found is None or found.parquet or found.kind is None


def open_source(url: str, rules: SourceRules, known: Known | None = None) -> Source:
    """Opens the source at a path or URL of a file, folder or glob. Raises JobError."""
    if storage.scheme(url) == lakehouse.ICEBERG_SCHEME:
        return lakehouse.list_iceberg(url, None, _columns(rules, known), known and known.schema)
    shown = storage.redact(url)
    found = _find(url, rules.kind)
    if found is None:
        raise JobError(f"{shown}: found no such file or folder, expected a source of media")
    kind = rules.kind or found.kind
    if kind is None:
        held = f" (it holds {found.suffixes})" if found.suffixes else ""
        raise JobError(
            f"{shown}: found no pictures, videos, tables or archives{held}, expected some; "
            f"--as says what it is: {', '.join(KINDS)}"
        )
    return _open(kind, found, url, rules, known)


def _open(kind: Kind, found: _Found, url: str, rules: SourceRules, known: Known | None) -> Source:
    root, schema = found.root, known.schema if known else None
    names = replace(rules.names, glob=found.glob or rules.names.glob)
    members = replace(rules.names, glob=None).compile()
    columns = _columns(rules, known)
    if kind == "folder" and found.names:
        return listing.list_named(root, found.names)
    if kind == "folder":
        return listing.list_media(root, names.compile())
    if kind == "lance":
        return lakehouse.list_lance(root, columns, schema)
    if kind == "iceberg":
        metadata = root / found.file if found.file else lakehouse.newest_metadata(root)
        if metadata is None:
            raise JobError(f"{storage.redact(url)}: found no metadata of an Iceberg table")
        return lakehouse.list_iceberg(url, metadata, columns, schema)
    if kind == "imagefolder":
        files = imagefolder.metadata_tables(root)
        if not files:
            return imagefolder.list_labelled(root, names.compile())
        return tables.list_tables(root.url, files, replace(rules.table, columns=columns), schema)
    left_out = LeftOut()
    if found.file is not None:
        listed = [(found.file, root / found.file)]
    elif found.names:
        listed = _existing(root, found.names, left_out)
    else:
        listed = list(_files(root, kind, names, left_out))
    if not listed:
        raise JobError(f"{storage.redact(url)}: found no file of the kind {kind}, expected some")
    if kind == "webdataset":
        for name, place in listed:
            webdataset.refuse_compressed(name, storage.redact(place.url))
        texts = known.settings.get("texts") if known else None
        source = webdataset.list_shards(root.url, listed, members, texts)
    elif kind == "zip":
        source = zip_archive.list_archives(root.url, listed, members)
    else:
        source = tables.list_tables(url, listed, replace(rules.table, columns=columns), schema)
    return replace(source, url=storage.absolute(url), left_out=left_out)


def _columns(rules: SourceRules, known: Known | None) -> ColumnRules:
    own = rules.table.columns
    if known is None:
        return own
    return ColumnRules(
        own.uri or known.settings.get("uri_column"), own.id or known.settings.get("id_column")
    )


def _find(url: str, wanted: Kind | None) -> _Found | None:
    """Returns what is at a URL; None if nothing is. Raises JobError if it cannot be read."""
    _refuse_other_forms(url)
    root = storage.resolve(url)
    try:
        try:
            info = storage.with_retries(root, lambda fs: fs.info(root.path))
        except (FileNotFoundError, NotADirectoryError):
            if braces.has_braces(root.path):
                return _find_braces(root)
            return _find_glob(root) if _WILDCARD.search(root.path) else None
        if info["type"] != "directory":
            folder, _, name = root.path.rpartition("/")
            above = Place(root.fs, folder or "/", root.url.rpartition("/")[0] or "/")
            return _find_file(above, name)
        return _find_folder(root, wanted)
    except JobError:
        raise
    except Exception as error:  # each storage raises errors of its own
        reason = storage.redact_text(str(error)).split("\n")[0]
        raise JobError(f"{storage.redact(url)}: the source cannot be read: {reason}") from error


def _refuse_other_forms(url: str) -> None:
    """Raises JobError for forms of sources that the webdataset library has, and others have not."""
    form, expected = "", "the path or URL of the shards themselves"
    if url.lower().startswith("pipe:"):
        form = "a command ('pipe:'), and no command is run"
        expected += ": s3://, gs://, https:// and hf:// are read in place"
    elif url == "-":
        form = "standard input ('-'), in which no member has an address"
    elif url.lower().startswith("file:") and not url.lower().startswith("file://"):
        form, expected = "'file:' without slashes", "a path, or file:///PATH"
    elif "::" in url and all(map(_kind_of, url.split("::"))):
        form, expected = "several sources with '::' between", "one: braces or a glob name several"
    if form:
        raise JobError(f"{storage.redact(url)}: found {form}, expected {expected}")


def _find_file(folder: Place, name: str) -> _Found:
    kind = _kind_of(name)
    if kind == "folder":  # one medium
        return _Found(kind, folder, names=(name,))
    return _Found(kind, folder, name, parquet=table_kind(name) in PARQUET)


def _kind_of(name: str) -> Kind | None:
    lower = name.lower()
    if media_names.is_media(name):
        return "folder"
    if lower.endswith(".metadata.json"):
        return "iceberg"
    if lower.endswith((".tar", *webdataset.COMPRESSED)):
        return "webdataset"
    if lower.endswith(".zip"):
        return "zip"
    return "table" if table_kind(name) in tables.TABLES else None


def _find_folder(root: Place, wanted: Kind | None) -> _Found:
    if wanted is not None:
        return _Found(wanted, root)
    if lakehouse.is_lance(root):
        return _Found("lance", root)
    if lakehouse.newest_metadata(root) is not None:
        return _Found("iceberg", root)
    return _peek(root, None)


def _find_glob(root: Place) -> _Found | None:
    base, pattern = _split(root, lambda part: _WILDCARD.search(part) or braces.has_braces(part))
    return _peek(base, pattern) if storage.exists(base) else None


def _find_braces(root: Place) -> _Found | None:
    """Files that braces name need not be listed: a web server cannot list them."""
    if _WILDCARD.search(root.path) and not storage.scheme(root.url).startswith("http"):
        return _find_glob(root)
    base, pattern = _split(root, braces.has_braces)
    names = tuple(dict.fromkeys(braces.expand(pattern)))
    kinds = {_kind_of(name) for name in names}
    if len(kinds) > 1:
        shown = ", ".join(sorted(str(kind) for kind in kinds))
        raise JobError(
            f"{storage.redact(root.url)}: found names of different kinds in braces ({shown}), "
            "expected names of one kind"
        )
    return _Found(kinds.pop(), base, names=names)


def _split(root: Place, is_pattern: Callable[[str], object]) -> tuple[Place, str]:
    """Splits a place into the folder before the first part that is a pattern, and the rest."""
    parts, cut = root.path.split("/"), root.url.split("/")
    # A brace that is closed in a later part belongs to its first part.
    fixed = next((n for n, part in enumerate(parts) if is_pattern(part) or "{" in part), 0)
    above = "/".join(cut[: len(cut) - (len(parts) - fixed)])
    return Place(root.fs, "/".join(parts[:fixed]) or "/", above or "/"), "/".join(parts[fixed:])


def _existing(root: Place, names: tuple[str, ...], left_out: LeftOut) -> list[tuple[str, Place]]:
    """The files that are there, of those that braces name. Raises OSError."""
    places = [(name, root / name) for name in names]
    with ThreadPoolExecutor(_LOOKUPS, "lookup") as executor:
        there = list(executor.map(lambda item: storage.exists(item[1]), places))
    for name, is_there in zip(names, there, strict=True):
        if not is_there:
            left_out.add("a file that braces name, and that is not there", name)
    return [item for item, is_there in zip(places, there, strict=True) if is_there]


def _peek(root: Place, glob: str | None) -> _Found:
    """Tells by the first files of a folder what is in it.

    Parquet beside pictures is a manifest, except for the metadata of an image folder.
    """
    kinds: Counter[Kind] = Counter()
    suffixes: Counter[str] = Counter()
    has_parquet = False
    for name in islice(_names(root, NameRules(glob=glob)), _PEEKED):
        kind = _kind_of(name)
        if posixpath.basename(name).startswith("metadata."):
            continue
        has_parquet |= table_kind(name) in PARQUET and not name.startswith("_")
        suffixes[media_names.suffix(name)] += 1
        if kind is not None and kind != "iceberg":
            kinds[kind] += 1
    held = ", ".join(
        f"{n} .{suffix}" if suffix else f"{n} others" for suffix, n in suffixes.items()
    )
    order: tuple[Kind, ...] = ("folder", "webdataset", "zip", "table")
    kind = next((kind for kind in order if kinds[kind]), None)
    if kind == "folder" and not has_parquet and glob is None and imagefolder.metadata_tables(root):
        kind = "imagefolder"
    return _Found(kind, root, glob=glob, parquet=has_parquet, suffixes=held)


def _names(root: Place, rules: NameRules) -> Iterator[str]:
    """All files that are not hidden, whatever they are."""
    everything = replace(rules, include=("*",)).compile()
    for _, walk in listing.walks(root, everything.reason):
        yield from walk(LeftOut())


def _files(
    root: Place, kind: Kind, rules: NameRules, left_out: LeftOut
) -> Iterator[tuple[str, Place]]:
    """The files of one kind below a folder, sorted."""
    rules = NameRules(glob=rules.glob, include=("*",))
    found = []
    for _, walk in listing.walks(root, rules.compile().reason):
        for name in walk(left_out):
            if _kind_of(name) == kind:
                found.append(name)
            else:
                left_out.add(f"a file of another kind than {kind}", name)
    is_list = [table_kind(name) in tables.LIST for name in found]
    if kind == "table" and not all(is_list):  # texts beside tables are no lists of media
        found = [name for name, own in zip(found, is_list, strict=True) if not own]
    yield from ((name, root / name) for name in sorted(found))

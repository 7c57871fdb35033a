"""Lists the pictures and videos below a folder or bucket, as a stream.

Memory grows with the names of one folder at most (local), or with one page of a listing (S3). Other
file systems return a folder at once. The order is that of the names, folder by folder.
"""

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from mediamill.pipeline.ray_cluster.trim_memory import trim_memory
from mediamill.pipeline.sources import uris
from mediamill.pipeline.sources.arrow_texts import binary_array
from mediamill.pipeline.sources.ids import readable
from mediamill.pipeline.sources.left_out import LeftOut
from mediamill.pipeline.sources.media_names import HIDDEN, NameFilter, is_hidden, is_hidden_path
from mediamill.pipeline.sources.unit import Source, Unit, tables
from mediamill.pipeline.storage import storage
from mediamill.pipeline.storage.schemes import READERS
from mediamill.pipeline.storage.storage import Place
from mediamill.schemas import columns as c
from mediamill.schemas.errors import JobError

SCHEMA = pa.schema([(c.ID, pa.string()), (c.URI, pa.string())])
_MAX_UNITS = 256
_PAGE_KEYS = 1000  # the most that S3 lists at once
_NAMES = 16_384  # converted at once
_EXPANDED_PREFIXES, _MAX_DEPTH, _MAX_PAGES = 32, 3, 10
_LINK_INSIDE = "a link to a folder that is listed itself"
_BROKEN = "cannot be read"

# Paths relative to the source's folder.
Names = Iterator[str]
Chooser = Callable[[str], str | None]
Walk = Callable[[LeftOut], Names]


def list_media(root: Place, names: NameFilter) -> Source:
    """Returns the source of all media below a folder. Raises JobError if it cannot be listed."""

    def rows(paths: Names) -> Iterator[tuple[str | None, ...]]:
        for path in paths:
            yield readable(path), uris.uri_of((root / path).url)

    def unit(name: str, walk: Callable[[LeftOut], Names]) -> Unit:
        return Unit(name, "", lambda left_out: tables(rows(walk(left_out)), SCHEMA))

    return Source("folder", root.url, SCHEMA, (unit(*part) for part in walks(root, names.reason)))


def list_named(root: Place, paths: Sequence[str]) -> Source:
    """Returns the source of media whose paths below `root` are known."""

    def rows() -> Iterator[tuple[str | None, ...]]:
        yield from ((readable(path), uris.uri_of((root / path).url)) for path in paths)

    unit = Unit("names", "", lambda _: tables(rows(), SCHEMA))
    return Source("list of names", root.url, SCHEMA, (unit,))


def walks(root: Place, choose: Chooser) -> Iterator[tuple[str, Callable[[LeftOut], Names]]]:
    """Yields parts of a folder that may be listed at the same time: a name, and what lists it.

    choose: why a file is left out, see NameFilter.reason.
    """
    try:
        if root.is_local:
            yield from _local_walks(root, choose)
        elif READERS.get(storage.scheme(root.url)) == "s3":
            yield from _s3_walks(root, choose)
        else:
            yield "all", lambda left_out: _walk_any(root, "", choose, left_out)
    except OSError as error:
        raise _unreadable(root, error) from error


def _unreadable(root: Place, error: Exception) -> JobError:
    reason = storage.redact_text(str(error)).split("\n")[0]
    return JobError(f"{storage.redact(root.url)}: the folder cannot be listed: {reason}")


def _slices(items: list[str], count: int) -> Iterator[list[str]]:
    size = max(1, -(-len(items) // count))
    yield from (items[start : start + size] for start in range(0, len(items), size))


def _slice_name(names: list[str]) -> str:
    return f"{readable(names[0])} to {readable(names[-1])}, {len(names)}"


# ---- local -----------------------------------------------------------------------------------


def _local_walks(root: Place, choose: Chooser) -> Iterator[tuple[str, Callable[[LeftOut], Names]]]:
    walk = _LocalWalk(root.path, choose)
    yield "files", lambda left_out: walk.files("", left_out)
    with os.scandir(root.path) as entries:
        folders = sorted(entry.name for entry in entries if _leads_to(entry.is_dir))
    for names in _slices(folders, _MAX_UNITS):
        yield f"folders {_slice_name(names)}", _walk_of(walk, names)


def _walk_of(walk: "_LocalWalk", names: list[str]) -> Callable[[LeftOut], Names]:
    return lambda left_out: (
        path for name in names for path in walk.below(name, left_out, frozenset())
    )


@dataclass(frozen=True)
class _LocalWalk:
    root: str
    choose: Chooser

    def files(self, folder: str, left_out: LeftOut) -> Names:
        """Yields the media of one folder, without those of its folders. Raises OSError."""
        chosen, _ = self._scan(folder, left_out, with_folders=False)
        yield from _sorted(chosen)

    def below(self, folder: str, left_out: LeftOut, above: frozenset[tuple[int, int]]) -> Names:
        """Yields the media of a folder and of its folders. above: inodes of linked folders."""
        path = os.path.join(self.root, folder)  # noqa: PTH118 - a million of them
        name = folder.rpartition("/")[2]
        if is_hidden(name):
            left_out.add(f"folder: {HIDDEN}", folder)
            return
        try:
            if os.path.islink(path):  # noqa: PTH114
                real = os.path.realpath(path)
                status = os.stat(real)  # noqa: PTH116
                identity = (status.st_dev, status.st_ino)
                inside = f"{real}/".startswith(f"{os.path.realpath(self.root)}/")
                if inside or identity in above:
                    left_out.add(_LINK_INSIDE, folder)
                    return
                above |= {identity}
            chosen, folders = self._scan(folder, left_out)
        except OSError as error:
            left_out.add(f"folder: {_BROKEN}: {error.strerror}", folder)
            return
        yield from _sorted(chosen)
        for child in folders:
            yield from self.below(f"{folder}/{child}", left_out, above)

    def _scan(
        self, folder: str, left_out: LeftOut, with_folders: bool = True
    ) -> tuple[pa.ChunkedArray, list[str]]:
        """Returns the paths of the media as bytes, and the names of the folders, sorted."""
        chunks: list[pa.Array] = []
        batch: list[bytes] = []
        folders: list[str] = []
        prefix = f"{folder}/" if folder else ""
        with os.scandir(os.path.join(self.root, folder)) as entries:  # noqa: PTH118
            for entry in entries:
                if _leads_to(entry.is_dir):
                    if with_folders:
                        folders.append(entry.name)
                    continue
                path = prefix + entry.name
                reason = self.choose(path)
                if reason is None and not _leads_to(entry.is_file):
                    reason = "a broken link, pipe or device"
                if reason is None:
                    batch.append(os.fsencode(path))
                    if len(batch) >= _NAMES:
                        chunks.append(binary_array(batch))
                        batch = []
                elif reason:
                    left_out.add(reason, path)
        chunks.append(binary_array(batch))
        return pa.chunked_array(chunks), sorted(folders)


def _leads_to(kind: Callable[[], bool]) -> bool:
    try:
        return kind()
    except OSError:  # a link to itself
        return False


def _sorted(paths: pa.ChunkedArray) -> Names:
    """Yields paths in the order of their bytes. A list of a million would take too much memory."""
    order = pc.sort_indices(paths)
    if len(order) > _NAMES:
        trim_memory()  # sorting takes three times the memory of its result
    for start in range(0, len(order), _NAMES):
        part = paths.take(order.slice(start, _NAMES))
        yield from map(os.fsdecode, part.to_pylist())


# ---- S3 --------------------------------------------------------------------------------------


def _s3_walks(root: Place, choose: Chooser) -> Iterator[tuple[str, Callable[[LeftOut], Names]]]:
    bucket, _, key = root.path.partition("/")
    listing = _S3Listing(root, bucket, f"{key}/" if key else "", choose)
    own, prefixes = listing.split()
    for prefix in own:
        yield f"objects {prefix}", _objects_of(listing, [prefix], "/")
    for some in _slices(prefixes, _MAX_UNITS):
        yield f"prefixes {_slice_name(some)}", _objects_of(listing, some, "")


def _objects_of(
    listing: "_S3Listing", prefixes: list[str], delimiter: str
) -> Callable[[LeftOut], Names]:
    return lambda left_out: (
        path for prefix in prefixes for path in listing.objects(prefix, delimiter, left_out)
    )


@dataclass(frozen=True)
class _S3Listing:
    """prefix: of all keys; empty, or with a slash at its end."""

    root: Place
    bucket: str
    prefix: str
    choose: Chooser

    def split(self) -> tuple[list[str], list[str]]:
        """Returns prefixes whose own objects are to be listed, and prefixes to be listed whole.

        A large prefix without folders stays one: its keys come page by page.
        """
        own: list[str] = []
        whole = [self.prefix]
        for _ in range(_MAX_DEPTH):
            if len(whole) >= _EXPANDED_PREFIXES:
                break
            expanded: list[str] = []
            for prefix in whole:
                children = self._children(prefix)
                if children is None:
                    expanded.append(prefix)
                else:
                    own.append(prefix)
                    expanded += children
            if expanded == whole:
                break
            whole = expanded
        return own, sorted(whole)

    def _children(self, prefix: str) -> list[str] | None:
        """The prefixes one folder below; None if there are too many objects to find out."""
        children: list[str] = []
        for number, page in enumerate(self._pages(prefix, "/")):
            if number >= _MAX_PAGES:
                return None
            children += [item["Prefix"] for item in page.get("CommonPrefixes", ())]
        return children or None

    def objects(self, prefix: str, delimiter: str, left_out: LeftOut) -> Names:
        for page in self._pages(prefix, delimiter):
            for item in page.get("Contents", ()):
                path = item["Key"][len(self.prefix) :]
                if path.endswith("/") or not path:
                    continue  # stands for a folder
                folder = path.rpartition("/")[0]
                hidden = folder and is_hidden_path(folder)
                reason = f"in a folder: {HIDDEN}" if hidden else self.choose(path)
                if reason is None:
                    yield path
                elif reason:
                    left_out.add(reason, path)

    def _pages(self, prefix: str, delimiter: str) -> Iterator[dict[str, Any]]:
        arguments: dict[str, Any] = {
            "Bucket": self.bucket, "Prefix": prefix, "MaxKeys": _PAGE_KEYS
        }  # fmt: skip
        if delimiter:
            arguments["Delimiter"] = delimiter
        while True:
            ask = partial(_list_page, arguments=dict(arguments))
            page = storage.with_retries(self.root, ask)
            yield page
            if not page.get("IsTruncated"):
                return
            arguments["ContinuationToken"] = page["NextContinuationToken"]


def _list_page(fs: Any, arguments: dict[str, Any]) -> dict[str, Any]:
    page: dict[str, Any] = fs.call_s3("list_objects_v2", **arguments)
    return page


# ---- any other -------------------------------------------------------------------------------


def _walk_any(root: Place, folder: str, choose: Chooser, left_out: LeftOut) -> Names:
    place = root / folder if folder else root
    infos = storage.with_retries(place, lambda fs: fs.ls(place.path, detail=True))
    prefix = f"{folder}/" if folder else ""
    folders: list[str] = []
    for name, kind in sorted(_named(infos)):
        path = prefix + name
        if kind == "directory":
            folders.append(path)
        elif (reason := choose(path)) is None:
            yield path
        elif reason:
            left_out.add(reason, path)
    for path in folders:
        if is_hidden(path.rpartition("/")[2]):
            left_out.add(f"folder: {HIDDEN}", path)
        else:
            yield from _walk_any(root, path, choose, left_out)


def _named(infos: Iterable[dict[str, Any]]) -> Iterator[tuple[str, str]]:
    for info in infos:
        name = info["name"].rstrip("/").rpartition("/")[2]
        if name:
            yield name, info["type"]

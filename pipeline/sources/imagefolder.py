"""Reads Hugging Face image and video folders: media with a table `metadata.*` beside them.

Without such a table, the folder that a medium lies in is its label.
"""

from collections.abc import Iterator, Sequence

import pyarrow as pa

from mediamill.pipeline.sources import listing, uris
from mediamill.pipeline.sources.ids import readable
from mediamill.pipeline.sources.left_out import LeftOut
from mediamill.pipeline.sources.media_names import NameFilter
from mediamill.pipeline.sources.unit import Source, Unit, tables
from mediamill.pipeline.storage import storage
from mediamill.pipeline.storage.storage import Place
from mediamill.schemas import columns as c

LABEL = "label"
_SCHEMA = pa.schema([(c.ID, pa.string()), (c.URI, pa.string()), (LABEL, pa.string())])
_SPLITS = ("", "train", "validation", "valid", "val", "dev", "test")
_SUFFIXES = ("csv", "jsonl", "parquet")


def metadata_tables(root: Place) -> Sequence[tuple[str, Place]]:
    """Returns the name and place of the folder's metadata tables, one for each split at most."""
    found = []
    for split in _SPLITS:
        for suffix in _SUFFIXES:
            name = f"{split}/metadata.{suffix}" if split else f"metadata.{suffix}"
            if storage.exists(root / name):
                found.append((name, root / name))
                break
    return found


def list_labelled(root: Place, names: NameFilter) -> Source:
    """Returns the source of all media below a folder, with the name of their folder as `label`."""

    def rows(paths: Iterator[str]) -> Iterator[tuple[str | None, ...]]:
        for path in paths:
            folder = readable(path).rpartition("/")[0].rpartition("/")[2] or None
            yield readable(path), uris.uri_of((root / path).url), folder

    def unit(name: str, walk: listing.Walk) -> Unit:
        def read(left_out: LeftOut) -> Iterator[pa.Table]:
            return tables(rows(walk(left_out)), _SCHEMA)

        return Unit(name, "", read)

    units = (unit(*part) for part in listing.walks(root, names.reason))
    return Source("image folder", root.url, _SCHEMA, units)

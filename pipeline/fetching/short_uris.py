"""Shortens the `data:` URIs in a table's column of media, once the media have been read."""

import pyarrow as pa
import pyarrow.compute as pc

from mediamill.pipeline.fetching.media_uris import LONG_URI, shortened
from mediamill.schemas import columns as c
from mediamill.schemas.manifest import ManifestSchema
from mediamill.schemas.media_column import list_offsets


def short_uris(table: pa.Table, manifest: ManifestSchema) -> dict[str, pa.ChunkedArray]:
    """Returns the column of media with short URIs, by its name; nothing if all are short."""
    column = table[manifest.form].combine_chunks()
    if manifest.form == c.URI:
        short = _short(column)
        return {} if short is None else {c.URI: pa.chunked_array([short])}
    media = pc.list_flatten(column)
    short = _short(pc.struct_field(media, c.MEDIA_URI))
    if short is None:
        return {}
    parts = [
        short if field.name == c.MEDIA_URI else pc.struct_field(media, field.name)
        for field in media.type
    ]
    structs = pa.StructArray.from_arrays(parts, fields=list(media.type), mask=media.is_null())
    lists = pa.ListArray.from_arrays(list_offsets(column), structs, type=column.type)
    return {c.MEDIA: pa.chunked_array([lists])}


def _short(uris: pa.Array) -> pa.Array | None:
    """Looks at long URIs only: the others may be no valid text."""
    long = pc.fill_null(pc.greater(pc.binary_length(uris), LONG_URI), False)
    if not pc.any(long).as_py():
        return None
    short: list[str | None] = []
    for uri in uris.filter(long):
        try:
            short.append(shortened(uri.as_py()))
        except UnicodeDecodeError:
            short.append(None)
    return pc.replace_with_mask(uris, long, pa.array(short, uris.type))

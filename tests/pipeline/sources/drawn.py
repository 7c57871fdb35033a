"""Draws sources for the tests: small archives, tables and folders, and reads their manifests."""

import io
import tarfile
import zipfile

import pyarrow.parquet as pq

from mediamill.pipeline.fetching.fetcher import fetch
from mediamill.pipeline.sources.build import build_manifest
from mediamill.pipeline.sources.detect import SourceRules
from mediamill.pipeline.sources.media_names import NameRules
from mediamill.pipeline.sources.table_columns import ColumnRules
from mediamill.pipeline.sources.tables import TableRules
from mediamill.pipeline.storage import storage
from tests.pipeline.fetching.rules import fetch_rules


def rules(kind=None, uri=None, id_column=None, encoding=None, base=None, **names):
    return SourceRules(
        kind, NameRules(**names), TableRules(ColumnRules(uri, id_column), encoding, base)
    )


def build(source, output, suffix=".parquet", **options):
    return build_manifest(str(source), storage.resolve(str(output)), rules(**options), suffix)


def rows(output, suffix=".parquet"):
    """All rows of a manifest, file by file."""
    place = storage.resolve(str(output))
    found = []
    for name in storage.list_files(place):
        if "/" not in name and name.endswith(suffix):
            with place.fs.open(f"{place.path}/{name}", "rb") as file:
                found += pq.read_table(file).to_pylist()
    return found


def made(source, output, **options):
    """The rows of a new manifest, and what was left out, by reason."""
    summary = build(source, output, **options)
    reasons = {reason: count for reason, (count, _) in summary.left_out.reasons.items()}
    found = rows(output)
    assert summary.rows == len(found) == len({row["id"] for row in found})
    return found, reasons


def read(uri, folder):
    return fetch(uri, fetch_rules(10**8, 10.0, str(folder), roots=(str(folder),)))


def tar_bytes(members, form=tarfile.PAX_FORMAT, **options):
    """members: (name, bytes), or TarInfo without content."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=form, **options) as tar:
        for member in members:
            if isinstance(member, tarfile.TarInfo):
                tar.addfile(member)
                continue
            name, data = member
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return buffer.getvalue()


def zip_bytes(members, method=zipfile.ZIP_STORED):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", method) as archive:
        for name, data in members:
            archive.writestr(name, data)
    return buffer.getvalue()

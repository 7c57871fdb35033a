"""Lists the Parquet files of a manifest, and says which files it left out and why."""

from collections import defaultdict
from collections.abc import Mapping
from typing import Any

from mediamill.pipeline.storage import file_version, storage
from mediamill.pipeline.storage.storage import Place
from mediamill.schemas.errors import JobError

_SUFFIXES = (".parquet", ".parq", ".pq")
_HIDING = (".", "_")
_SHOWN = 3  # files that a note names
_OWN = "_sources/"  # what pipeline/sources keeps in a manifest that it makes; not worth a note

# Why a file is left out.
_HIDDEN = "hidden by a name that begins with . or _"
_OTHER = "no Parquet file by its name"
_EMPTY = "no bytes"


def list_files(root: Place) -> tuple[Place, dict[str, str], tuple[str, ...]]:
    """Returns the folder that names are relative to, the versions of all files by name, and notes.

    A note says which files were left out. Folders like `_x=1` are partitions, and not hidden.
    Raises JobError if there is no Parquet file.
    """
    shown = storage.redact(root.url)
    try:
        try:
            info = root.fs.info(root.path)
        except (FileNotFoundError, NotADirectoryError):
            info = {"type": None}
        except PermissionError:  # an object store may allow only what is below the folder
            if not root.fs.isdir(root.path):
                raise
            info = {"type": "directory"}
        if info["type"] == "file":
            folder, name = storage.split(root)
            return folder, _versions(folder, {name: info}), ()
        if info["type"] == "directory":
            base, infos = root, storage.find(root)
        elif any(sign in root.path for sign in "*?["):
            base, infos = _glob(root)
        else:
            raise JobError(f"{shown}: found no such file or folder, expected the manifest")
        found, left_out = _sorted_out(
            {storage.relative(path, base): info for path, info in infos.items()}
        )
        if not found:
            reasons = "; ".join(f"{len(names)} with {why}" for why, names in left_out.items())
            raise JobError(
                f"{shown}: found {sum(map(len, left_out.values()))} files and none of them ends in "
                f".parquet and can be read{f' ({reasons})' if reasons else ''}, expected Parquet "
                "files"
            )
        notes = tuple(_note(shown, why, names) for why, names in left_out.items())
        return base, _versions(base, found), notes
    except OSError as error:
        reason = storage.redact_text(str(error))
        raise JobError(f"{shown}: the manifest cannot be read: {reason}") from error


def _sorted_out(
    infos: Mapping[str, Mapping[str, Any]],
) -> tuple[dict[str, Mapping[str, Any]], dict[str, list[str]]]:
    """Returns the files of the manifest, and the names of the others by reason."""
    found: dict[str, Mapping[str, Any]] = {}
    left_out: defaultdict[str, list[str]] = defaultdict(list)
    for name, info in sorted(infos.items()):
        if reason := _why_not(name, info):
            if not name.startswith(_OWN):
                left_out[reason].append(name)
        elif info["type"] != "directory":
            found[name] = info
    return found, left_out


def _why_not(name: str, info: Mapping[str, Any]) -> str | None:
    *folders, file = name.split("/")
    if file.startswith(_HIDING) or any(
        part.startswith(_HIDING) and "=" not in part for part in folders
    ):
        return _HIDDEN
    if info["type"] != "directory" and not file.lower().endswith(_SUFFIXES):
        return _OTHER
    # Also the object of no bytes that some tools put for a folder, such as `x.parquet/`.
    return _EMPTY if info.get("size") == 0 and file.lower().endswith(_SUFFIXES) else None


def _note(shown: str, why: str, names: list[str]) -> str:
    first = ", ".join(repr(name)[1:-1] for name in names[:_SHOWN])
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    files = "1 file" if len(names) == 1 else f"{len(names)} files"
    return f"{shown}: left out {files} ({why}): {first[:400]}{more}"


def _versions(base: Place, infos: Mapping[str, Mapping[str, Any]]) -> dict[str, str]:
    return {name: file_version.file_version(base / name, info) for name, info in infos.items()}


def _glob(root: Place) -> tuple[Place, dict[str, Any]]:
    parts = root.path.split("/")
    fixed = next(i for i, part in enumerate(parts) if any(sign in part for sign in "*?["))
    folder = "/".join(parts[:fixed])
    cut = root.url.split("/")
    base = Place(root.fs, folder, "/".join(cut[: len(cut) - (len(parts) - fixed)]))
    return base, storage.glob(root)

"""Finds archives that have changed since a manifest of their members was made."""

from concurrent.futures import ThreadPoolExecutor

from mediamill.pipeline.sources.manifest_parts import HIDDEN, PartStore, same_version
from mediamill.pipeline.storage import file_version, storage
from mediamill.schemas.errors import JobError

_LOOKUPS = 32  # at once


def check_archives(manifest: str) -> None:
    """Raises JobError if the manifest lists members of an archive that is another one now.

    manifest: path or URL of any manifest; only folders that `build_manifest` has written tell what
    their archives were. An archive that is gone, or that cannot be looked up, is left to its rows.
    """
    output = storage.resolve(manifest)
    try:
        if not storage.exists(output / HIDDEN):
            return
    except OSError:
        return  # whoever opens the manifest tells why it cannot be read
    state = PartStore(output).load()
    if state.archives is None:
        return
    root = storage.resolve(state.archives)

    def changed(name: str) -> bool:
        try:
            now = storage.with_retries(root, lambda _: file_version.file_version(root / name))
        except OSError:
            return False
        before = state.done[name].version
        return bool(before and now) and not same_version(before, now)

    with ThreadPoolExecutor(_LOOKUPS, "lookup") as executor:
        names = list(state.done)
        differ = list(executor.map(changed, names))
    others = [name for name, differs in zip(names, differ, strict=True) if differs]
    if others:
        more = f" and {len(others) - 1:,} more" if len(others) > 1 else ""
        raise JobError(
            f"{storage.redact(output.url)}: the archive {storage.redact((root / others[0]).url)}"
            f"{more} has changed since its members were listed, so they lie elsewhere: make a new "
            f"manifest of {storage.redact(state.source)} in a new folder"
        )

"""Caches what reading a whole file gives (its hash and packet scan) for the last few files.

The windows of a long video are separate rows: without the cache each would read the whole file.
"""

from dataclasses import dataclass, replace

from mediamill.model.media.containers import FileFormat
from mediamill.model.media.limits import MediaLimits
from mediamill.model.media.media_file import FileIdentity, MediaFile
from mediamill.model.media.video_file import PacketScan, scan_packets

_MAX_FILES = 2
_MAX_BYTES = 48 * 1024**2  # of packet scans; ten hours of keyframes alone take 29 MB


@dataclass(frozen=True)
class _Entry:
    identity: FileIdentity
    sha256: str | None = None
    scan: PacketScan | None = None
    limits: MediaLimits | None = None  # for which `scan` was made


class ProbeCache:
    """A cache that threads may share: a lost update only costs a second reading."""

    def __init__(self) -> None:
        self._entries: tuple[_Entry, ...] = ()

    def sha256(self, media_file: MediaFile) -> str:
        """As `MediaFile.sha256`."""
        entry = self._entry(media_file)
        if entry and entry.sha256:
            return entry.sha256
        sha256 = media_file.sha256()
        if entry:
            self._store(replace(entry, sha256=sha256))
        return sha256

    def scan_packets(
        self, media_file: MediaFile, file_format: FileFormat, limits: MediaLimits
    ) -> PacketScan:
        """As `video_file.scan_packets`."""
        entry = self._entry(media_file)
        if entry and entry.scan and entry.limits == limits:
            return entry.scan
        scan = scan_packets(media_file, file_format, limits)
        if entry:
            self._store(replace(entry, scan=scan, limits=limits))
        return scan

    def _entry(self, media_file: MediaFile) -> _Entry | None:
        """Returns the entry of a file, a new one if it has none; None for bytes in memory."""
        if (identity := media_file.identity) is None:
            return None
        entries = (entry for entry in self._entries if entry.identity == identity)
        return next(entries, _Entry(identity))

    def _store(self, newest: _Entry) -> None:
        """Puts an entry last; drops the first ones beyond the limits on files and bytes."""
        older = [entry for entry in self._entries if entry.identity != newest.identity]
        size = newest.scan.nbytes if newest.scan else 0
        if size > _MAX_BYTES:
            newest, size = replace(newest, scan=None), 0
        entries = [newest]
        for entry in reversed(older[-_MAX_FILES + 1 :]):
            size += entry.scan.nbytes if entry.scan else 0
            if size <= _MAX_BYTES:
                entries.insert(0, entry)
        self._entries = tuple(entries)

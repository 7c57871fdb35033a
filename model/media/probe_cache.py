"""Turns files into what a pass over all their bytes tells, and knows that of the last few files.

The windows of a long video come one after the other: each would pay for the whole file.
"""

from dataclasses import dataclass, replace

from mediamill.model.media.containers import Format
from mediamill.model.media.content import Identity, MediaFile
from mediamill.model.media.limits import MediaLimits
from mediamill.model.media.video_file import Survey, survey

_MOST_FILES = 2
_MOST_BYTES = 48 * 1024**2  # of what their packets tell; ten hours of key frames alone take 29 MB


@dataclass(frozen=True)
class _Known:
    identity: Identity
    sha256: str | None = None
    survey: Survey | None = None
    limits: MediaLimits | None = None  # that the survey was held against


class ProbeCache:
    """Only of files that are sure to be the same again; bytes in memory are looked at each time.

    Threads may share it: what one of them has found another may have to find once more.
    """

    def __init__(self) -> None:
        self._kept: tuple[_Known, ...] = ()

    def sha256(self, content: MediaFile) -> str:
        """As `MediaFile.sha256`."""
        known = self._of(content)
        if known is None or known.sha256 is None:
            found = content.sha256()
            if known is not None:
                self._keep(replace(known, sha256=found))
            return found
        return known.sha256

    def survey(self, content: MediaFile, found: Format, limits: MediaLimits) -> Survey:
        """As `video_file.survey`."""
        known = self._of(content)
        if known is None or known.survey is None or known.limits != limits:
            told = survey(content, found, limits)
            if known is not None:
                self._keep(replace(known, survey=told, limits=limits))
            return told
        return known.survey

    def _of(self, content: MediaFile) -> _Known | None:
        if content.identity is None:
            return None
        for one in self._kept:
            if one.identity == content.identity:
                return one
        return _Known(content.identity)

    def _keep(self, known: _Known) -> None:
        others = [one for one in self._kept if one.identity != known.identity]
        size = known.survey.nbytes if known.survey else 0
        if size > _MOST_BYTES:
            known, size = replace(known, survey=None), 0
        kept = [known]
        for one in reversed(others[-_MOST_FILES + 1 :]):
            size += one.survey.nbytes if one.survey else 0
            if size <= _MOST_BYTES:
                kept.insert(0, one)
        self._kept = tuple(kept)

"""Chooses files by their names: pictures and videos by suffix, without hidden and temporary ones.

What a file really is shows in its bytes, when a job reads it.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from fnmatch import translate

from fsspec.utils import glob_translate

from mediamill.pipeline.sources import braces

PICTURES = frozenset(
    (
        *("jpg", "jpeg", "jpe", "jfif", "png", "apng", "gif", "webp", "bmp", "dib", "tif", "tiff"),
        *("avif", "heic", "heif"),
    )
)
VIDEOS = frozenset(
    (
        *("mp4", "m4v", "mov", "qt", "mkv", "webm", "avi", "flv", "f4v", "wmv", "asf", "mpg"),
        *("mpeg", "m2v", "mpe", "vob", "ts", "mts", "m2ts", "ogv", "3gp", "3g2", "mxf"),
    )
)
MEDIA = PICTURES | VIDEOS
_TEMPORARY = ("tmp", "temp", "part", "partial", "crdownload", "download", "swp", "bak")
_HIDDEN_NAMES = frozenset(
    ("__macosx", "@eadir", "thumbs.db", "desktop.ini", "$recycle.bin", "lost+found")
)
HIDDEN = "hidden or temporary"
OTHER = "neither a picture nor a video by its suffix"
EXCLUDED = "excluded by a pattern"


def suffix(name: str) -> str:
    """The suffix in lower case, without its dot; empty if there is none."""
    return name.rpartition("/")[2].rpartition(".")[2].lower() if "." in name else ""


def is_media(name: str) -> bool:
    """Whether the name is one of a picture or a video."""
    return suffix(name) in MEDIA


def is_hidden(name: str) -> bool:
    """Whether a file or folder of that name, without its folder, is hidden or temporary."""
    return (
        name.startswith((".", "~$"))
        or name.endswith("~")
        or name.lower() in _HIDDEN_NAMES
        or suffix(name) in _TEMPORARY
    )


def is_hidden_path(path: str) -> bool:
    """Whether a part of the path is hidden."""
    return any(is_hidden(name) for name in path.split("/") if name not in (".", ".."))


@dataclass(frozen=True)
class NameRules:
    """Which files of a folder are listed.

    glob: a pattern that relative paths match, with `**` and braces; others are not looked at.
    include: patterns, one of which a path must match, whatever its suffix; none: by the suffix.
    exclude: patterns that leave files out.
    """

    glob: str | None = None
    include: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()

    def compile(self) -> "NameFilter":
        """Returns the filter of these rules."""
        return NameFilter(
            _any_glob(braces.expand(self.glob)) if self.glob else None,
            _any_of(self.include),
            _any_of(self.exclude),
        )


@dataclass(frozen=True)
class NameFilter:
    """Compiled NameRules."""

    glob: re.Pattern[str] | None
    include: re.Pattern[str] | None
    exclude: re.Pattern[str] | None

    def reason(self, path: str) -> str | None:
        """Why a file is left out; None if it is not. Its folders are not hidden.

        An empty reason: the file is not meant, and need not be told.
        """
        if self.glob is not None and not self.glob.match(path):
            return ""
        name = path.rpartition("/")[2]
        if is_hidden(name):
            return HIDDEN
        if self.exclude is not None and self.exclude.match(path):
            return EXCLUDED
        if self.include is not None:
            return None if self.include.match(path) else EXCLUDED
        return None if is_media(name) else OTHER


def _any_glob(patterns: Iterable[str]) -> re.Pattern[str]:
    return re.compile("|".join(map(glob_translate, patterns)), re.DOTALL)


def _any_of(patterns: Iterable[str]) -> re.Pattern[str] | None:
    """A pattern without a slash also matches the name alone."""
    parts = [
        translate(one) if "/" in one else rf"(?s:(?:.*/)?{translate(one)})" for one in patterns
    ]
    return re.compile("|".join(parts)) if parts else None

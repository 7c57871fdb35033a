"""Reads the files of a checkpoint folder, which is a path or any fsspec URL.

Credentials and endpoints come from where fsspec's file systems look for them (for s3:// the
configuration files and environment variables of AWS).
"""

import json
import re
from pathlib import Path
from typing import Any

import fsspec
from fsspec import AbstractFileSystem
from fsspec.implementations.local import LocalFileSystem

from mediamill.model.errors import ModelError
from mediamill.model.urls import decoded_path, error_text, is_url, redact

_LARGEST_TEXT = 256 * 1024 * 1024  # bytes of a file that is read whole; a tokenizer has about 10 MB


class Folder:
    """A folder in hub format. `str()` of it is its name for messages, without secrets.

    fs, root: the file system and the folder's path on it.
    """

    def __init__(self, where: str, fs: AbstractFileSystem, root: str) -> None:
        self._where = redact(where)
        self.fs = fs
        self.root = root

    @classmethod
    def of(cls, where: "str | Path | Folder") -> "Folder":
        """Returns the folder at a path, or at a URL such as s3://bucket/model or hf://owner/name.

        A URL is not contacted yet. Raises ModelError for a path that is not a folder, and for a URL
        whose scheme is unknown or whose driver is not installed.
        """
        if isinstance(where, Folder):
            return where
        text = str(where)
        if not is_url(text) or isinstance(where, Path):
            return cls._on_disk(text, Path(text).expanduser())
        if text.lower().startswith("file://"):
            return cls._on_disk(text, decoded_path(text))
        try:
            # A cached listing would hide files that are written later.
            fs, root = fsspec.core.url_to_fs(text, use_listings_cache=False)
        except Exception as error:  # each driver has its own
            raise ModelError(f"{redact(text)} cannot be opened: {error_text(error)}") from error
        return cls(text, fs, root.rstrip("/"))

    @classmethod
    def _on_disk(cls, where: str, path: Path) -> "Folder":
        try:
            if path.is_dir():
                return cls(where, LocalFileSystem(), str(path.absolute()))
            kind = "a file" if path.exists() else "no such folder"
        except (OSError, ValueError) as error:
            raise ModelError(f"{where!r} cannot be opened: {error}") from None
        is_hub_id = kind != "a file" and re.fullmatch(r"[\w.-]+/[\w.-]+", where)
        hint = f" (a model of the hub is hf://{where})" if is_hub_id else ""
        raise ModelError(f"{where}: found {kind}, expected a checkpoint folder{hint}")

    def __str__(self) -> str:
        return self._where

    @property
    def is_local(self) -> bool:
        """Whether files can be opened by their path."""
        return isinstance(self.fs, LocalFileSystem)

    def moved_to(self, root: Path) -> "Folder":
        """Returns the local folder `root`, which has the name of this folder in messages."""
        return Folder(self._where, LocalFileSystem(), str(root))

    def path(self, name: str) -> str:
        """The path or URL of the file `name` for messages."""
        return f"{self._where.rstrip('/')}/{name}"

    def full(self, name: str) -> str:
        """The path of the file `name` on the folder's file system.

        Raises ModelError for a name that is a path, since names also come from files of the folder.
        """
        if not name or name in (".", "..") or set(name) & set("/\\\0"):
            raise ModelError(f"{self}: {name!r} is no name of a file of the folder")
        return f"{self.root}/{name}"

    def size(self, name: str) -> int | None:
        """Bytes of the file `name`; None if there is no such file. Raises ModelError."""
        full = self.full(name)
        try:
            info = self.fs.info(full)
        except (FileNotFoundError, NotADirectoryError):
            return None
        except Exception as error:
            raise ModelError(f"{self.path(name)} cannot be read: {error_text(error)}") from error
        if info["type"] != "file":
            return None
        if info.get("size") is None:
            raise ModelError(f"{self.path(name)}: the server does not say how large the file is")
        return int(info["size"])

    def exists(self, name: str) -> bool:
        """Whether the folder has a file `name`. Raises ModelError when the storage fails."""
        return self.size(name) is not None

    def read_range(self, name: str, start: int, stop: int) -> bytes:
        """Returns bytes `start` up to `stop` of the file `name`.

        Raises ModelError when the file cannot be read or is shorter.
        """
        if start == stop:
            return b""
        try:
            content = bytes(self.fs.cat_file(self.full(name), start=start, end=stop))
        except ModelError:
            raise
        except Exception as error:
            raise ModelError(f"{self.path(name)} cannot be read: {error_text(error)}") from error
        if len(content) != stop - start:
            raise ModelError(
                f"{self.path(name)}: got {len(content)} bytes, expected the {stop - start} from "
                f"byte {start} on"
            )
        return content

    def read(self, name: str) -> bytes | None:
        """The content of a file; None if there is no such file.

        Raises ModelError when it cannot be read, and for more than 256 MiB.
        """
        size = self.size(name)
        if size is None:
            return None
        if size > _LARGEST_TEXT:
            raise ModelError(
                f"{self.path(name)} has {size} bytes, expected at most {_LARGEST_TEXT}"
            )
        return self.read_range(name, 0, size)

    def read_json(self, name: str) -> dict[str, Any] | None:
        """The JSON object in a file; None if there is no such file.

        Raises ModelError when the file holds anything else.
        """
        content = self.read(name)
        return None if content is None else parse_json(content, self.path(name))


def parse_json(content: bytes, where: str) -> dict[str, Any]:
    """A JSON object from bytes; `where` names them in errors. Raises ModelError."""
    try:
        value = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise ModelError(f"{where} cannot be read as JSON: {error}") from None
    if not isinstance(value, dict):
        raise ModelError(f"{where}: found a JSON {type(value).__name__}, expected an object")
    return value

"""Lists the URL schemes that rows may use, and the fields that identify a file's version.

To add a storage: add its scheme to `READERS`, and the names under which its fsspec file system
reports a version to `VERSION_FIELDS`. Error codes of its library belong to retries.py.
"""

from typing import Literal

Reader = Literal["file", "http", "s3", "fsspec", "data"]

# Scheme -> how pipeline/fetching reads it. "fsspec" needs only `info` and `cat_file`.
READERS: dict[str, Reader] = {
    "file": "file",
    "s3": "s3",
    "s3a": "s3",
    "s3n": "s3",
    "gs": "fsspec",
    "gcs": "fsspec",
    "az": "fsspec",
    "abfs": "fsspec",
    "abfss": "fsspec",
    "hf": "fsspec",
    "http": "http",
    "https": "http",
    "data": "data",  # the medium is in the URI itself
}
SCHEMES = tuple(READERS)

# Keys of fsspec's `info`: names of a content (ETag, generation, hash), and times of its last write.
VERSION_FIELDS = ("ETag", "etag", "generation", "md5Hash", "content_md5", "blob_id")
TIME_FIELDS = ("LastModified", "last_modified", "updated", "mtime", "modified")

"""A job of many rows over few media, in a bucket, and its twin, a small job with the same answers.

Every row is one of some pairs of medium and prompt. The twin has one row for each pair: it runs
without kills, and each row of the large job must equal its row of the twin.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import yaml

from mediamill.model.tiny import CAPTION_PROMPT, CHECKPOINT
from tests.media import jpeg, numbered_frames, video

BUCKET = "soak"
PICTURES, CLIPS, KINDS = 12, 3, 5
CLIP_EVERY, BROKEN_EVERY = 25, 100
PROMPTS = (CAPTION_PROMPT, "What is the largest thing?")
BROKEN = {
    "missing.jpg": "fetch_not_found",
    "truncated.jpg": "decode_corrupt",
    "empty.jpg": "media_empty",
    "text.jpg": "decode_unsupported",
}
MANIFEST_FILES, ROW_GROUP = 4, 512
FILES, MIN_FILE_ROWS = 150, 16  # fewer files if they had fewer rows


def media() -> dict[str, bytes]:
    """The contents by name, without `missing.jpg`."""
    contents = {f"picture-{i}.jpg": jpeg(56, 84, seed=i) for i in range(PICTURES)}
    contents |= {
        f"clip-{i}.mp4": video(numbered_frames(6, 56, 56, seed=i), options={"preset": "fast"})
        for i in range(CLIPS)
    }
    contents["truncated.jpg"] = contents["picture-0.jpg"][:500]
    contents["empty.jpg"] = b""
    contents["text.jpg"] = b"no picture at all"
    return contents


def medium_of(number: int) -> str:
    """The name of row `number`'s medium: 1 % broken, 4 % clips, the others pictures."""
    turn = number // BROKEN_EVERY
    if number % BROKEN_EVERY == 37:
        return list(BROKEN)[turn % len(BROKEN)]
    if number % CLIP_EVERY == 11:
        return f"clip-{number // CLIP_EVERY % CLIPS}.mp4"
    return f"picture-{number % PICTURES}.jpg"


def rows_of(count: int) -> list[dict[str, Any]]:
    return [
        {
            "id": f"row-{number:07}",
            "uri": f"s3://{BUCKET}/media/{medium_of(number)}",
            "prompt": PROMPTS[number // 7 % len(PROMPTS)],
            "kind": f"k{number % KINDS}",
        }
        for number in range(count)
    ]


def twins_of(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """One row for each pair of medium and prompt."""
    pairs = sorted({(row["uri"], row["prompt"]) for row in rows})
    return [
        {"id": f"twin-{number}", "uri": uri, "prompt": prompt, "kind": "k0"}
        for number, (uri, prompt) in enumerate(pairs)
    ]


@dataclass(frozen=True)
class World:
    """A bucket with media and two manifests, and job files for them.

    endpoint: of the server without faults, to check the output.
    """

    folder: Path
    endpoint: str
    rows: list[dict[str, Any]] = field(repr=False)

    @property
    def job(self) -> Path:
        return self.folder / "job.yaml"

    @property
    def twin(self) -> Path:
        return self.folder / "twin.yaml"

    def client(self) -> Any:
        import boto3

        keys = {"aws_access_key_id": "testing", "aws_secret_access_key": "testing"}
        return boto3.client("s3", endpoint_url=self.endpoint, region_name="us-east-1", **keys)

    def names_below(self, prefix: str) -> list[str]:
        pages = (
            self.client().get_paginator("list_objects_v2").paginate(Bucket=BUCKET, Prefix=prefix)
        )
        return [entry["Key"] for page in pages for entry in page.get("Contents", [])]

    def output(self, name: str) -> pa.Table:
        """The rows of the output `name` ("out" or "twin"), from all visible files."""
        import io

        client, tables = self.client(), []
        for key in self.names_below(f"{name}/"):
            if not any(part[0] in "._" for part in key.split("/")):
                body = client.get_object(Bucket=BUCKET, Key=key)["Body"].read()
                tables.append(pq.read_table(io.BytesIO(body), partitioning=None))
        return pa.concat_tables(tables)


def make(folder: Path, endpoint: str, count: int, resources: Mapping[str, Any]) -> World:
    """Creates a bucket with the media and the manifests, and the job files."""
    world = World(folder, endpoint, rows_of(count))
    client = world.client()
    client.create_bucket(Bucket=BUCKET)
    for name, data in media().items():
        client.put_object(Bucket=BUCKET, Key=f"media/{name}", Body=data)
    size = -(-count // MANIFEST_FILES)
    for number in range(MANIFEST_FILES):
        part = world.rows[number * size : (number + 1) * size]
        _put_table(client, f"manifest/{number}.parquet", part)
    _put_table(client, "twins/0.parquet", twins_of(world.rows))
    for path, manifest, output in ((world.job, "manifest", "out"), (world.twin, "twins", "twin")):
        settings = {
            "job": "caption",
            "manifest": f"s3://{BUCKET}/{manifest}/",
            "output": f"s3://{BUCKET}/{output}",
            "model": str(CHECKPOINT),
            "partition_by": ["kind"],
            "rows_per_file": max(MIN_FILE_ROWS, count // FILES),
            "generation": {"max_new_tokens": 8},
            "resources": {"wait_s": 60.0, **resources},
        }
        path.write_text(yaml.safe_dump(settings))
    return world


def _put_table(client: Any, key: str, rows: Sequence[Mapping[str, Any]]) -> None:
    buffer = pa.BufferOutputStream()
    pq.write_table(pa.Table.from_pylist(list(rows)), buffer, row_group_size=ROW_GROUP)
    client.put_object(Bucket=BUCKET, Key=key, Body=buffer.getvalue().to_pybytes())

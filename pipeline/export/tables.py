"""Lance and Iceberg tables: each shard is one append, which the table records as a version.

A killed export may have appended a shard that its state does not have: the table then has more rows
than the state says, and goes back to the version that has as many.
"""

from collections import Counter
from pathlib import Path
from typing import Any

import pyarrow as pa

from mediamill.pipeline.export.formats import ExportContext, MakeShard
from mediamill.pipeline.export.parquet import ParquetFile
from mediamill.schemas.errors import JobError

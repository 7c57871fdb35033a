"""Reads how long the answers of an output's finished rows are."""

from collections.abc import Sequence

import numpy as np
import pyarrow.parquet as pq

from mediamill.pipeline.ledger.journal import readable_files
from mediamill.pipeline.storage.storage import Place
from mediamill.schemas import columns as c

_FILES, _ROWS = 16, 20_000  # that are read, at most
_MIN_ROWS = 50


def answer_lengths(output: Place, rng: np.random.Generator) -> tuple[float, float, int] | None:
    """Returns the mean of the output tokens of finished rows, its standard deviation, and the
    number of rows that were read; None if there are too few to say.
    """
    files = readable_files(output)
    names: Sequence[str] = sorted(files)
    chosen = rng.permutation(len(names))[:_FILES].tolist()
    lengths: list[float] = []
    for number in chosen:
        place = files[names[number]]
        with place.fs.open(place.path, "rb") as opened, pq.ParquetFile(opened) as parquet:
            if c.OUTPUT_TOKENS not in parquet.schema_arrow.names:
                return None
            for batch in parquet.iter_batches(4096, columns=[c.OUTPUT_TOKENS]):
                lengths += [float(tokens or 0) for tokens in batch[0].to_pylist()]
                if len(lengths) >= _ROWS:
                    break
        if len(lengths) >= _ROWS:
            break
    if len(lengths) < _MIN_ROWS:
        return None
    values = np.array(lengths)
    return float(values.mean()), float(values.std(ddof=1)) / len(values) ** 0.5, len(values)

"""Finds the videos whose failed windows a retry has answered: their summaries are made again."""

import pyarrow.compute as pc
import pyarrow.parquet as pq

from mediamill.pipeline.annotate.window_columns import FAILED_WINDOWS, VIDEO_ID
from mediamill.pipeline.ledger.publish import visible_files
from mediamill.pipeline.storage.storage import Place
from mediamill.schemas import columns as c

_MAX_NAMED = 10_000  # videos in a condition
_BATCH_ROWS = 8192


def videos_to_redo(windows: Place, run: str) -> str | None:
    """Returns a condition on the rows of videos, or None if the run has answered no failed window.

    windows: the output of the windows. Of very many videos, all are meant that had failed windows.
    """
    videos: set[object] = set()
    for name in visible_files(windows):
        place = windows / name
        with place.fs.open(place.path, "rb") as opened, pq.ParquetFile(opened) as parquet:
            columns = [VIDEO_ID, c.RUN_ID, c.ATTEMPT, c.STATUS]
            if not {*columns} <= {*parquet.schema_arrow.names}:
                continue
            for batch in parquet.iter_batches(_BATCH_ROWS, columns=columns):
                redone = batch.filter(
                    (pc.field(c.RUN_ID) == run)
                    & (pc.field(c.STATUS) == c.STATUS_OK)
                    & (pc.field(c.ATTEMPT) > 1)
                )
                videos.update(redone[VIDEO_ID].to_pylist())
        if len(videos) > _MAX_NAMED:
            return f"{FAILED_WINDOWS} > 0"
    if not videos:
        return None
    return f"{FAILED_WINDOWS} > 0 and {c.ID} in {sorted(videos, key=str)!r}"

"""The default batch size of an engine. Importing this does not import torch."""

# A decode step reads all weights from memory once for the whole batch: on a CPU throughput stops
# growing at about 64 sequences, on a GPU at several hundred.
ROWS_ON_CPU, ROWS_ON_GPU = 64, 256


def default_batch_rows(on_gpu: bool) -> int:
    """Returns how many sequences run at once by default, if the cache has space for them."""
    return ROWS_ON_GPU if on_gpu else ROWS_ON_CPU

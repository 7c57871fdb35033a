"""How many rows an engine runs at once when nobody says. Needs no torch, so that plans can ask."""

# A decode step reads all weights from memory once, however many rows share them: on a CPU products
# stop getting faster at about 64 rows, on a GPU at several hundred.
ROWS_ON_CPU, ROWS_ON_GPU = 64, 256


def default_batch_rows(on_gpu: bool) -> int:
    """Rows at once, on a GPU or on a CPU. What the cache has no room for waits."""
    return ROWS_ON_GPU if on_gpu else ROWS_ON_CPU

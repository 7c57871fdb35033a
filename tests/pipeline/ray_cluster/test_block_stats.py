"""Ray Data's statistics of blocks grow with the blocks, unless they are cleared."""

import ray

from mediamill.pipeline.ray_cluster.block_stats import ClearBlockStats
from mediamill.pipeline.ray_cluster.cluster import data_context

BLOCKS = 24


class MeasuringCallback(ClearBlockStats):
    """Records the largest number of statistics that any operator had after a step."""

    def __init__(self, clears):
        super().__init__()
        self._clears = clears
        self.largest = 0

    def __call__(self):
        return self

    def __deepcopy__(self, _memo):
        return self

    def on_execution_step(self, executor):
        if self._clears:
            super().on_execution_step(executor)
        operators = [operator for operator in executor._topology if operator.input_dependencies]
        sizes = [len(operator._output_blocks_stats) for operator in operators]
        self.largest = max(self.largest, *sizes)


def largest_stats(clears):
    callback = MeasuringCallback(clears)
    context = data_context(2**25, callback)
    context.custom_execution_callback_classes = [callback]
    with ray.data.DataContext.current(context):
        rows = ray.data.range(BLOCKS, override_num_blocks=BLOCKS).map_batches(lambda batch: batch)
        assert rows.materialize().count() == BLOCKS
    return callback.largest


def test_statistics_do_not_grow_with_the_blocks(ray_cluster):
    assert largest_stats(clears=False) >= BLOCKS  # else there is nothing to clear any more
    assert largest_stats(clears=True) == 0
    classes = data_context(2**25, MeasuringCallback(True)).custom_execution_callback_classes
    assert ClearBlockStats in classes

"""Ray Data's statistics of blocks grow with the blocks, unless they are cleared."""

import ray

from mediamill.pipeline.ray_cluster.cluster import data_context

BLOCKS = 24


class MeasuringCallback:
    """Records the largest number of statistics that any operator had after a step."""

    largest = 0

    def before_execution_starts(self, _executor):
        pass

    def on_execution_step(self, executor):
        operators = [operator for operator in executor._topology if operator.input_dependencies]
        sizes = [len(operator._output_blocks_stats) for operator in operators]
        self.largest = max(self.largest, *sizes)

    def after_execution_succeeds(self, _executor):
        pass


def largest_stats(clears):
    callback, context = MeasuringCallback(), data_context(2**25)
    clearing = context.custom_execution_callback_classes if clears else []
    context.custom_execution_callback_classes = [*clearing, lambda: callback]
    with ray.data.DataContext.current(context):
        rows = ray.data.range(BLOCKS, override_num_blocks=BLOCKS).map_batches(lambda batch: batch)
        assert rows.materialize().count() == BLOCKS
    return callback.largest


def test_statistics_do_not_grow_with_the_blocks(ray_cluster):
    assert largest_stats(clears=False) >= BLOCKS  # else there is nothing to clear any more
    assert largest_stats(clears=True) == 0

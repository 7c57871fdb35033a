"""Ray Data's statistics of blocks: they grow with the blocks, unless they are forgotten."""

import ray

from mediamill.pipeline.ray_cluster.block_stats import ClearBlockStats
from mediamill.pipeline.ray_cluster.cluster import data_context

BLOCKS = 24


class Watch(ClearBlockStats):
    """Notes the most statistics that any operator had after a step."""

    def __init__(self, forgets):
        super().__init__()
        self._forgets = forgets
        self.most = 0

    def __call__(self):
        return self

    def __deepcopy__(self, _memo):
        return self

    def on_execution_step(self, executor):
        if self._forgets:
            super().on_execution_step(executor)
        found = [
            len(one._output_blocks_stats) for one in executor._topology if one.input_dependencies
        ]
        self.most = max(self.most, *found)


def most_kept(forgets):
    watch = Watch(forgets)
    context = data_context(2**25, watch)
    context.custom_execution_callback_classes = [watch]
    with ray.data.DataContext.current(context):
        rows = ray.data.range(BLOCKS, override_num_blocks=BLOCKS).map_batches(lambda batch: batch)
        assert rows.materialize().count() == BLOCKS
    return watch.most


def test_what_is_kept_of_blocks_does_not_grow_with_them(ray_cluster):
    assert most_kept(forgets=False) >= BLOCKS  # else there is nothing to forget any more
    assert most_kept(forgets=True) == 0
    classes = data_context(2**25, Watch(True)).custom_execution_callback_classes
    assert ClearBlockStats in classes

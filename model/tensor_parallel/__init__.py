"""One network over several processes: tensor parallelism, its shards and its ranks."""

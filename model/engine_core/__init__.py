"""The parts of the engine: scheduler, KV caches, model runner, and attention over the caches."""

"""The running engine's parts: queue, cache, schedule, steps, and attention over the cache."""

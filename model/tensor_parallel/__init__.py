"""Runs one model in several processes of a machine, with tensor parallelism."""

"""Sampling, JSON grammars and stop strings."""

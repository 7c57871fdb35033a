"""Qwen2-VL in plain PyTorch: processor, network and batched engine, usable without Ray.

Programs import the modules of this folder: `chat`, `engine`, `processor`, `requests`, `sampling`
and `weights`. The folders hold their parts. Nothing here depends on Ray, Parquet, rows or jobs.
"""

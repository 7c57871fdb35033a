"""Qwen2-VL in plain PyTorch: media and chat to inputs, the network, and its batched engine.

Usable on its own. It knows nothing of Ray, Parquet, rows or jobs.
"""

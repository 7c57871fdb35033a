"""Qwen2-VL in plain PyTorch: media and chat to inputs, the network, and its batched engine.

Usable on its own. It knows nothing of Ray, Parquet, rows or jobs. What a program imports lies
here (`chat`, `engine`, `processor`, `qwen2_vl`, `config`, `weights`, `requests`, `sampling`); what
that is made of lies in the folders, one for each step on the way from files to text.
"""

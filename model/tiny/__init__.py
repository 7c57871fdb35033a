"""The embedded default model: a tiny Qwen2-VL, its synthetic scenes, and its training.

`CHECKPOINT` is a folder in hub format that any Qwen2-VL tool can load.
"""

from pathlib import Path

CHECKPOINT = Path(__file__).parent / "checkpoint"
CAPTION_PROMPT = "Describe the picture."

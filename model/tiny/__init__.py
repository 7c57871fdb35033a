"""The embedded default: a tiny Qwen2-VL, the drawn world it knows, and how it is trained.

`CHECKPOINT` is a folder in hub format that any Qwen2-VL tool can load.
"""

from pathlib import Path

CHECKPOINT = Path(__file__).parent / "checkpoint"
CAPTION_PROMPT = "Describe the picture."

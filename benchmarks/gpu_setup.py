"""Builds networks of the published shapes with random weights on the device, and a clock for it.

Nothing is downloaded or written.
"""

import statistics
import time
from collections.abc import Callable
from typing import Any

import torch

from mediamill.model.families.initialize import initialize_weights
from mediamill.model.families.qwen2_vl.config import Qwen2VLConfig, config_from_dict
from mediamill.model.families.qwen2_vl.model import Qwen2VL

_IDS = {
    "image_token_id": 0,
    "video_token_id": 1,
    "vision_start_token_id": 2,
    "vision_end_token_id": 3,
}
_PUBLISHED: dict[str, Any] = {
    "model_type": "qwen2_vl",
    "image_token_id": 151655,
    "video_token_id": 151656,
    "vision_start_token_id": 151652,
    "vision_end_token_id": 151653,
    "rms_norm_eps": 1e-6,
    "rope_theta": 1e6,
    "max_position_embeddings": 32768,
    "rope_scaling": {"type": "mrope", "mrope_section": [16, 24, 24]},
}
SHAPES: dict[str, dict[str, Any]] = {
    "2B": _PUBLISHED
    | {
        "hidden_size": 1536,
        "intermediate_size": 8960,
        "num_hidden_layers": 28,
        "num_attention_heads": 12,
        "num_key_value_heads": 2,
        "vocab_size": 151936,
        "tie_word_embeddings": True,
        "vision_config": {"hidden_size": 1536, "depth": 32, "embed_dim": 1280, "num_heads": 16},
    },
    "7B": _PUBLISHED
    | {
        "hidden_size": 3584,
        "intermediate_size": 18944,
        "num_hidden_layers": 28,
        "num_attention_heads": 28,
        "num_key_value_heads": 4,
        "vocab_size": 152064,
        "tie_word_embeddings": False,
        "vision_config": {"hidden_size": 3584, "depth": 32, "embed_dim": 1280, "num_heads": 16},
    },
    # For a dry run: small enough for a processor.
    "miniature": _PUBLISHED
    | _IDS
    | {
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "vocab_size": 500,
        "tie_word_embeddings": True,
        "rope_scaling": {"type": "mrope", "mrope_section": [2, 3, 3]},
        "vision_config": {"hidden_size": 64, "depth": 2, "embed_dim": 64, "num_heads": 4},
    },
}


def built(shape: str, device: torch.device, dtype: torch.dtype) -> Qwen2VL:
    """Returns a network of that shape with random weights, not yet optimized for inference."""
    config: Qwen2VLConfig = config_from_dict(SHAPES[shape], shape)
    with torch.device("meta"):
        model = Qwen2VL(config)
    model = model.to(dtype).to_empty(device=device)
    model.tie()
    for module in (model.visual, model.model):
        module.reset_frequencies(device)
    return initialize_weights(model).eval().requires_grad_(False)


class Clock:
    """Measures the time of work on one device."""

    def __init__(self, device: torch.device, quick: bool) -> None:
        self.device = device
        self._least, self._most = (3, 10) if quick else (7, 60)
        self._budget = 0.1 if quick else 0.5

    def wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    def seconds(self, work: Callable[[], object]) -> float:
        """Returns the median time of `work` after two warm-up runs; on a GPU by the GPU's clock."""
        for _ in range(2):
            work()
        self.wait()
        times: list[float] = []
        began = time.perf_counter()
        while len(times) < self._least or (
            len(times) < self._most and time.perf_counter() - began < self._budget
        ):
            times.append(self._once(work))
        return statistics.median(times)

    def _once(self, work: Callable[[], object]) -> float:
        if self.device.type != "cuda":
            before = time.perf_counter()
            work()
            return time.perf_counter() - before
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        work()
        end.record()
        end.synchronize()
        return start.elapsed_time(end) / 1e3

"""Measures time and peak memory of loading: `python -m benchmarks.load FOLDER`, one JSON line.

FOLDER is a path or URL. `--write 2B` first makes it a checkpoint of that shape with random values.
The peak counts from the memory before the load.
"""

import argparse
import gc
import json
import time
from pathlib import Path
from typing import Any

import torch

from benchmarks.gpu_setup import SHAPES
from mediamill.model.checkpoint.folder import Folder
from mediamill.model.families.qwen2_vl.config import config_from_dict
from mediamill.model.families.qwen2_vl.model import Qwen2VL
from mediamill.model.tiny import CHECKPOINT
from mediamill.model.tiny.folder import config_dict
from mediamill.model.weights import load_model

CONFIGS: dict[str, dict[str, Any]] = {
    # 75 million parameters
    "small": {
        "hidden_size": 512,
        "intermediate_size": 2048,
        "num_hidden_layers": 16,
        "num_attention_heads": 8,
        "num_key_value_heads": 2,
        "vocab_size": 12000,
        "rope_scaling": {"type": "mrope", "mrope_section": [8, 12, 12]},
        "vision_config": {"hidden_size": 512},
    },
    "2B": SHAPES["2B"],
}
BLOCK = 8 * 1024 * 1024  # random values, which repeat
DTYPES = {torch.float32: ("F32", 4), torch.float16: ("F16", 2), torch.bfloat16: ("BF16", 2)}


def write_random(folder: Path, config: str, dtype: torch.dtype, shards: int = 1) -> Path:
    """Writes a folder with config.json and random weights, without holding them in memory."""
    folder.mkdir(parents=True, exist_ok=True)
    raw = config_dict() | CONFIGS[config] | {"tie_word_embeddings": True}
    raw["vision_config"] = {**config_dict()["vision_config"], **raw["vision_config"]}  # type: ignore[dict-item]
    (folder / "config.json").write_text(json.dumps(raw))
    with torch.device("meta"):
        model = Qwen2VL(config_from_dict(raw, config))
    shapes = {name: tuple(one.shape) for name, one in model.named_parameters()}
    random = torch.randn(BLOCK, generator=torch.Generator().manual_seed(0)).mul_(0.02).to(dtype)
    block = random.view(torch.uint8).numpy().data
    names, weight_map = list(shapes), {}
    for number in range(shards):
        file = f"model-{number + 1:05}-of-{shards:05}.safetensors"
        part = names[len(names) * number // shards : len(names) * (number + 1) // shards]
        weight_map |= dict.fromkeys(part, file)
        kind, width = DTYPES[dtype]
        header, at = {}, 0
        for name in part:
            size = torch.Size(shapes[name]).numel() * width
            header[name] = {"dtype": kind, "shape": shapes[name], "data_offsets": [at, at + size]}
            at += size
        path = folder / (file if shards > 1 else "model.safetensors")
        with path.open("wb") as target:
            text = json.dumps(header).encode()
            target.write(len(text).to_bytes(8, "little") + text)
            for start in range(0, at, len(block)):
                target.write(block[: at - start])
    if shards > 1:
        index = {"metadata": {}, "weight_map": weight_map}
        (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return folder


def measure(folder: str, dtype: torch.dtype | None, device: str) -> dict[str, Any]:
    """Loads once. A load of the tiny model before it takes the cost of first imports."""
    load_model(CHECKPOINT, device=device)
    Folder.of(folder).read("config.json")
    gc.collect()
    Path("/proc/self/clear_refs").write_text("5")  # resets the peak to the current size
    before, started = _memory("VmRSS"), time.perf_counter()
    model = load_model(folder, dtype, device)
    seconds = time.perf_counter() - started
    peak = _memory("VmHWM") - before
    weights = sum(one.numel() * one.element_size() for one in model.parameters())
    return {
        "weights_bytes": weights,
        "peak_bytes": peak,
        "ratio": round(peak / weights, 3),
        "seconds": round(seconds, 2),
        "before_bytes": before,
        "dtype": str(model.dtype),
    }


def _memory(key: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{key}:"):
            return int(line.split()[1]) * 1024
    raise RuntimeError(f"/proc/self/status has no {key}")


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.load", description=__doc__)
    parser.add_argument("folder")
    parser.add_argument("--dtype", choices=[str(one).removeprefix("torch.") for one in DTYPES])
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--write", choices=CONFIGS, help="write a checkpoint in bfloat16 first")
    parser.add_argument("--shards", type=int, default=1)
    options = parser.parse_args()
    if options.write:
        write_random(Path(options.folder), options.write, torch.bfloat16, options.shards)
    dtype = getattr(torch, options.dtype) if options.dtype else None
    print(json.dumps(measure(options.folder, dtype, options.device)))


if __name__ == "__main__":
    main()

"""Answers jobs with vLLM, one line of JSON each.

benchmarks.engine runs it in a process of its own, with a Python that has vLLM. It imports nothing
of this project.
"""

import json
import os
import sys
import time
from pathlib import Path

for _name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ[_name] = "1"
# In this process, so that its CPU time is all of vLLM's CPU time.
os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "2")
os.environ.setdefault("VLLM_CPU_OMP_THREADS_BIND", "nobind")
os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

IMAGE = 518


def main() -> None:
    import numpy as np
    import torch
    import vllm
    from PIL import Image

    folder, dtype = sys.argv[1:3]
    engine = vllm.LLM(
        folder,
        dtype=dtype,
        enforce_eager=True,
        max_model_len=1024,
        max_num_seqs=64,
        max_num_batched_tokens=4096,
        limit_mm_per_prompt={"image": 1, "video": 0},
        mm_processor_cache_gb=0,
        seed=0,
    )
    torch.set_num_threads(1)
    answer({"version": vllm.__version__})
    for line in sys.stdin:
        exchange = Path(line.strip())
        prompts = json.loads((exchange / "prompts.json").read_text())
        with np.load(exchange / "pictures.npz") as held:
            pictures = [Image.fromarray(held[f"arr_{i}"]) for i in range(len(prompts))]
        started = time.process_time()
        inputs = [
            {
                "prompt_token_ids": [*one["before"], IMAGE, *one["after"]],
                "multi_modal_data": {"image": picture},
            }
            for one, picture in zip(prompts, pictures, strict=True)
        ]
        parameters = [
            vllm.SamplingParams(
                temperature=0, max_tokens=one["new"], ignore_eos=True, detokenize=False
            )
            for one in prompts
        ]
        done = engine.generate(inputs, parameters, use_tqdm=False)
        seconds = time.process_time() - started
        tokens = [list(one.outputs[0].token_ids) for one in done]
        answer({"tokens": tokens, "seconds": seconds, "prepare": 0.0})


def answer(content: dict[str, object]) -> None:
    print("RESULT " + json.dumps(content), flush=True)


if __name__ == "__main__":
    main()

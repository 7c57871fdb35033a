"""Turns a checkpoint folder into the reference implementation's own processor, tokenizer and model.

Only tests import this. torchvision's compiled operators may not load beside a CPU build of torch;
the reference needs only its Python parts, so the schemas that its import asks for are defined here
then.
"""

import functools
import os
import sys
from pathlib import Path
from typing import Any

import torch

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")


@functools.cache
def _torchvision_schemas() -> torch.library.Library | None:
    """Makes `import torchvision` work. The library object must stay alive: the cache holds it."""
    try:
        import torchvision  # noqa: F401

        return None
    except RuntimeError:  # "operator torchvision::nms does not exist"
        for name in [name for name in sys.modules if name.split(".")[0] == "torchvision"]:
            del sys.modules[name]
    library = torch.library.Library("torchvision", "DEF")
    for name in ("nms", "qnms"):
        library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    return library


_SCHEMAS = _torchvision_schemas()

import transformers  # noqa: E402
from transformers import (  # noqa: E402
    GenerationConfig,
    LogitsProcessorList,
    Qwen2TokenizerFast,
    Qwen2VLForConditionalGeneration,
    Qwen2VLImageProcessor,
    Qwen2VLProcessor,
    Qwen2VLVideoProcessor,
)
from transformers.generation import StopStringCriteria  # noqa: E402
from transformers.models.qwen2_vl.image_processing_qwen2_vl import (  # noqa: E402
    smart_resize as reference_smart_resize,
)
from transformers.video_utils import VideoMetadata  # noqa: E402

__all__ = [
    "Qwen2VLImageProcessor",
    "Qwen2VLVideoProcessor",
    "StopStringCriteria",
    "VideoMetadata",
    "load_generation_config",
    "load_image_processor",
    "load_model",
    "load_processor",
    "load_tokenizer",
    "load_video_processor",
    "logits_processors",
    "reference_smart_resize",
]


def load_processor(folder: str | Path) -> Qwen2VLProcessor:
    """The reference processor: tokenizer, chat template, picture and video processor in one."""
    return Qwen2VLProcessor.from_pretrained(str(folder))


def load_tokenizer(folder: str | Path) -> Any:
    """The reference tokenizer."""
    return Qwen2TokenizerFast.from_pretrained(str(folder))


def load_image_processor(folder: str | Path) -> Qwen2VLImageProcessor:
    """The torchvision-backed picture processor (the reference's default)."""
    return Qwen2VLImageProcessor.from_pretrained(str(folder))


def load_video_processor(folder: str | Path) -> Qwen2VLVideoProcessor:
    """The video processor."""
    return Qwen2VLVideoProcessor.from_pretrained(str(folder))


def load_model(
    folder: str | Path, dtype: torch.dtype = torch.float32, **kwargs: Any
) -> Qwen2VLForConditionalGeneration:
    """The reference model on the CPU, in evaluation mode."""
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    model = Qwen2VLForConditionalGeneration.from_pretrained(str(folder), dtype=dtype, **kwargs)
    return model.eval()


def load_generation_config(folder: str | Path) -> GenerationConfig:
    """The reference's reading of generation_config.json."""
    return GenerationConfig.from_pretrained(str(folder))


def logits_processors(
    model: Qwen2VLForConditionalGeneration, prompt_tokens: int, **options: Any
) -> LogitsProcessorList:
    """What the reference's generate does to logits, in its own order."""
    config, _ = model._prepare_generation_config(GenerationConfig(**options))
    model._prepare_special_tokens(config, device="cpu")
    return model._get_logits_processor(config, input_ids_seq_length=prompt_tokens, device="cpu")

"""Prepares a loaded network for inference alone: turns its linear layers into faster ones.

Projections of one input become one product, and on a CPU weights are stored as its kernels read
them. The weights take the place of the old ones a layer at a time, so memory does not double.
"""

import torch
from torch import nn

from mediamill.model.families.qwen2_vl.model import Qwen2VL
from mediamill.model.layers.attention import AttentionName
from mediamill.model.layers.decoder import DecoderLayer
from mediamill.model.layers.flash import missing
from mediamill.model.layers.packed_linear import PackedLinear, can_pack


def prepare(model: Qwen2VL) -> Qwen2VL:
    """Change the network in place, for good, and return it: no training, casting or moving after.

    Its results stay the same up to rounding. The embedding table stays as it is: a head that is
    tied to it is packed as a copy of its own.
    """
    for layer in model.model.layers:
        assert isinstance(layer, DecoderLayer)
        layer.self_attn.join()
        layer.mlp.join()
    if can_pack(model.device, model.dtype):
        _pack(model)
    return model


def _pack(module: nn.Module) -> None:
    for name, child in list(module.named_children()):
        if isinstance(child, nn.Linear):
            setattr(module, name, PackedLinear(child))
        else:
            _pack(child)


def fastest_attention(device: torch.device, dtype: torch.dtype) -> AttentionName:
    """What "auto" stands for: "flash" where it can run, "products" in bfloat16 on a CPU, else
    "sdpa".
    """
    if missing(device, dtype) is None:
        return "flash"
    return "products" if device.type == "cpu" and dtype == torch.bfloat16 else "sdpa"

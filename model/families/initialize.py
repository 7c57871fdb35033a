"""Fills a network with random weights, for training from nothing.

It does not know files; weights of a checkpoint come from `mediamill.model.weights`.
"""

import torch
from torch import nn

from mediamill.model.families.qwen2_vl.model import Qwen2VL
from mediamill.model.layers.decoder import RMSNorm


@torch.no_grad()
def initialize_weights(model: Qwen2VL, seed: int = 0) -> Qwen2VL:
    """Draw every weight anew, in place, on whatever device the model is; the model is returned.

    Weights of linear layers, of the patch projection and of the embedding are normal with mean 0
    and the standard deviation `initializer_range` of their part's configuration (the head has the
    decoder's); biases and the embedding of pad_token_id are 0, norms 1. The same seed gives the
    same weights on one kind of device.
    """
    generator = torch.Generator(device=model.device).manual_seed(seed)
    config = model.config
    for part, spread in (
        (model.visual, config.vision.initializer_range),
        (model.model, config.text.initializer_range),
        (model.lm_head, config.text.initializer_range),
    ):
        for module in part.modules():
            if isinstance(module, nn.Linear | nn.Conv3d | nn.Embedding):
                module.weight.normal_(0.0, spread, generator=generator)
            elif isinstance(module, nn.LayerNorm | RMSNorm):
                module.weight.fill_(1.0)
            bias = getattr(module, "bias", None)
            if isinstance(bias, nn.Parameter):
                bias.zero_()
    pad = config.text.pad_token_id
    if pad is not None:
        model.model.embed_tokens.weight[pad].zero_()
    return model

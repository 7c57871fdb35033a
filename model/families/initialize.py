"""Random weights for a network, for tests and benchmarks and for training from nothing."""

import torch

from mediamill.model.families.qwen2_vl.model import Qwen2VL


@torch.no_grad()
def initialize_weights(model: Qwen2VL, seed: int = 0) -> Qwen2VL:
    """Draws every weight anew, in place, on the device of the model; returns the model.

    Matrices are normal with mean 0 and the standard deviation `initializer_range` of the vision
    tower's or the decoder's configuration; biases and the embedding of pad_token_id are 0, weights
    of norms 1. The same seed gives the same weights on one kind of device.
    """
    config = model.config
    generator = torch.Generator(device=model.device).manual_seed(seed)
    for name, parameter in model.named_parameters():
        part = config.vision if name.startswith("visual.") else config.text
        if name.endswith("bias"):
            parameter.zero_()
        elif parameter.ndim == 1:
            parameter.fill_(1.0)
        else:
            parameter.normal_(0.0, part.initializer_range, generator=generator)
    if config.text.pad_token_id is not None:
        model.model.embed_tokens.weight[config.text.pad_token_id].zero_()
    return model

"""Random weights for a network, for training from nothing."""

from collections.abc import Callable

import torch
from torch import nn

from mediamill.model.families.qwen2_vl.model import Qwen2VL


@torch.no_grad()
def initialize_weights(
    model: Qwen2VL,
    seed: int | None = 0,
    spread: Callable[[str, nn.Parameter], float] | None = None,
) -> Qwen2VL:
    """Draws every weight anew, in place, on the device of the model; returns the model.

    Matrices are normal with mean 0; biases and the embedding of pad_token_id are 0, weights of
    norms 1. The same seed gives the same weights on one kind of device.

    seed: None draws from torch's global generator.
    spread: gives the standard deviation of a named matrix; None: `initializer_range` of the
        configuration of the vision tower or the decoder.
    """
    config = model.config

    def configured(name: str, parameter: nn.Parameter) -> float:
        part = config.vision if name.startswith("visual.") else config.text
        return part.initializer_range

    generator = None if seed is None else torch.Generator(device=model.device).manual_seed(seed)
    for name, parameter in model.named_parameters():
        if name.endswith("bias"):
            parameter.zero_()
        elif parameter.ndim == 1:
            parameter.fill_(1.0)
        else:
            parameter.normal_(0.0, (spread or configured)(name, parameter), generator=generator)
    if config.text.pad_token_id is not None:
        model.model.embed_tokens.weight[config.text.pad_token_id].zero_()
    return model

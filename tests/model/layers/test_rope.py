"""The rotation of the vision tower, against a plain restatement of it."""

import torch

from mediamill.model.layers.rope import vision_rotation


def test_the_vision_rotation_turns_merge_groups_together():
    inv_freq = torch.tensor([1.0, 0.1])
    cos, sin = vision_rotation([(2, 4, 6)], inv_freq)
    assert cos.shape == (48, 8)
    order = [
        (2 * i + a, 2 * j + b)
        for _ in range(2)
        for i in range(2)
        for j in range(3)
        for a in range(2)
        for b in range(2)
    ]
    rows, columns = torch.tensor(order, dtype=torch.float32).T
    angles = torch.stack((rows, rows * 0.1, columns, columns * 0.1), dim=1).repeat(1, 2)
    assert torch.allclose(cos, angles.cos())
    assert torch.allclose(sin, angles.sin())

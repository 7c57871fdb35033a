"""Visual tokens from uint8 patches, against the plain tower over normalised patches."""

import dataclasses
import functools

import pytest
import torch

from mediamill.model.families.qwen2_vl.vision import VisionTower
from mediamill.model.inputs import VisualInput
from mediamill.model.layers import frame_batches
from mediamill.model.layers.patch_embedding import embed_patches, fold_normalization
from mediamill.model.media.image_rules import ImageRules
from tests.checkpoints import SHAPES, write_checkpoint
from tests.model.batches import ours
from tests.model.prompts import visual

RULES = {"image": ImageRules(), "video": ImageRules()}
GRIDS = [
    ("image", (1, 6, 4)),
    ("video", (3, 4, 4)),
    ("image", (1, 2, 2)),
    ("image", (1, 8, 10)),
    ("video", (1, 2, 6)),
]


def media(seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [visual(generator, kind, grid) for kind, grid in GRIDS]


def plain(tower, visuals, rules=RULES):
    dtype = tower.patch_embed.proj.weight.dtype
    patches = torch.cat([rules[item.kind].normalize(item.patches, item.kind) for item in visuals])
    return tower(patches.to(dtype), [item.grid_thw for item in visuals])


@pytest.fixture(scope="module", params=["embedded", "2B's heads", "another vision tower"])
def tower(request, tmp_path_factory):
    folder = write_checkpoint(tmp_path_factory.mktemp("checkpoint"), SHAPES[request.param], seed=4)
    return ours(folder).visual


@pytest.mark.parametrize("name", ["sdpa", "eager", "products"])
@torch.inference_mode()
def test_mixed_media_give_the_plain_towers_tokens_in_order(tower, name):
    visuals = media()
    got, want = tower.encode(visuals, RULES, name), plain(tower, visuals)
    assert got.shape == (sum(item.tokens for item in visuals), tower.config.hidden_size)
    assert (got - want).abs().max() < 1e-4
    assert want.std() > 0.1, "tokens of no variety prove nothing"


@pytest.mark.parametrize("limit", [1, 20, 70])
@torch.inference_mode()
def test_batches_of_frames_change_nothing(tower, monkeypatch, limit):
    visuals = media(1)
    whole = tower.encode(visuals, RULES)
    widest = max(int(tower.config.embed_dim * tower.config.mlp_ratio), 3 * tower.config.embed_dim)
    monkeypatch.setattr(frame_batches, "CPU_ACTIVATION_BYTES", 4 * widest * limit)
    batches = list(frame_batches._batches(visuals, limit))
    assert len(batches) > 1
    assert all(len(b) == 1 or sum(len(f.patches) for f in b) <= limit for b in batches)
    assert (tower.encode(visuals, RULES) - whole).abs().max() < 2e-5


@torch.inference_mode()
def test_a_frame_of_a_video_sees_no_other(tower):
    [video] = [item for item in media(2) if item.grid_thw == (3, 4, 4)]
    changed = video.patches.clone()
    changed[16:32] = 255 - changed[16:32]
    before = tower.encode([video], RULES)
    after = tower.encode([dataclasses.replace(video, patches=changed)], RULES)
    differs = (before - after).abs().amax(1) > 1e-4
    assert differs.tolist() == [False] * 4 + [True] * 4 + [False] * 4


@torch.inference_mode()
def test_in_bfloat16_it_is_as_near_to_float32_as_the_plain_tower(tmp_path):
    folder = write_checkpoint(tmp_path, SHAPES["2B's heads"], seed=4)
    exact, half = ours(folder).visual, ours(folder, dtype=torch.bfloat16).visual
    visuals = media(3)
    want = plain(exact, visuals)
    of_plain = (plain(half, visuals).float() - want).square().mean().sqrt()
    for name in ("sdpa", "products"):
        error = (half.encode(visuals, RULES, name).float() - want).square().mean().sqrt()
        assert error < 1.15 * of_plain


@pytest.mark.parametrize(
    "rules",
    [
        ImageRules(),
        ImageRules(do_normalize=False),
        ImageRules(do_rescale=False, mean=(120.0, 110.0, 100.0), std=(60.0, 55.0, 50.0)),
        ImageRules(do_rescale=False, do_normalize=False),
        ImageRules(rescale_factor=1 / 127.5, mean=(1.0, 1.0, 1.0), std=(1.0, 1.0, 1.0)),
    ],
)
@pytest.mark.parametrize("kind", ["image", "video"])
def test_the_folded_projection_is_that_of_normalised_patches(rules, kind):
    generator = torch.Generator().manual_seed(5)
    weight = torch.randn(24, 3, 2, 14, 14, generator=generator) * 1176**-0.5
    patches = torch.randint(
        0, 256, (40, rules.patch_values(kind)), dtype=torch.uint8, generator=generator
    )
    want = rules.normalize(patches, kind).double() @ weight.flatten(1).double().T
    got = embed_patches(patches, *fold_normalization(weight, rules, kind))
    assert (got - want).abs().max() < 1e-5 * want.abs().max()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"grid_thw": (1, 6, 6)}, r"want torch.uint8 \[36, 588\]"),
        ({"grid_thw": (1, 8, 3)}, "multiples of 2"),
        ({"patches": torch.zeros(24, 588)}, r"torch.float32 \[24, 588\]"),
        ({"kind": "video"}, r"\[24, 1176\]"),
    ],
)
def test_media_that_contradict_themselves_are_refused(tower, change, words):
    good = VisualInput("image", torch.zeros(24, 588, dtype=torch.uint8), (1, 6, 4))
    with pytest.raises(ValueError, match=words):
        tower.encode([good, dataclasses.replace(good, **change)], RULES)


def test_no_media_are_no_tokens(tower):
    assert tower.encode([], RULES).shape == (0, tower.config.hidden_size)


def test_the_input_stays_as_it_was(tower):
    visuals = media(6)
    before = [item.patches.clone() for item in visuals]
    parameters = {name: value.clone() for name, value in tower.state_dict().items()}
    VisionTower.encode(tower, visuals, RULES)
    assert all(map(torch.equal, before, [item.patches for item in visuals]))
    same = functools.partial(torch.equal)
    assert all(same(value, parameters[name]) for name, value in tower.state_dict().items())

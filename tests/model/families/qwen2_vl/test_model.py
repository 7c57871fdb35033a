"""The network against the reference: logits, loss and gradients in float32."""

import pytest
import torch

from mediamill.model.families.qwen2_vl.model import Qwen2VL
from tests import oracle
from tests.checkpoints import SHAPES, write_checkpoint
from tests.model.batches import batch_of, grids, labels_of, our_inputs, ours, reference_inputs
from tests.model.prompts import MEDIA, prompt


@pytest.fixture(scope="module", params=list(SHAPES))
def folder(request, tmp_path_factory):
    return write_checkpoint(tmp_path_factory.mktemp("checkpoint"), SHAPES[request.param], seed=3)


@pytest.fixture(scope="module")
def reference(folder):
    return oracle.load_model(folder)


@pytest.mark.sampled(40)
@pytest.mark.parametrize("media", MEDIA, ids=str)
def test_logits_equal_the_references(folder, reference, media):
    case = prompt(len(str(media)), media)
    ids = torch.tensor([case.ids])
    with torch.inference_mode():
        want = reference(**reference_inputs([case], ids, torch.ones_like(ids))).logits
        got = ours(folder)(ids, **our_inputs([case])).logits
    assert (got - want).abs().max() < 1e-4
    assert want.std() > 0.3, "logits of no variety prove nothing"


@pytest.mark.sampled(16)
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_a_mixed_batch_gives_the_references_loss_and_gradients(folder, reference, attention):
    cases = [prompt(40 + i, media, words=3 + i) for i, media in enumerate(MEDIA)]
    ids, mask = batch_of(cases)
    labels = labels_of(ids, mask)
    reference.zero_grad()
    if reference.config.text_config.rope_parameters["rope_type"] in ("dynamic", "longrope"):
        # There the longest row gives all rows their frequencies, so it sees each row alone.
        rows = [torch.tensor([case.ids]) for case in cases]
        row_labels = [labels[i : i + 1, : row.shape[1]] for i, row in enumerate(rows)]
        total = (labels[:, 1:] != -100).sum()
        want = sum(
            reference(**reference_inputs([case], row, torch.ones_like(row)), labels=label).loss
            * (label[:, 1:] != -100).sum()
            / total
            for case, row, label in zip(cases, rows, row_labels, strict=True)
        )
    else:
        want = reference(**reference_inputs(cases, ids, mask), labels=labels).loss
    want.backward()
    model = ours(folder).requires_grad_(True)
    got = model(
        ids, attention_mask=mask, **our_inputs(cases), labels=labels, attention=attention
    ).loss
    got.backward()
    assert got.item() == pytest.approx(want.item(), rel=1e-5)
    language, vision = reference.model.language_model, reference.model.visual
    for name, expected in (
        ("model.embed_tokens.weight", language.embed_tokens.weight.grad),
        ("model.layers.0.self_attn.k_proj.bias", language.layers[0].self_attn.k_proj.bias.grad),
        ("visual.blocks.1.attn.qkv.weight", vision.blocks[1].attn.qkv.weight.grad),
        ("visual.patch_embed.proj.weight", vision.patch_embed.proj.weight.grad),
    ):
        difference = (model.get_parameter(name).grad - expected).norm() / expected.norm()
        assert difference < 1e-5, name


def test_the_original_rule_gives_other_positions_only_where_a_video_is_long(folder):
    model = ours(folder, "original")
    for media in MEDIA:
        case = prompt(1, media)
        ids = torch.tensor([case.ids])
        both = [
            Qwen2VL.rope_index(m, ids, grids([case], "image"), grids([case], "video"))[0]
            for m in (model, ours(folder, "hf5"))
        ]
        long = any(t > max(h, w) // 2 for kind, (t, h, w) in media)
        assert torch.equal(*both) != long


def test_visual_tokens_without_pads_are_refused(folder):
    model = ours(folder)
    case = prompt(5, [("image", (1, 4, 4))])
    ids = torch.tensor([case.ids])
    with pytest.raises(ValueError, match="hold 4 pad tokens of id 518, but 0 visual tokens"):
        model(ids)
    with pytest.raises(ValueError, match="hold 0 pad tokens of id 518, but 4 visual tokens"):
        model(torch.tensor([[1, 2, 3]]), **our_inputs([case]))

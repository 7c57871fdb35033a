"""Forward passes over padded batches, against the reference: every way of calling the network."""

import functools
import re
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mediamill.model.families.initialize import initialize_weights
from mediamill.model.families.qwen2_vl.model import Qwen2VL
from mediamill.model.tiny.folder import tiny_config
from tests import oracle
from tests.checkpoints import SHAPES, write_checkpoint
from tests.model.batches import batch_of, grids, labels_of, our_inputs, ours, reference_inputs
from tests.model.prompts import IMAGE, MEDIA, pixels, prompt

CASES = [prompt(60 + i, MEDIA[i], words=3 + i) for i in (1, 0, 4, 6)]


@pytest.fixture(
    scope="module", params=["embedded", "2B's heads", "sliding window", "yarn", "llama3"]
)
def folder(request, tmp_path_factory):
    return write_checkpoint(tmp_path_factory.mktemp("checkpoint"), SHAPES[request.param], seed=3)


@pytest.fixture(scope="module")
def model(folder):
    return ours(folder)


@pytest.fixture(scope="module")
def reference(folder):
    return oracle.load_model(folder, attn_implementation="eager")


@pytest.fixture(autouse=True)
def _fresh(request):
    # The reference keeps what continues its positions from one call to the next.
    if "reference" in request.fixturenames:
        request.getfixturevalue("reference").model.rope_deltas = None


def close(got, want, tolerance=1e-4):
    assert got.shape == want.shape
    assert (got - want).abs().max() < tolerance


@pytest.mark.parametrize("side", ["left", "right"])
@torch.inference_mode()
def test_a_padded_batch_gives_what_the_reference_gives(model, reference, side):
    ids, mask = batch_of(CASES, side)
    outputs = {"output_hidden_states": True, "output_attentions": True}
    want = reference(**reference_inputs(CASES, ids, mask), **outputs)
    got = model(ids, attention_mask=mask, **our_inputs(CASES), **outputs, attention="eager")
    real = mask.bool()
    close(got.logits[real], want.logits[real])
    close(got.last_hidden_state[real], want.hidden_states[-1][real])
    assert torch.equal(got.rope_deltas, reference.model.rope_deltas)
    assert len(got.hidden_states) == len(want.hidden_states)
    assert len(got.attentions) == len(want.attentions)
    for ours_, theirs in zip(got.hidden_states, want.hidden_states, strict=True):
        close(ours_[real], theirs[real])
        assert not ours_[~real].any()
    for ours_, theirs in zip(got.attentions, want.attentions, strict=True):
        close(ours_.transpose(1, 2)[real], theirs.transpose(1, 2)[real])
        assert not ours_.transpose(1, 2)[~real].any()
    positions, deltas = model.rope_index(
        ids, grids(CASES, "image"), grids(CASES, "video"), attention_mask=mask
    )
    inputs = reference_inputs(CASES, ids, mask)
    theirs = reference.model.get_rope_index(
        ids,
        inputs["mm_token_type_ids"],
        inputs["image_grid_thw"],
        inputs["video_grid_thw"],
        attention_mask=mask,
    )
    assert torch.equal(positions, theirs[0])
    assert torch.equal(deltas, theirs[1])


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@torch.inference_mode()
def test_a_batch_equals_each_prompt_alone_however_padded(model, attention):
    ids, mask = batch_of(CASES, "left")
    # Padding in the middle, too: it is as if it were not there.
    ids = torch.cat((ids[:, :-2], torch.zeros(len(ids), 3, dtype=torch.long), ids[:, -2:]), dim=1)
    mask = torch.cat((mask[:, :-2], mask.new_zeros(len(ids), 3), mask[:, -2:]), dim=1)
    got = model(ids, attention_mask=mask, **our_inputs(CASES), attention=attention).logits
    for row, case in enumerate(CASES):
        alone = model(torch.tensor([case.ids]), **our_inputs([case]), attention=attention).logits
        close(got[row][mask[row].bool()], alone[0])


@torch.inference_mode()
def test_going_on_with_a_cache_equals_the_reference_and_one_pass(model, reference):
    case = CASES[2]
    more = prompt(9, [], words=7).ids
    ids = torch.tensor([case.ids + more])
    whole = model(ids, **our_inputs([case])).logits
    first = torch.tensor([case.ids])
    theirs = reference(
        **reference_inputs([case], first, torch.ones_like(first)) | {"attention_mask": None},
        use_cache=True,
    )
    cache = model.new_cache(1)
    close(model(first, **our_inputs([case]), cache=cache).logits, theirs.logits)
    at = len(case.ids)
    for count in (3, 1, 1, 2):
        chunk = ids[:, at : at + count]
        at += count
        theirs = reference(input_ids=chunk, past_key_values=theirs.past_key_values, use_cache=True)
        got = model(chunk, cache=cache, output_attentions=True, attention="eager")
        close(got.logits, theirs.logits)
        close(got.logits, whole[:, at - count : at])
        assert got.attentions[0].shape[-1] == at


@pytest.mark.parametrize("side", ["left", "right"])
@torch.inference_mode()
def test_a_padded_batch_goes_on_as_each_prompt_alone(model, side):
    ids, mask = batch_of(CASES, side)
    steps = [prompt(90 + i, [], words=4).ids for i in range(len(CASES))]
    cache = model.new_cache(len(CASES))
    model(ids, attention_mask=mask, **our_inputs(CASES), cache=cache)
    got = []
    for columns in ((0, 1), (1, 3), (3, 4)):
        chunk = torch.tensor([step[slice(*columns)] for step in steps])
        mask = torch.cat((mask, torch.ones_like(chunk)), dim=1)
        got.append(model(chunk, attention_mask=mask, cache=cache).logits)
    for row, (case, step) in enumerate(zip(CASES, steps, strict=True)):
        alone = model(torch.tensor([case.ids + step]), **our_inputs([case])).logits
        close(torch.cat(got, dim=1)[row], alone[0, -4:])
    with pytest.raises(ValueError, match="contradicts the cache"):
        model(chunk, attention_mask=torch.ones(len(CASES), mask.shape[1] + 1), cache=cache)
    cache.keep(torch.tensor([2, 0]))
    model(chunk[:2], cache=cache)
    assert cache.lengths.tolist() == [len(CASES[2].ids) + 5, len(CASES[0].ids) + 5]


@torch.inference_mode()
def test_a_picture_may_come_while_going_on(folder):
    model = ours(folder, "original")
    case = prompt(5, MEDIA[5])
    at = case.ids.index(519) - 2  # before the video
    whole = model(torch.tensor([case.ids]), **our_inputs([case]))
    first, second = case.visuals[:2], case.visuals[2:]
    cache = model.new_cache(1)
    for part, visuals in ((case.ids[:at], first), (case.ids[at:], second)):
        piece = type(case)(part, visuals)
        got = model(torch.tensor([part]), **our_inputs([piece]), cache=cache)
    close(got.logits, whole.logits[:, at:])
    assert torch.equal(got.rope_deltas, whole.rope_deltas)


@torch.inference_mode()
def test_embeddings_instead_of_ids(model, reference):
    case = CASES[3]
    ids = torch.tensor([case.ids])
    embeds = model.model.embed_tokens(ids)
    inputs = reference_inputs([case], ids, torch.ones_like(ids))
    del inputs["input_ids"]
    want = reference(inputs_embeds=embeds, **inputs).logits
    # Pads are found by their embedding; the positions are then those of text, as there.
    close(model(inputs_embeds=embeds, **our_inputs([case])).logits, want)
    with_ids = model(ids, **our_inputs([case])).logits
    close(model(ids, inputs_embeds=embeds, **our_inputs([case])).logits, with_ids, 1e-6)
    # Embeddings that hold the visual tokens already.
    media = our_inputs([case])
    images = model.visual(media["pixel_values"], torch.tensor(media["image_grid_thw"]))
    videos = model.visual(media["pixel_values_videos"], media["video_grid_thw"])
    filled = model.embed(ids[0], images, videos)[None]
    placed = {name: value for name, value in media.items() if name.endswith("thw")}
    close(model(ids, inputs_embeds=filled, **placed).logits, with_ids, 1e-6)


@torch.inference_mode()
def test_the_tower_alone(model, reference):
    media = pixels(CASES, "image")
    want = reference.model.visual(media["pixel_values"], media["image_grid_thw"]).pooler_output
    for attention in ("sdpa", "eager"):
        got = model.visual(media["pixel_values"], media["image_grid_thw"], attention)
        close(got, want, 2e-5)


@torch.inference_mode()
def test_every_form_of_positions(model, reference):
    ids, mask = batch_of(CASES[:2])
    text = torch.arange(ids.shape[1]).expand(2, -1) * 2
    three = torch.stack((text, text + 1, text // 2))
    language = reference.model.language_model
    for positions in (text, three, torch.cat((text[None], three))):
        want = language(ids, attention_mask=mask, position_ids=positions).last_hidden_state
        got = model.text(ids, attention_mask=mask, position_ids=positions).last_hidden_state
        close(got[mask.bool()], want[mask.bool()])
    close(model.text(ids).last_hidden_state, language(ids).last_hidden_state)
    embeds = model.model.embed_tokens(ids)
    close(model.text(inputs_embeds=embeds).last_hidden_state, language(ids).last_hidden_state)


@torch.inference_mode()
def test_rows_of_packed_sequences_equal_the_references(model, reference):
    lengths = [[5, 11, 1, 9], [13, 13]]
    counts = torch.tensor([[i for n in row for i in range(n)] for row in lengths])
    ids = torch.randint(0, 500, counts.shape, generator=torch.Generator().manual_seed(1))
    packed = counts.expand(4, -1, -1)
    want = reference(input_ids=ids, position_ids=packed, use_cache=False).logits
    got = model(ids, position_ids=packed, output_attentions=True, attention="eager")
    close(got.logits, want)
    assert not got.attentions[0][0, :, 5:, :5].any()
    assert not got.attentions[-1][1, :, 13:, :13].any()


@settings(max_examples=25, deadline=None)
@given(st.lists(st.integers(1, 20), min_size=1, max_size=6), st.integers(0, 9))
def test_packed_equals_each_alone(lengths, seed):
    model = small()
    ids = torch.randint(0, 500, (1, sum(lengths)), generator=torch.Generator().manual_seed(seed))
    counts = torch.tensor([[i for n in lengths for i in range(n)]]).expand(4, 1, -1)
    with torch.inference_mode():
        got = model.text(ids, position_ids=counts).last_hidden_state[0]
        alone = [model.text(part[None]).last_hidden_state[0] for part in ids[0].split(lengths)]
    close(got, torch.cat(alone), 1e-5)


@functools.cache
def small():
    """A network with windows."""
    config = tiny_config()
    text = replace(config.text, windows=(None, 6, 3, None))
    return initialize_weights(Qwen2VL(replace(config, text=text)), 4).eval()


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_dropout_is_the_references_in_training_and_off_otherwise(tmp_path, attention):
    shape = SHAPES["embedded"]
    changed = type(shape)({"attention_dropout": 0.3, "num_hidden_layers": 2})
    folder = write_checkpoint(tmp_path, changed)
    reference = oracle.load_model(folder, attn_implementation=attention)
    model, ids = ours(folder), torch.tensor([CASES[0].ids])
    inputs = reference_inputs([CASES[0]], ids, torch.ones_like(ids)) | {"attention_mask": None}
    results = {}
    for training in (True, False):
        for network in (model.train(training), reference.train(training)):
            torch.manual_seed(5)
            with torch.no_grad():
                out = (
                    model(ids, **our_inputs([CASES[0]]), attention=attention)
                    if network is model
                    else reference(**inputs)
                )
            results[training, network is model] = out.logits
    close(results[True, True], results[True, False])
    close(results[False, True], results[False, False])
    assert (results[True, True] - results[False, True]).abs().max() > 0.1


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("name", ["2B's heads", "sliding window", "yarn"])
@torch.inference_mode()
def test_bfloat16_equals_the_references_bit_for_bit(tmp_path, name, seed):
    folder = write_checkpoint(tmp_path, SHAPES[name], seed=seed)
    reference, model = oracle.load_model(folder, torch.bfloat16), ours(folder, dtype=torch.bfloat16)
    for media in MEDIA:
        case = prompt(seed, media)
        ids = torch.tensor([case.ids])
        want = reference(**reference_inputs([case], ids, torch.ones_like(ids))).logits
        assert torch.equal(model(ids, **our_inputs([case])).logits, want)


def test_loss_and_kept_logits(model, reference):
    ids, mask = batch_of(CASES, "left")
    labels = labels_of(ids, mask)
    # The reference predicts the first token of a row from its padding; here nothing does.
    labels[torch.arange(len(ids)), mask.argmax(1)] = -100
    with torch.no_grad():
        want = reference(**reference_inputs(CASES, ids, mask), labels=labels).loss
        out = model(ids, attention_mask=mask, **our_inputs(CASES), labels=labels)
        assert out.loss.dtype == torch.float32
        assert out.loss.item() == pytest.approx(want.item(), rel=1e-5)
        columns = torch.tensor([3, -1])
        each = torch.tensor([[5], [6], [0], [2]])
        for keep, expected in (
            (0, out.logits),
            (2, out.logits[:, -2:]),
            (columns, out.logits[:, columns]),
            (each, out.logits[torch.arange(4)[:, None], each]),
            (mask.bool(), out.logits[mask.bool()]),
        ):
            got = model(ids, attention_mask=mask, **our_inputs(CASES), logits_to_keep=keep).logits
            close(got, expected)
    with pytest.raises(ValueError, match="logits_to_keep is -1"):
        model(torch.tensor([[1]]), logits_to_keep=-1)


def test_what_does_not_fit_is_refused():
    model, case = small(), CASES[0]
    ids, media = torch.tensor([case.ids]), our_inputs([case])
    embeds = model.model.embed_tokens(ids).detach()
    ones = torch.ones_like(ids)
    two = {**media, "image_grid_thw": [*media["image_grid_thw"], (1, 2, 2)]}
    for sentence, call in {
        "neither input_ids nor inputs_embeds": lambda: model(),
        "exactly one of input_ids and inputs_embeds": lambda: model.text(ids, inputs_embeds=embeds),
        "expected int64": lambda: model(ids.int()),
        "expected [B, S, 128]": lambda: model(inputs_embeds=embeds[..., 1:]),
        "and inputs_embeds is": lambda: model(ids[:, 1:], inputs_embeds=embeds),
        "attention_mask is [1, 3], expected": lambda: model(ids, attention_mask=ones[:, :3]),
        "a row of zeros": lambda: model(ids, attention_mask=0 * ones, **media),
        "position_ids is [2,": lambda: model(ids, position_ids=ones.expand(2, 1, -1), **media),
        "1 image grids without their patches": lambda: model(
            ids, image_grid_thw=media["image_grid_thw"]
        ),
        "the patches are [36, 1176], and the grids want [40, 1176]": lambda: model(ids, **two),
        "a grid is [1, 3, 4]": lambda: model.visual(torch.zeros(12, 1176), [(1, 3, 4)]),
        "needs attention='eager'": lambda: model(ids[:, :3], output_attentions=True),
        "attention is 'fast'": lambda: model(ids[:, :3], attention="fast"),
        "labels is [1, 2], expected [1, 3]": lambda: model(ids[:, :3], labels=ones[:, :2]),
        "the batch has 1 rows, and the cache 2": lambda: model(ids, cache=model.new_cache(2)),
        f"hold {9} pad tokens of id {IMAGE}, but 0 visual": lambda: model(ids),
        "2 more image grids than runs": lambda: model(
            ids[:, :3], inputs_embeds=embeds[:, :3], image_grid_thw=[(1, 2, 2), (1, 2, 2)]
        ),
        "there are more runs of image tokens than image grids": lambda: model(
            torch.tensor([[IMAGE, 1]]),
            inputs_embeds=embeds[:, :2],
            video_grid_thw=[(1, 2, 2)],
        ),
    }.items():
        with pytest.raises(ValueError, match=re.escape(sentence)):
            call()


def test_random_weights_spread_as_the_references(tmp_path):
    changed = type(SHAPES["embedded"])({"initializer_range": 0.05}, {"initializer_range": 0.01})
    folder = write_checkpoint(tmp_path, changed)
    model = initialize_weights(ours(folder), seed=1)
    torch.manual_seed(0)
    reference = type(oracle.load_model(folder))(oracle.load_model(folder).config)
    theirs = {
        name.replace("model.visual.", "visual.").replace("model.language_model.", "model."): p
        for name, p in reference.named_parameters()
    }
    for name, parameter in model.named_parameters():
        want = theirs[name]
        assert parameter.mean().item() == pytest.approx(want.mean().item(), abs=0.002), name
        assert parameter.std().item() == pytest.approx(want.std().item(), rel=0.1), name
    pad = model.config.text.pad_token_id
    assert not model.model.embed_tokens.weight[pad].any()
    assert not theirs["model.embed_tokens.weight"][pad].any()
    again = initialize_weights(ours(folder), seed=1)
    assert torch.equal(again.lm_head.weight, model.lm_head.weight)
    other = initialize_weights(ours(folder), seed=2)
    assert not torch.equal(other.lm_head.weight, model.lm_head.weight)

"""Files and a chat to the answer, end to end, against the reference, over random cases.

`make parity SEED=7 CASES=1000` tries other seeds and more cases than the default run.
"""

import functools

import pytest
import torch

from mediamill.model.inputs import VisualInput
from mediamill.model.weights import hub_name
from tests.checkpoints import SHAPES, write_checkpoint
from tests.parity.both import Inputs, Ours, Reference
from tests.parity.cases import Case, case


@pytest.fixture(scope="session")
def checkpoints(tmp_path_factory, parity_seed):
    """Both implementations on the random checkpoint of a shape, by the shape's name."""

    @functools.cache
    def both(name: str) -> tuple[Ours, Reference]:
        folder = tmp_path_factory.mktemp("parity") / "checkpoint"
        write_checkpoint(folder, SHAPES[name], seed=parity_seed)
        return Ours(folder), Reference(folder)

    return both


class Run:
    """A case on one checkpoint, prepared by both implementations on first access."""

    def __init__(self, case: Case, ours: Ours, reference: Reference) -> None:
        self.case, self.ours, self.reference = case, ours, reference

    @functools.cached_property
    def prepared(self) -> tuple[Inputs, tuple[VisualInput, ...]]:
        return self.ours.prepare(self.case)

    @functools.cached_property
    def inputs(self) -> Inputs:
        return self.reference.prepare(self.case)

    @torch.no_grad()
    def logits(self, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
        """Of this project and of the reference: float32 [S, vocabulary]."""
        got = self.ours.model(dtype)(**self.prepared[0].batch).logits
        want = self.reference.model(dtype)(**self.reference.arguments(self.inputs)).logits
        return got[0].float(), want[0].float()


@pytest.fixture(scope="module")
def run(checkpoints, parity_case) -> Run:
    seed, number, total = parity_case
    names = list(SHAPES)
    # Neighbours share a checkpoint, so that few models are loaded.
    return Run(case(seed, number), *checkpoints(names[number * len(names) // total]))


def test_ids_grids_and_pixel_values_are_equal(run):
    got, want = run.prepared[0], run.inputs
    assert got.ids == want.ids, run.case.title
    assert got.pixels.keys() == want.pixels.keys()
    for name, values in want.pixels.items():
        assert torch.equal(got.pixels[name], values), f"{name} of {run.case.title}"


def test_logits_are_equal(run):
    got, want = run.logits(torch.float32)
    assert (got - want).abs().max() < 1e-4, run.case.title
    assert want.std() > 0.3, "logits of no variety prove nothing"


def test_greedy_tokens_are_equal(run):
    inputs, visuals = run.prepared
    assert run.ours.answer(run.case, inputs, visuals) == run.reference.answer(run.case, run.inputs)


def test_bfloat16_is_no_further_from_float32_than_the_references(run):
    exact = run.logits(torch.float32)[1]
    got, reference = run.logits(torch.bfloat16)
    assert (got - exact).norm() <= (reference - exact).norm()


@pytest.mark.every_third_case
def test_loss_and_gradients_are_equal(run):
    inputs = run.inputs
    model, reference = run.ours.model(torch.float32), run.reference.model(torch.float32)
    labels = torch.tensor([inputs.ids])
    pads = (model.config.image_token_id, model.config.video_token_id)
    labels[(labels == pads[0]) | (labels == pads[1])] = -100
    model.requires_grad_(True).zero_grad()
    reference.requires_grad_(True).zero_grad()
    got = model(**inputs.batch, labels=labels).loss
    want = reference(**run.reference.arguments(inputs), labels=labels).loss
    assert got.item() == pytest.approx(want.item(), rel=1e-5)
    got.backward()
    want.backward()
    gradients = {hub_name(name): parameter.grad for name, parameter in reference.named_parameters()}
    for name, parameter in model.named_parameters():
        expected = gradients[name]
        if expected is None:  # a chat of text only leaves the vision tower alone
            assert parameter.grad is None
            continue
        difference = (parameter.grad - expected).norm() / expected.norm()
        assert difference < 1e-5, f"{name} of {run.case.title}"

"""The whole way from files and a chat to the answer, against the reference, over random cases.

`make parity SEED=7 CASES=1000` tries other seeds and more cases than the default run.
"""

import functools

import pytest
import torch

from mediamill.model.inputs import VisualInput
from mediamill.model.weights import hub_name
from tests.checkpoints import SHAPES, write_checkpoint
from tests.parity.both import Inputs, Mine, Theirs
from tests.parity.cases import Case, case


@pytest.fixture(scope="session")
def checkpoints(tmp_path_factory, parity_seed):
    """Both implementations on the random checkpoint of a shape, by the shape's name."""

    @functools.cache
    def both(name: str) -> tuple[Mine, Theirs]:
        folder = tmp_path_factory.mktemp("parity") / "checkpoint"
        write_checkpoint(folder, SHAPES[name], seed=parity_seed)
        return Mine(folder), Theirs(folder)

    return both


class Run:
    """A case on one checkpoint, prepared by both sides when first asked for."""

    def __init__(self, case: Case, mine: Mine, theirs: Theirs) -> None:
        self.case, self.mine, self.theirs = case, mine, theirs

    @functools.cached_property
    def own(self) -> tuple[Inputs, tuple[VisualInput, ...]]:
        return self.mine.prepare(self.case)

    @functools.cached_property
    def inputs(self) -> Inputs:
        return self.theirs.prepare(self.case)

    @torch.no_grad()
    def logits(self, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
        """Of this project and of the reference: float32 [S, vocabulary]."""
        own = self.mine.model(dtype)(**self.own[0].batch).logits
        wanted = self.theirs.model(dtype)(**self.theirs.arguments(self.inputs)).logits
        return own[0].float(), wanted[0].float()


@pytest.fixture(scope="module")
def run(checkpoints, parity_case) -> Run:
    seed, number, total = parity_case
    names = list(SHAPES)
    # Neighbours share a checkpoint, so that few models are loaded.
    return Run(case(seed, number), *checkpoints(names[number * len(names) // total]))


def test_ids_grids_and_pixel_values_are_equal(run):
    own, wanted = run.own[0], run.inputs
    assert own.ids == wanted.ids, run.case.title
    assert own.pixels.keys() == wanted.pixels.keys()
    for name, values in wanted.pixels.items():
        assert torch.equal(own.pixels[name], values), f"{name} of {run.case.title}"


def test_logits_are_equal(run):
    own, wanted = run.logits(torch.float32)
    assert (own - wanted).abs().max() < 1e-4, run.case.title
    assert wanted.std() > 0.3, "logits of no variety prove nothing"


def test_greedy_tokens_are_equal(run):
    inputs, visuals = run.own
    assert run.mine.answer(run.case, inputs, visuals) == run.theirs.answer(run.case, run.inputs)


def test_bfloat16_is_no_further_from_float32_than_the_references(run):
    exact = run.logits(torch.float32)[1]
    own, reference = run.logits(torch.bfloat16)
    assert (own - exact).norm() <= (reference - exact).norm()


@pytest.mark.every_third_case
def test_loss_and_gradients_are_equal(run):
    inputs = run.inputs
    own, reference = run.mine.model(torch.float32), run.theirs.model(torch.float32)
    labels = torch.tensor([inputs.ids])
    pads = (own.config.image_token_id, own.config.video_token_id)
    labels[(labels == pads[0]) | (labels == pads[1])] = -100
    own.requires_grad_(True).zero_grad()
    reference.requires_grad_(True).zero_grad()
    got = own(**inputs.batch, labels=labels).loss
    wanted = reference(**run.theirs.arguments(inputs), labels=labels).loss
    assert got.item() == pytest.approx(wanted.item(), rel=1e-5)
    got.backward()
    wanted.backward()
    gradients = {hub_name(name): parameter.grad for name, parameter in reference.named_parameters()}
    for name, parameter in own.named_parameters():
        expected = gradients[name]
        if expected is None:  # a chat of text only leaves the vision tower alone
            assert parameter.grad is None
            continue
        difference = (parameter.grad - expected).norm() / expected.norm()
        assert difference < 1e-5, f"{name} of {run.case.title}"

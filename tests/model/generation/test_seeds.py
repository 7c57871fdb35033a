"""Random numbers by seed and step: those of the published generator, uniform and unrelated."""

import torch

from mediamill.model.generation.seeds import splitmix64, uniform

# The first outputs for the seed 1234567, as the generator's authors' C code prints them.
PUBLISHED = [
    6457827717110365317,
    3203168211198807973,
    9817491932198370423,
    4593380528125082431,
    16408922859458223821,
]
COUNT = 40_000


def draws(seeds, steps):
    return uniform(torch.as_tensor(seeds).expand(COUNT), torch.as_tensor(steps).expand(COUNT))


def chi_square(numbers, cells):
    """How far numbers in [0, 1) are from an even spread over `cells`, in chi-square."""
    counts = torch.histc(numbers, cells, 0, 1)
    expected = numbers.numel() / cells
    return float(((counts - expected) ** 2 / expected).sum())


def test_the_generator_is_the_published_one():
    outputs = splitmix64(torch.full((5,), 1234567), torch.arange(5))
    assert [output % 2**64 for output in outputs.tolist()] == PUBLISHED


def test_numbers_are_in_the_half_open_interval_for_any_seed():
    seeds = torch.tensor([0, 1, 2**63 - 1, 2**40])
    for step in (0, 1, 10**6):
        numbers = uniform(seeds, torch.full((4,), step))
        assert numbers.dtype == torch.float64
        assert ((numbers >= 0) & (numbers < 1)).all()
        assert len(set(numbers.tolist())) == 4


def test_steps_of_a_seed_and_neighbouring_seeds_are_uniform():
    for seeds, steps in ((7, torch.arange(COUNT)), (torch.arange(COUNT), 0)):
        # 99 degrees of freedom: above 149 once in a thousand times.
        assert chi_square(draws(seeds, steps), 100) < 149


def test_steps_and_seeds_are_independent():
    steps, seeds = torch.arange(COUNT), torch.arange(COUNT)
    pairs = [
        (draws(7, steps), draws(7, steps + 1)),
        (draws(7, steps), draws(8, steps)),
        (draws(seeds, 0), draws(seeds, 1)),
        (draws(seeds, 0), draws(seeds + 1, 0)),
        # A seed that was simply added to the step would give equal numbers here.
        (draws(seeds, steps), draws(seeds + 1, steps - 1 + 1)),
        (draws(7, steps + 1), draws(8, steps)),
    ]
    for first, second in pairs:
        assert not torch.equal(first, second)
        # The cells of a square; 399 degrees of freedom: above 490 once in a thousand times.
        joint = ((first * 20).floor() * 20 + (second * 20).floor() + 0.5) / 400
        assert chi_square(joint, 400) < 490

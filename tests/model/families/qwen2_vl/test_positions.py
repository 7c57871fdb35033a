"""The position rule, against a plain restatement of it, for any prompt."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mediamill.model.families.qwen2_vl.positions import mrope_positions

IMAGE, VIDEO = 7, 8
GRIDS = st.tuples(st.integers(1, 5), st.integers(1, 4), st.integers(1, 4))
PARTS = st.lists(st.one_of(st.integers(1, 5), GRIDS), max_size=7)


def restated(parts, rule):
    """Token by token, in the words of the paper."""
    ids, grids, positions, start = [], [], [], 0
    for part in parts:
        if isinstance(part, int):
            ids += [1] * part
            positions += [(start + i,) * 3 for i in range(part)]
            start += part
        else:
            t, h, w = part
            grids.append((t, 2 * h, 2 * w))
            ids += [VIDEO if t > 1 else IMAGE] * (t * h * w)
            positions += [
                (start + a, start + b, start + c)
                for a in range(t)
                for b in range(h)
                for c in range(w)
            ]
            start += max(t, h, w) if rule == "original" else max(h, w)
    return ids, grids, positions


@given(PARTS, st.sampled_from(["original", "hf5"]))
def test_positions_follow_the_rule(parts, rule):
    ids, grids, expected = restated(parts, rule)
    got, following = mrope_positions(ids, grids, (IMAGE, VIDEO), rule)
    assert got.T.tolist() == [list(p) for p in expected]
    assert following == (max(expected[-1]) + 1 if expected else 0)


@given(PARTS)
def test_original_positions_never_go_back_behind_what_was_used(parts):
    ids, grids, _ = restated(parts, "original")
    got, following = mrope_positions(ids, grids, (IMAGE, VIDEO))
    assert following == (int(got.max()) + 1 if ids else 0)


@pytest.mark.parametrize(
    ("ids", "grids"),
    [
        ([IMAGE] * 4, []),
        ([IMAGE] * 3, [(1, 4, 4)]),
        ([IMAGE] * 5, [(1, 4, 4)]),
        ([1, 1], [(1, 4, 4)]),
        ([IMAGE] * 4, [(0, 4, 4)]),
    ],
)
def test_pads_that_do_not_match_the_grids_are_refused(ids, grids):
    with pytest.raises(ValueError, match="grid"):
        mrope_positions(ids, grids, (IMAGE, VIDEO))

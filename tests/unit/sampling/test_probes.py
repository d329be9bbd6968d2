"""Pairs displaced both ways."""

import numpy as np
import pytest
from ase.build import bulk, molecule

from mlff_distiller.sampling import probes


def test_pairs_stand_around_their_structure():
    frames = [bulk("Cu", cubic=True), molecule("CH4")]
    pairs = list(probes(frames, 5, seed=2, displacement_A=0.03))
    assert len(pairs) == 5
    for number, (first, second) in enumerate(pairs):
        parent = frames[first.info["seed"]]
        middle = 0.5 * (first.positions + second.positions)
        np.testing.assert_allclose(middle, parent.positions, atol=1e-12)
        moved = first.positions - parent.positions
        assert np.sqrt((moved**2).sum(1).mean()) == pytest.approx(0.03)
        assert first.info == second.info
        assert first.info["probe"] == number
    assert {first.info["seed"] for first, _ in pairs} == {0, 1}
    again = list(probes(frames, 5, seed=2, displacement_A=0.03))
    for pair, same in zip(pairs, again, strict=True):
        assert np.array_equal(pair[0].positions, same[0].positions)
    directions = {str(first.positions - second.positions) for first, second in pairs}
    assert len(directions) == 5

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
    assert all(
        np.array_equal(a[0].positions, b[0].positions) for a, b in zip(pairs, again, strict=True)
    )
    directions = [first.positions - second.positions for first, second in pairs[::2]]
    assert not np.allclose(directions[0], directions[1]) or len(directions[0]) != len(directions[1])

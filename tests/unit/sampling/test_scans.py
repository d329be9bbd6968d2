"""Scans of a cell: what is asked for, and nothing of what has no cell."""

import numpy as np
import pytest
from ase.build import bulk, molecule

from mlff_distiller.sampling import ScanSettings, scan


def test_volumes_and_strains_are_those_asked_for():
    seed = bulk("Si", cubic=True)
    settings = ScanSettings(volumes=5, volume_range=(0.9, 1.1), strains=2, max_strain=0.02)
    frames, origins = scan([molecule("H2O"), seed], settings)
    assert len(frames) == len(origins) == 4 + 24  # the seed's own volume is the seed
    assert {origin["seed"] for origin in origins} == {1}
    volumes = [atoms.get_volume() / seed.get_volume() for atoms in frames[:4]]
    assert volumes == pytest.approx([0.9, 0.95, 1.05, 1.1])
    strains = np.array([origin["strain"] for origin in origins[4:]])
    assert np.array_equal(np.unique(np.abs(strains)), [0.0, 0.01, 0.02])
    assert (np.count_nonzero(strains, axis=1) == 1).all()
    for atoms, strain in zip(frames[4:], strains, strict=True):
        deformed = np.linalg.solve(seed.cell.array, atoms.cell.array) - np.eye(3)
        assert np.allclose(deformed[[0, 1, 2, 1, 0, 0], [0, 1, 2, 2, 2, 1]], strain)
        assert np.allclose(atoms.get_scaled_positions(), seed.get_scaled_positions())

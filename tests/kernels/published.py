"""Published NEP files, and crystals of the elements that they know."""

import numpy as np
from ase import Atoms
from ase.build import bulk
from tests.helpers import rattled

FILES = {
    "Si_2022_NEP4_3body.txt": ("Si",),
    "C_2022_NEP4.txt": ("C",),
    "Song-2024-UNEP-v1-AgAlAuCrCuMgMoNiPbPdPtTaTiVWZr.txt": ("Cu", "Ag", "Ta"),
}


def crystals(elements: tuple[str, ...]) -> dict[str, Atoms]:
    """Rattled, skewed, tiny and partly periodic cells of ``elements``."""
    rng = np.random.default_rng(5)
    base = bulk(elements[0], cubic=True)
    large = base * (2, 2, 2)
    large.numbers = rng.choice([Atoms(symbol).numbers[0] for symbol in elements], len(large))
    skewed = rattled(large, 0.1, seed=2)
    skewed.set_cell(large.cell.array + rng.normal(0, 0.4, (3, 3)), scale_atoms=True)
    slab = rattled(large, 0.1, seed=3)
    slab.center(vacuum=7.0, axis=2)
    slab.pbc = [True, True, False]
    wire = slab.copy()
    wire.center(vacuum=7.0, axis=1)
    wire.pbc = [True, False, False]
    return {
        "rattled": rattled(large, 0.15, seed=1),
        "skewed": skewed,
        "primitive cell, smaller than the cutoff": rattled(bulk(elements[0]), 0.05),
        "slab": slab,
        "wire": wire,
        "cluster": Atoms(large.numbers[:9], rattled(large, 0.1).positions[:9]),
    }

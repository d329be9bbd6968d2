"""Where a benchmark begins: crystals, water, molecules, slabs of any size, and the user's own."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from ase import Atoms
from ase.build import bulk, diamond100, fcc111, molecule

from mlff_distiller.errors import ConfigError
from mlff_distiller.labeling.structures import read_frames
from mlff_distiller.structure import enlarge, random_rotation

WATER_DENSITY = 0.997  # g/cm³ at 298 K
LARGEST = 20_000_000


@dataclass(frozen=True)
class System:
    """A structure to begin from, the same for everyone."""

    name: str
    atoms: Atoms
    heat: float = 1.0
    """Initial kinetic temperature over the wanted one: 2 for a crystal at rest, half of it goes."""
    compressibility_per_GPa: float = 0.01

    @property
    def has_pressure(self) -> bool:
        return bool(self.atoms.pbc.all() and self.atoms.cell.rank == 3)


def build_system(spec: str) -> System:
    """The system of ``NAME[:N]`` or ``FILE[:N]``: at least N atoms, whole cells of it.

    Raises
    ------
    ConfigError
        The name is unknown and there is no such file, or N is not a number of atoms.
    """
    name, colon, size = spec.rpartition(":")
    if not colon or not _is_number(size):
        name, size = spec, ""
    n_atoms = int(float(size)) if size else 0
    if size and not 1 <= n_atoms <= LARGEST:
        raise ConfigError(f"the size in {spec!r} is out of range", expected=f"1 to {LARGEST} atoms")
    if name in BUILT_IN:
        return BUILT_IN[name](n_atoms)
    if not Path(name).is_file():
        raise ConfigError(
            f"there is no system {name!r}",
            expected=f"one of {', '.join(BUILT_IN)}, or a file that ASE reads; then :ATOMS",
            found=spec,
        )
    atoms = enlarge(read_frames(name)[-1], n_atoms)
    return System(f"{Path(name).stem}:{len(atoms)}", atoms)


def _is_number(text: str) -> bool:
    try:
        return math.isfinite(float(text))
    except ValueError:
        return False


def _crystal(name: str, cell: Callable[[], Atoms], n_least: int) -> Callable[[int], System]:
    def build(n_atoms: int) -> System:
        atoms = enlarge(cell(), n_atoms or n_least)
        return System(f"{name}:{len(atoms)}", atoms, heat=2.0)

    return build


def _slab(name: str, cell: Callable[[], Atoms], n_least: int) -> Callable[[int], System]:
    def build(n_atoms: int) -> System:
        slab = cell()
        slab.center(vacuum=8.0, axis=2)
        slab.pbc = [True, True, False]
        atoms = enlarge(slab, n_atoms or n_least)
        return System(f"{name}:{len(atoms)}", atoms, heat=2.0)

    return build


def _molecule(name: str, formula: str) -> Callable[[int], System]:
    def build(n_atoms: int) -> System:
        atoms = enlarge(molecule(formula), n_atoms)
        return System(f"{name}:{len(atoms)}", atoms)

    return build


def _alkane(n_atoms: int) -> System:
    """C_n H_2n+2 in vacuum, all trans: 3 n + 2 atoms."""
    n = max(2, math.ceil(((n_atoms or 92) - 2) / 3))
    half = math.radians(112.7) / 2
    step, rise = 1.53 * math.sin(half), 1.53 * math.cos(half)
    symbols, positions = [], []
    for k in range(n):
        up = 1.0 if k % 2 else -1.0
        carbon = np.array([k * step, up * rise / 2, 0.0])
        hydrogens = [[0.0, up * 0.63, 0.89], [0.0, up * 0.63, -0.89]]
        for end, sign in ((0, -1.0), (n - 1, 1.0)):
            if k == end:
                hydrogens.append([sign * 0.91, -up * 0.61, 0.0])
        symbols += ["C"] + ["H"] * len(hydrogens)
        positions += [carbon, *(carbon + shift for shift in hydrogens)]
    return System(f"alkane:{len(symbols)}", Atoms(symbols, positions))


def _water(n_atoms: int) -> System:
    """Molecules on a grid at the density of the liquid, turned to keep out of each other's way.

    That is a start, not the liquid: it melts within a picosecond or so.
    """
    box = _water_box(4 if n_atoms == 0 or n_atoms > 81 else 3)
    atoms = enlarge(box, n_atoms)
    return System(f"water:{len(atoms)}", atoms, compressibility_per_GPa=0.45)


def _water_box(n: int) -> Atoms:
    rng = np.random.default_rng(0)
    water = molecule("H2O")
    own = water.positions - water.get_center_of_mass()
    edge = (water.get_masses().sum() / (0.60221408 * WATER_DENSITY)) ** (1 / 3)  # Å a molecule
    grid = edge * np.stack(np.meshgrid(*[np.arange(n)] * 3, indexing="ij"), -1).reshape(-1, 3)
    length = n * edge
    placed = np.stack([site + own @ random_rotation(rng).T for site in grid])
    for _ in range(4):  # each in turn takes the best of some orientations
        for k, site in enumerate(grid):
            others = np.delete(placed, k, axis=0).reshape(-1, 3)
            tries = np.stack([site + own @ random_rotation(rng).T for _ in range(12)] + [placed[k]])
            apart = tries[:, :, None, :] - others
            apart -= length * np.round(apart / length)
            nearest = np.linalg.norm(apart, axis=-1).min((1, 2))
            placed[k] = tries[np.argmax(nearest)]
    symbols = list(water.symbols) * len(grid)
    return Atoms(symbols, placed.reshape(-1, 3), cell=[length] * 3, pbc=True)


BUILT_IN: dict[str, Callable[[int], System]] = {
    "silicon": _crystal("silicon", lambda: bulk("Si", cubic=True), 64),
    "copper": _crystal("copper", lambda: bulk("Cu", cubic=True), 32),
    "salt": _crystal("salt", lambda: bulk("NaCl", "rocksalt", a=5.64, cubic=True), 64),
    "water": _water,
    "ethanol": _molecule("ethanol", "CH3CH2OH"),
    "benzene": _molecule("benzene", "C6H6"),
    "alkane": _alkane,
    "copper-slab": _slab("copper-slab", lambda: fcc111("Cu", (4, 4, 4), orthogonal=True), 64),
    "silicon-slab": _slab("silicon-slab", lambda: diamond100("Si", (2, 2, 8)), 32),
}
"""By name: makes a system of at least the given number of atoms; 0 means the usual size."""

"""A sound force field for solid and liquid argon, and the same with faults planted in it."""

import numpy as np
from ase import Atoms
from ase.build import bulk
from ase.calculators.calculator import Calculator, all_changes
from ase.stress import full_3x3_to_voigt_6_stress

from mlff_distiller.neighbors import find_pairs

EPSILON, SIGMA = 0.0104, 3.4


def argon(n: int = 2) -> Atoms:
    return bulk("Ar", cubic=True, a=5.26) * n


class Pairs(Calculator):
    """Lennard-Jones, brought to zero at the cutoff with two continuous derivatives."""

    implemented_properties = ("energy", "forces", "stress")
    smooth = True
    cutoff = 7.0

    def potential(self, r: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Energy of a pair and its derivative."""
        x = (SIGMA / r) ** 6
        energy = 4 * EPSILON * (x**2 - x)
        slope = 4 * EPSILON * (-12 * x**2 + 6 * x) / r
        if not self.smooth:
            return energy, slope
        t = np.clip((r - 0.7 * self.cutoff) / (0.3 * self.cutoff), 0, 1)
        off = 1 - t**3 * (10 - 15 * t + 6 * t**2)
        turn = -30 * t**2 * (1 - t) ** 2 / (0.3 * self.cutoff)
        return energy * off, slope * off + energy * turn

    def check_state(self, atoms, tol=0.0):
        """What changed, to the last bit: ASE's comparison takes as long as the forces do."""
        if self.atoms is None:
            return all_changes
        then, now = self.atoms, atoms
        same = {
            "positions": np.array_equal(then.positions, now.positions),
            "numbers": np.array_equal(then.numbers, now.numbers),
            "cell": np.array_equal(then.cell.array, now.cell.array),
            "pbc": np.array_equal(then.pbc, now.pbc),
        }
        return [name for name, equal in same.items() if not equal]

    def calculate(self, atoms=None, properties=("energy",), system_changes=all_changes):
        super().calculate(atoms, properties, system_changes)
        i, j, shifts = find_pairs(atoms.positions, atoms.cell.array, atoms.pbc, self.cutoff)
        vectors = atoms.positions[j] - atoms.positions[i] + shifts @ atoms.cell.array
        r = np.linalg.norm(vectors, axis=1)
        energy, slope = self.potential(r)
        pulls = (slope / r)[:, None] * vectors
        forces = np.zeros((len(atoms), 3))
        np.add.at(forces, i, pulls)
        self.results = {"energy": 0.5 * float(energy.sum()), "forces": forces}
        if atoms.cell.rank == 3:
            stress = 0.5 * np.einsum("pi,pj->ij", pulls, vectors) / atoms.get_volume()
            self.results["stress"] = full_3x3_to_voigt_6_stress(stress)
        self.spoil(atoms)

    def spoil(self, atoms: Atoms) -> None:
        """Where faults are planted."""


class NoisyForces(Pairs):
    """Unlike at every call, 1 meV/Å."""

    def __init__(self):
        super().__init__()
        self.rng = np.random.default_rng(0)

    def spoil(self, atoms):
        self.results["forces"] += self.rng.normal(size=(len(atoms), 3)) * 1e-3


class Hoarder(Pairs):
    """Keeps 4 kB of every call."""

    def __init__(self):
        super().__init__()
        self.kept = []

    def spoil(self, atoms):
        self.kept.append(np.full(512, float(len(self.kept))))


class FlippedStress(Pairs):
    def spoil(self, atoms):
        if "stress" in self.results:
            self.results["stress"] *= -1


class HardCutoff(Pairs):
    smooth = False
    cutoff = 6.2


class Float32Sum(Pairs):
    """Energies of 100 eV per atom, added up in float32."""

    def spoil(self, atoms):
        own = np.full(len(atoms), self.results["energy"] / len(atoms) - 100.0, dtype=np.float32)
        self.results["energy"] = float(np.add.reduce(own, dtype=np.float32))


class Swirl(Pairs):
    """Forces with a curl: direct predictions that are no gradient."""

    def spoil(self, atoms):
        x, y, _ = (2 * np.pi * atoms.get_scaled_positions()).T
        self.results["forces"][:, 0] += 0.003 * np.sin(2 * y + 1)
        self.results["forces"][:, 1] -= 0.003 * np.sin(2 * x + 1)


class Hole(Pairs):
    """The repulsive wall turns over at 2.6 Å."""

    def potential(self, r):
        energy, slope = super().potential(np.maximum(r, 2.6))
        inside = r < 2.6
        return (
            energy - np.where(inside, 5.0 * (r - 2.6) ** 2, 0),
            np.where(inside, -10.0 * (r - 2.6), slope),
        )

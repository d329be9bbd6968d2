"""Force fields with one fault each, as ASE calculators and as a plug-in that knows batches.

Copied by the tests into a folder of its own.
"""

import os
from dataclasses import replace

import numpy as np
from ase.calculators.calculator import all_changes
from ase.calculators.morse import MorsePotential

from mlff_distiller.teachers import ase
from mlff_distiller.teachers.family import Family


class Sound(MorsePotential):
    """Copper-like, without a fault."""

    def __init__(self):
        super().__init__(epsilon=0.3, r0=2.55, rho0=4.0)

    def calculate(self, atoms=None, properties=("energy",), system_changes=all_changes):
        super().calculate(atoms, properties, system_changes)
        for name in ("energy", "free_energy"):
            self.results[name] = float(self.results[name])
        self.spoil(self.results, self.atoms)

    def spoil(self, results, atoms):
        pass

    def add(self, energy, forces):
        for name in ("energy", "free_energy"):
            self.results[name] += float(energy)
        self.results["forces"] = self.results["forces"] + forces


class ForcesOff(Sound):
    def spoil(self, results, atoms):
        results["forces"] *= 1.02


class StressReversed(Sound):
    def spoil(self, results, atoms):
        results["stress"] *= -1


class StressInAnotherOrder(Sound):
    def spoil(self, results, atoms):
        results["stress"] = results["stress"][[0, 1, 2, 5, 3, 4]]


class InAField(Sound):
    """Where the system is matters."""

    def spoil(self, results, atoms):
        self.add(0.01 * atoms.positions[:, 2].sum(), [0, 0, -0.01])


class WithAxes(Sound):
    """So does its orientation."""

    def spoil(self, results, atoms):
        x = atoms.positions[:, 0] - atoms.positions[:, 0].mean()
        self.add(0.05 * (x**2).sum(), np.outer(-0.1 * x, [1, 0, 0]))


class WithNumbers(Sound):
    """So does which atom is the first."""

    def spoil(self, results, atoms):
        arm = atoms.positions[0] - atoms.positions.mean(0)
        share = (np.arange(len(atoms)) == 0) - 1 / len(atoms)
        self.add(0.05 * arm @ arm, -0.1 * np.outer(share, arm))


class WithoutImages(Sound):
    """An atom outside the cell is not found in it."""

    def spoil(self, results, atoms):
        outside = (np.abs(atoms.cell.scaled_positions(atoms.positions) - 0.5) > 0.5).any(1).sum()
        self.add(0.01 * outside * atoms.pbc.all(), 0.0)


class SharesByNumber(Sound):
    """Gives most of the energy to the last atom."""

    def spoil(self, results, atoms):
        shares = np.arange(1.0, len(atoms) + 1.0)
        results["energies"] = results["energy"] * shares / shares.sum()


class LeftHanded(Sound):
    """Divides by a signed volume."""

    def spoil(self, results, atoms):
        if atoms.pbc.all():
            results["stress"] *= np.sign(np.linalg.det(atoms.cell.array))


class SomebodyElse(Sound):
    """Another in every process."""

    def __init__(self):
        super().__init__()
        self.parameters["seed"] = os.getpid()


def resolve(name, argument):
    return name, {"factory": "broken_teachers:Sound", "shift": float(argument or 0)}


def load(arguments, device, allow_download):
    """Sound, for copper; in a batch, every energy is shifted by so many eV."""
    alone = ase.load(arguments, device, allow_download)

    def evaluate_many(frames, wanted):
        answers = [alone.evaluate(*question) for question in zip(frames, wanted, strict=True)]
        shift = arguments["shift"]
        return [
            replace(a, energy=a.energy + shift, free_energy=a.free_energy + shift) for a in answers
        ]

    return replace(alone, evaluate_many=evaluate_many, elements=[29])


FAMILY = Family("morse", "ase", "", "ase", "MIT", "", {"morse-copper": "Morse"}, resolve)

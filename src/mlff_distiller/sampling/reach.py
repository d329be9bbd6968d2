"""Reach: structures that thermal motion at the temperatures asked for can arrive at.

Atoms pushed far, or a student that errs and breaks bonds, give structures of an energy that the
teacher's dynamics would never have. They are worth a label, for students must know where not to go.
They do not say how good a student is where it will be used.
"""

from __future__ import annotations

from collections import defaultdict

import numpy as np
from ase import Atoms, units

from mlff_distiller.dataset import Dataset

_MOTIONS = 2.5
"""Within reach above the lowest energy, in units of 3/2 kT per atom, what motion holds on average.
Students' dynamics of crystals and molecules that hold together stays below 1.4; a crystal that
melts may pass 2."""


def reach_eV_per_atom(temperature_K: float) -> float:
    """How far above the lowest energy of its kind a structure may be, eV/atom."""
    return _MOTIONS * 1.5 * units.kB * temperature_K


def out_of_reach(labels: Dataset) -> np.ndarray:
    """(n,) bool: labels whose energy no dynamics at the hottest temperature of the set would have.

    Energies are compared with the lowest one of that composition, seed and pressure; frames of a
    student's final dynamics, which may be of any seed, with that of the seed least bound. The
    temperature is that of the labels' provenance: in a set that names none, none is out of reach.
    Reads the dataset once.
    """
    origins = labels.provenances()
    hottest = max((float(origin.get("temperature_K") or 0.0) for origin in origins), default=0.0)
    far = np.zeros(len(labels), dtype=bool)
    if hottest <= 0.0:
        return far
    energies, kinds = [], []
    lowest: dict[bytes, dict[tuple[object, ...], float]] = defaultdict(dict)
    for record, origin in zip(labels.iterate(), origins, strict=True):
        energy = float(record.labels["energy"]) / len(record.atoms)
        composition = _composition(record.atoms)
        own: tuple[object, ...] = ()
        if origin.get("source") != "student_md":
            own = (origin.get("seed"), origin.get("pressure_GPa") or 0.0)
            of_alike = lowest[composition]
            of_alike[own] = min(energy, of_alike.get(own, np.inf))
        energies.append(energy)
        kinds.append((composition, own))
    for k, (composition, own) in enumerate(kinds):
        of_alike = lowest[composition]
        least = of_alike.get(own, max(of_alike.values(), default=np.inf))
        far[k] = energies[k] - least > reach_eV_per_atom(hottest)
    return far


def _composition(atoms: Atoms) -> bytes:
    """The same for a cell and its repetitions."""
    counts = np.bincount(atoms.numbers)
    smallest: np.ndarray = counts // np.gcd.reduce(counts)
    return smallest.tobytes()

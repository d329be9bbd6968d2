"""Are the labels believable? Laws that need no second opinion; each breach names its frame."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mlff_distiller.dataset import Dataset, Record
from mlff_distiller.durable import write_json
from mlff_distiller.structure import atomic_state

_NET_FORCE = 0.01
"""|sum F| over sum |F|: nothing outside pulls. A teacher that derives forces keeps 1e-5."""
_SMALL_FORCE = 1e-3  # eV/Å an atom: below it the ratio is rounding
LARGEST_FORCE = 1e3
"""eV/Å: atoms closer than any core; no simulation comes there, and one such label spoils a fit."""
_FAR = 15.0
"""Robust standard deviations of an outlier; of a thousand normal ones the farthest is at 3.3."""
_ALWAYS_NEAR = 1.0  # eV per atom: hot or strained, but matter
_REWEIGHTED = 20  # times
_FEWEST = 20  # records whose median and spread mean something
_SHORT_STEP = 0.2
"""Å an atom moved at most: along longer ways forces are not monotonic."""
_ROUNDING = 2e-5  # eV per atom: sums in float32


@dataclass(frozen=True)
class Finding:
    """One label that breaks a law."""

    check: str
    """``net force``, ``large force``, ``outlier`` or ``energy and forces``."""
    record: int
    name: str
    """Its file and frame, or where in a tree or walk it is."""
    detail: str

    def __str__(self) -> str:
        return f"{self.name}: {self.detail}"


def write_findings(folder: Path) -> list[Finding]:
    """What `check_labels` finds in the dataset ``folder``, also written to its findings.json."""
    findings = check_labels(Dataset(folder))
    write_json(folder / "findings.json", [asdict(finding) for finding in findings])
    return findings


def check_labels(dataset: Dataset) -> list[Finding]:
    """Every breach in ``dataset``; reads it twice, some 10 µs per record.

    Net force: forces must sum to zero. Large force: no simulation comes there. Outlier: energy an
    atom, less one energy an element that fits most, far from all others. Energy and forces:
    between neighbouring frames of a tree or trajectory, in one cell, the energy must change by the
    forces' work. If forces change monotonically on the way from a to b, ``E_a - E_b`` lies between
    ``F_a . dr`` and ``F_b . dr``; what lies outside by more than the width of this interval is a
    breach.
    """
    findings, names, energies, counts, order = [], [], [], [], []
    for number, record in enumerate(dataset.iterate()):
        name = _name(number, record.provenance)
        names.append(name)
        forces = record.labels["forces"].astype(np.float64)
        net, total = np.linalg.norm(forces.sum(0)), np.linalg.norm(forces, axis=1).sum()
        if net > _NET_FORCE * total and net > _SMALL_FORCE * len(forces):
            detail = f"forces sum to {net:.3g} eV/Å, {net / total:.1%} of their sizes"
            findings.append(Finding("net force", number, name, detail))
        if (largest := float(np.abs(forces).max())) > LARGEST_FORCE:
            findings.append(Finding("large force", number, name, f"a force of {largest:.3g} eV/Å"))
        energies.append(float(record.labels["energy"]))
        counts.append(np.bincount(record.atoms.numbers, minlength=119))
        frame = record.provenance.get("frame", number)
        order.append((record.group, record.provenance.get("file", ""), frame, number))
    if len(energies) >= _FEWEST:
        findings += _outliers(np.array(energies), np.array(counts), names)
    return findings + _inconsistent(dataset, [row[-1] for row in sorted(order)], names)


def _name(number: int, provenance: Any) -> str:
    if "file" in provenance:
        return f"{provenance['file']}, frame {provenance['frame']}"
    words = [
        f"{key} {provenance[key]}"
        for key in ("source", "seed", "branch", "generation", "step", "walker", "segment")
        if key in provenance
    ]
    return f"record {number}" + (f" ({', '.join(words)})" if words else "")


def _outliers(energies: np.ndarray, counts: np.ndarray, names: list[str]) -> list[Finding]:
    """``energies`` (n,) eV and ``counts`` (n, 119) of atoms by element."""
    sizes = counts.sum(1)
    present, per_atom = counts[:, counts.any(0)] / sizes[:, None], energies / sizes
    weights = np.ones(len(sizes))
    for _ in range(_REWEIGHTED):  # towards the least sum of |rest|, which outliers do not bend
        fit = np.linalg.lstsq(present * weights[:, None], per_atom * weights, rcond=None)[0]
        rest = per_atom - present @ fit
        weights = 1.0 / np.sqrt(np.maximum(np.abs(rest), 1e-6))
    far = np.abs(rest - np.median(rest)) > max(_ALWAYS_NEAR, _FAR * _spread(rest))
    return [
        Finding("outlier", int(k), names[k], f"energy is off by {rest[k]:+.3g} eV per atom")
        for k in np.flatnonzero(far)
    ]


def _spread(values: np.ndarray) -> float:
    """Standard deviation of a normal distribution with their median absolute deviation."""
    return float(1.4826 * np.median(np.abs(values - np.median(values))))


def _inconsistent(dataset: Dataset, order: list[int], names: list[str]) -> list[Finding]:
    findings = []
    before: Record | None = None
    since = ""
    for number, now in zip(order, dataset.iterate(order), strict=True):
        if before is not None and before.group == now.group and _close(before, now):
            moved = now.atoms.positions - before.atoms.positions
            works = sorted(float((own.labels["forces"] * moved).sum()) for own in (before, now))
            gain = float(before.labels["energy"] - now.labels["energy"])
            outside = max(works[0] - gain, gain - works[1])
            width = works[1] - works[0]
            if outside > width + _ROUNDING * len(moved) + 1e-7 * abs(gain):
                detail = (
                    f"energy fell by {gain:.4g} eV since {since}, "
                    f"but forces did work of {works[0]:.4g} to {works[1]:.4g} eV"
                )
                findings.append(Finding("energy and forces", number, names[number], detail))
        before, since = now, names[number]
    return findings


def _close(a: Record, b: Record) -> bool:
    """Whether a path leads from ``a`` to ``b``: few steps, in one cell and one electronic state."""
    states = [atomic_state(own.atoms) for own in (a, b)]
    return (
        np.array_equal(a.atoms.numbers, b.atoms.numbers)
        and a.atoms.info == b.atoms.info
        and states[0].keys() == states[1].keys()
        and all(np.array_equal(states[0][name], states[1][name]) for name in states[0])
        and np.array_equal(a.atoms.cell.array, b.atoms.cell.array)
        and float(np.abs(a.atoms.positions - b.atoms.positions).max()) < _SHORT_STEP
    )

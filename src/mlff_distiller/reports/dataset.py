"""The page of a dataset: elements, sizes, energies, forces, distances, in numbers and plots."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import plotly.graph_objects as go
from ase import units
from ase.data import chemical_symbols

from mlff_distiller.dataset import Dataset
from mlff_distiller.neighbors import pair_vectors
from mlff_distiller.plotting import BLUE, GREEN, Panel, figure, markers, thinned
from mlff_distiller.reports.page import write
from mlff_distiller.sampling import descriptors

_NEAREST = 6.0
"""Å; an atom farther from all others counts as isolated."""
_MOST_DESCRIBED = 2000  # structures on the map


@dataclass(frozen=True)
class Overview:
    """Columns over all records; energies in eV, forces in eV/Å, distances in Å."""

    elements: dict[str, int]
    """Symbol -> atoms."""
    n_atoms: np.ndarray  # (n,)
    energies: np.ndarray  # (n,) per atom, less a fit of one energy per element
    forces: np.ndarray  # (n,) root mean square of a record
    largest_forces: np.ndarray  # (n,)
    nearest: np.ndarray  # (n,) shortest distance, NaN for an isolated atom
    pressures_GPa: np.ndarray  # (n,) NaN without stress
    groups: np.ndarray  # (n,)
    places: np.ndarray  # (m, 2) first two principal components of the descriptors, of some
    described: np.ndarray  # (m,) which records these are

    def facts(self) -> dict[str, Any]:
        """What a table shows."""
        return {
            "records": len(self.n_atoms),
            "atoms": int(self.n_atoms.sum()),
            "groups": len(np.unique(self.groups)),
            "elements": self.elements,
            "atoms per record": _quantiles(self.n_atoms),
            "energy relative to the elements, eV/atom": _quantiles(self.energies),
            "force, root mean square, eV/Å": _quantiles(self.forces),
            "largest force, eV/Å": _quantiles(self.largest_forces),
            "shortest distance, Å": _quantiles(self.nearest),
            "pressure, GPa": _quantiles(self.pressures_GPa),
        }


def _quantiles(values: np.ndarray) -> dict[str, float] | None:
    values = values[np.isfinite(values)]
    if not len(values):
        return None
    low, middle, high = np.quantile(values, [0.0, 0.5, 1.0])
    return {"least": float(low), "median": float(middle), "most": float(high)}


def survey(dataset: Dataset, on_record: Callable[[int], None] = lambda n: None) -> Overview:
    """One pass over ``dataset``; about 0.3 ms per record of 50 atoms."""
    n = len(dataset)
    counts = np.zeros((n, 119), dtype=np.int64)
    columns = np.full((5, n), np.nan)
    chosen = np.sort(np.random.default_rng(0).permutation(n)[:_MOST_DESCRIBED])
    kept, wanted = [], set(chosen.tolist())
    for number, record in enumerate(dataset.iterate()):
        atoms, forces = record.atoms, record.labels["forces"].astype(np.float64)
        counts[number] = np.bincount(atoms.numbers, minlength=119)
        sizes = np.linalg.norm(forces, axis=1)
        vectors = pair_vectors(atoms, _NEAREST)[2]
        columns[:4, number] = (
            float(record.labels["energy"]),
            np.sqrt((forces**2).mean()),
            sizes.max(),
            np.sqrt((vectors**2).sum(1).min()) if len(vectors) else np.nan,
        )
        if "stress" in record.labels:
            columns[4, number] = -np.trace(record.labels["stress"]) / 3.0 / units.GPa
        if number in wanted:
            kept.append(atoms)
        on_record(number + 1)
    n_atoms = counts.sum(1)
    energies, rms, largest, nearest, pressures = columns
    if n:
        share = counts / n_atoms[:, None]
        fit = np.linalg.lstsq(share, energies / n_atoms, rcond=None)[0]
        energies = energies / n_atoms - share @ fit
    totals = counts.sum(0)
    elements = {chemical_symbols[z]: int(totals[z]) for z in np.flatnonzero(totals)}
    return Overview(
        elements, n_atoms, energies, rms, largest, nearest, pressures, dataset.groups,
        _principal(descriptors(kept)), chosen,
    )  # fmt: skip


def _principal(features: np.ndarray) -> np.ndarray:
    """(m, 2) coordinates along the directions of largest variance."""
    if len(features) < 3:
        return np.zeros((len(features), 2))
    centred = features - features.mean(0)
    left, sizes, _ = np.linalg.svd(centred.astype(np.float64), full_matrices=False)
    places: np.ndarray = left[:, :2] * sizes[:2]
    return places


def panels(found: Overview) -> list[Panel]:
    """Every plot."""
    bars = go.Bar(x=list(found.elements), y=list(found.elements.values()), marker={"color": BLUE})
    return [
        Panel("Elements", figure([bars], {"title": "element"}, {"title": "atoms", "type": "log"})),
        _histogram("Sizes", found.n_atoms, "atoms per record"),
        _histogram(
            "Energies", found.energies, "energy (eV/atom)", "Less a fit of one per element."
        ),
        _histogram("Forces", found.forces, "root mean square force (eV/Å)"),
        _histogram("Shortest distances", found.nearest, "shortest distance (Å)"),
        _histogram("Pressures", found.pressures_GPa, "pressure (GPa)"),
        _coverage(found),
    ]


def _histogram(title: str, values: np.ndarray, label: str, note: str = "") -> Panel:
    values = values[np.isfinite(values)]
    if not len(values):
        return Panel(title, None)
    counts, edges = np.histogram(values, bins=min(60, max(5, round(2 * len(values) ** (1 / 3)))))
    middles, widths = 0.5 * (edges[1:] + edges[:-1]), np.diff(edges)
    bars = go.Bar(x=middles, y=counts, width=widths, marker={"color": GREEN})
    return Panel(title, figure([bars], {"title": label}, {"title": "records"}), note)


def _coverage(found: Overview) -> Panel:
    some = thinned(len(found.places))
    x, y = found.places[some].T
    cloud = markers(x, y, ("records", BLUE, "circle"), text=found.described[some])
    axes = [{"title": f"principal component {k}"} for k in (1, 2)]
    note = f"{len(some):,} records, by descriptors of their distances."
    return Panel("Coverage", figure([cloud], *axes), note)


def write_page(path: Path, found: Overview, name: str) -> None:
    """Write all numbers and plots of ``found`` as one HTML file."""
    facts = found.facts()
    write(
        path,
        "dataset.html.jinja",
        {"dataset": panels(found)},
        name=name,
        counts={key: facts.pop(key) for key in ("records", "atoms", "groups", "elements")},
        ranges=facts,
    )

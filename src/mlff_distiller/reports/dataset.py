"""What is in a dataset, in figures and plots: elements, sizes, energies, forces, distances."""

from __future__ import annotations

import html
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import plotly.graph_objects as go
import plotly.io
from ase import units
from ase.data import chemical_symbols

from mlff_distiller.dataset import Dataset
from mlff_distiller.neighbors import pair_vectors
from mlff_distiller.plotting import BLUE, GREEN, Panel, figure, markers, thinned
from mlff_distiller.sampling import descriptors

_NEAREST = 6.0
"""Å: atoms farther from all others count as alone."""
_MOST_DESCRIBED = 2000  # structures on the map


@dataclass(frozen=True)
class Overview:
    """Columns over all records; energies in eV, forces in eV/Å, distances in Å."""

    elements: dict[str, int]
    """Symbol -> atoms."""
    n_atoms: np.ndarray  # (n,)
    energies: np.ndarray  # (n,) an atom, less the fit of one energy an element
    forces: np.ndarray  # (n,) root mean square of a record
    largest_forces: np.ndarray  # (n,)
    nearest: np.ndarray  # (n,) shortest distance, NaN for an atom alone
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
            "atoms a record": _quantiles(self.n_atoms),
            "energy, eV an atom, less the elements'": _quantiles(self.energies),
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
    """One pass over ``dataset``; some 0.3 ms a record of 50 atoms."""
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
        _histogram("Sizes", found.n_atoms, "atoms a record"),
        _histogram("Energies", found.energies, "energy an atom, less the elements' (eV)"),
        _histogram("Forces", found.forces, "root mean square force (eV/Å)"),
        _histogram("Shortest distances", found.nearest, "shortest distance (Å)"),
        _histogram("Pressures", found.pressures_GPa, "pressure (GPa)"),
        _coverage(found),
    ]


def _histogram(title: str, values: np.ndarray, label: str) -> Panel:
    values = values[np.isfinite(values)]
    if not len(values):
        return Panel(title, None)
    counts, edges = np.histogram(values, bins=min(60, max(5, round(2 * len(values) ** (1 / 3)))))
    middles, widths = 0.5 * (edges[1:] + edges[:-1]), np.diff(edges)
    bars = go.Bar(x=middles, y=counts, width=widths, marker={"color": GREEN})
    return Panel(title, figure([bars], {"title": label}, {"title": "records"}))


def _coverage(found: Overview) -> Panel:
    some = thinned(len(found.places))
    x, y = found.places[some].T
    cloud = markers(x, y, ("records", BLUE, "circle"), text=found.described[some])
    axes = [{"title": f"principal component {k}"} for k in (1, 2)]
    note = f"{len(some):,} records, by descriptors of their distances."
    return Panel("Coverage", figure([cloud], *axes), note)


def page(found: Overview, name: str) -> str:
    """One HTML file of all plots, which loads nothing."""
    parts: list[str] = []
    for panel in panels(found):
        if panel.figure is None:
            continue
        drawn = plotly.io.to_html(
            panel.figure, full_html=False, include_plotlyjs=not parts, config={"displaylogo": False}
        )
        parts.append(f"<h2>{html.escape(panel.title)}</h2>{drawn}<p>{html.escape(panel.note)}</p>")
    style = "body{font-family:system-ui,sans-serif;max-width:60rem;margin:2rem auto;padding:0 1rem}"
    title = html.escape(f"Dataset {name}")
    return (
        f'<!doctype html><html lang="en"><meta charset="utf-8"><title>{title}</title>'
        f"<style>{style}</style><h1>{title}</h1>{''.join(parts)}</html>\n"
    )

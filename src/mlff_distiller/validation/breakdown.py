"""Where errors are: by element, direction, size of the force, distance.

The distance is that from what was learned: of an atom's surroundings, as the `densities` of
neighbours that structures are selected by, to the nearest surroundings of its element in the
training set, over the spread of those.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from ase import Atoms, units
from scipy.stats import spearmanr

from mlff_distiller.md.record import Array
from mlff_distiller.sampling.select import densities
from mlff_distiller.validation.accuracy import Answers, force_errors

_DECILES = 10
_MOST_POINTS = 1000
"""Points of the parity plot of force components."""
_MOST_FRAMES = 300
"""Frames of the training set, evenly taken, to which distances are measured."""
_AT_ONCE = 512


def breakdown(
    frames: Sequence[Atoms], theirs: Answers, mine: Answers, distance: Array | None = None
) -> dict[str, Any]:
    """Tables of ``theirs`` (the truth) and ``mine``, fit for JSON and for plotting.

    ``forces`` overall, and rows of the same names in ``by_element``, ``by_component``,
    ``by_force`` and, with the atoms' ``distance`` (n_atoms of all frames,), ``by_distance``: tenths
    of the atoms from the least to the most, with where they begin and end. ``energy`` and
    ``stress`` overall; ``frames`` one by one; ``parity``: some components of forces of both.
    """
    sizes = np.array([len(frame) for frame in frames])
    truth, found = np.concatenate(theirs.forces), np.concatenate(mine.forces)
    symbols = np.concatenate([frame.get_chemical_symbols() for frame in frames])
    size = np.linalg.norm(truth, axis=1)

    def row(own: Any) -> dict[str, float | int | None]:
        return {"n_atoms": len(truth[own]), **force_errors(truth[own], found[own])}

    tables: dict[str, Any] = {
        "n_frames": len(frames),
        "forces": row(slice(None)),
        "energy": _energy(theirs.energy / sizes, mine.energy / sizes),
        "stress": _stress(theirs.stress, mine.stress),
        "by_element": [
            {"element": str(symbol), **row(symbols == symbol)} for symbol in np.unique(symbols)
        ],
        "by_component": [
            {"component": name, **_scalars(truth[:, axis], found[:, axis])}
            for axis, name in enumerate("xyz")
        ],
        "by_force": _tenths(size, row, "eV_per_A"),
    }
    apart = np.linalg.norm(found - truth, axis=1)
    ends = np.cumsum(sizes)
    known = np.isfinite(distance) if distance is not None else np.zeros(len(truth), dtype=bool)
    if distance is not None:
        places = np.flatnonzero(known)
        tables["by_distance"] = _tenths(distance[known], lambda own: row(places[own]), "distance")
        tables["n_atoms_of_unknown_elements"] = int((~known).sum())
        tables["rank_correlation_of_error_and_distance"] = (
            float(spearmanr(distance[known], apart[known]).statistic)
            if len(np.unique(distance[known])) > 1 and len(np.unique(apart[known])) > 1
            else None
        )
    tables["frames"] = [
        {
            "frame": k,
            "energy_error_meV_per_atom": 1e3 * float(mine.energy[k] - theirs.energy[k]) / sizes[k],
            "forces_mae_meV_per_A": 1e3 * float(np.abs(found[own] - truth[own]).mean()),
            "mean_distance": float(distance[own][known[own]].mean())
            if distance is not None and known[own].any()
            else None,
        }
        for k, own in enumerate(slice(int(e - n), int(e)) for e, n in zip(ends, sizes, strict=True))
    ]
    some = np.unique(np.linspace(0, truth.size - 1, _MOST_POINTS).astype(int))
    tables["parity"] = {
        "element": symbols[some // 3].tolist(),
        "true_eV_per_A": truth.ravel()[some].round(5).tolist(),
        "found_eV_per_A": found.ravel()[some].round(5).tolist(),
    }
    return tables


def distance_to(training: Sequence[Atoms], frames: Sequence[Atoms]) -> Array | None:
    """`environment_distance` where there are training structures."""
    return environment_distance(frames, training) if training else None


def environment_distance(frames: Sequence[Atoms], training: Sequence[Atoms]) -> Array:
    """Each atom's distance from the training set, (n_atoms of all frames,); NaN: unknown element.

    ``min_k |rho_i - rho_k| / s`` over the training atoms k of i's element, with the `densities` rho
    and ``s² = <|rho_k - <rho>|²>``. 0 is a surrounding that was seen, 1 as far as those are from
    their mean. Of large sets some 300 frames are looked at. Cost: n_atoms times training atoms.
    """
    some = np.unique(np.linspace(0, len(training) - 1, _MOST_FRAMES).astype(int))
    training = [training[k] for k in some.tolist()]
    elements = sorted({int(z) for atoms in [*frames, *training] for z in np.unique(atoms.numbers)})
    numbers = [np.concatenate([atoms.numbers for atoms in part]) for part in (frames, training)]
    here, there = (
        np.concatenate([densities(atoms, elements) for atoms in part]).astype(np.float64)
        for part in (frames, training)
    )
    found = np.full(len(here), np.nan)
    for z in elements:
        asked, known = here[numbers[0] == z], there[numbers[1] == z]
        if not len(known) or not len(asked):
            continue
        centre = known.mean(0)
        spread = float(np.sqrt(((known - centre) ** 2).sum(1).mean()))
        found[numbers[0] == z] = _nearest(asked - centre, known - centre) / max(spread, 1e-6)
    return found


def _nearest(points: Array, others: Array) -> Array:
    squares = np.einsum("ij,ij->i", others, others)
    rows = []
    for start in range(0, len(points), _AT_ONCE):
        part = points[start : start + _AT_ONCE]
        to_all = squares - 2.0 * part @ others.T
        rows.append(to_all.min(1) + np.einsum("ij,ij->i", part, part))
    return np.asarray(np.sqrt(np.maximum(np.concatenate(rows), 0.0)))


def _energy(truth: Array, found: Array) -> dict[str, float | None]:
    """Per atom; ``offset`` is the mean difference, which no force feels, ``scatter`` the rest."""
    apart = 1e3 * (found - truth)
    return {
        "mae_meV_per_atom": float(np.abs(apart).mean()),
        "rmse_meV_per_atom": float(np.sqrt((apart**2).mean())),
        "offset_meV_per_atom": float(apart.mean()),
        "scatter_meV_per_atom": float(apart.std()),
        "r2": _r2(truth, found),
    }


def _stress(truth: Array, found: Array) -> dict[str, float | int | None] | None:
    known = np.isfinite(truth).all((1, 2)) & np.isfinite(found).all((1, 2))
    if not known.any():
        return None
    apart = (found[known] - truth[known]) / units.GPa
    return {
        "n_frames": int(known.sum()),
        "mae_GPa": float(np.abs(apart).mean()),
        "rmse_GPa": float(np.sqrt((apart**2).mean())),
        "r2": _r2(truth[known].ravel(), found[known].ravel()),
    }


def _scalars(truth: Array, found: Array) -> dict[str, float | None]:
    """Names as in `force_errors`; a component has no angle."""
    scale = float(np.abs(truth).sum())
    return {
        "forces_mae_meV_per_A": 1e3 * float(np.abs(found - truth).mean()),
        "forces_rmse_meV_per_A": 1e3 * float(np.sqrt(((found - truth) ** 2).mean())),
        "forces_r2": _r2(truth, found),
        "forces_fidelity": 1.0 - float(np.abs(found - truth).sum()) / scale if scale else None,
    }


def _tenths(
    values: Array, row: Callable[[np.ndarray], dict[str, Any]], unit: str
) -> list[dict[str, Any]]:
    order = np.argsort(values, kind="stable")
    parts = [part for part in np.array_split(order, _DECILES) if len(part)]
    return [
        {
            f"from_{unit}": float(values[part[0]]),
            f"to_{unit}": float(values[part[-1]]),
            **row(part),
        }
        for part in parts
    ]


def _r2(truth: Array, found: Array) -> float | None:
    scale = float(((truth - truth.mean()) ** 2).sum())
    return 1.0 - float(((found - truth) ** 2).sum()) / scale if scale > 0 else None

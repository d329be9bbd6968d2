"""What a structure and its displaced copies say: derivatives, smoothness, short range."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from ase import Atoms

from mlff_distiller.errors import DistillerError
from mlff_distiller.md.record import (
    ForceField,
)
from mlff_distiller.validation.derivatives import (
    force_agreement,
    straight_scan,
    stress_agreement,
    translation,
)
from mlff_distiller.validation.runs import plain
from mlff_distiller.validation.settings import ValidationSettings
from mlff_distiller.validation.short_range import (
    cold_curve,
    dimer_curves,
    shortest_distances,
)
from mlff_distiller.validation.verdict import Finding

_SCAN_POINTS, _SCAN_A, _N_SCANS = 120, 0.6, 2


def law_findings(
    force_field: ForceField, atoms: Atoms, settings: ValidationSettings
) -> tuple[dict[str, Finding], dict[str, Any]]:
    """Derivatives, smoothness and translations, at displaced copies of the structure."""
    rng = np.random.default_rng(settings.seed)
    frames = []
    for scale in (1.0, 2.0):
        frame = atoms.copy()
        frame.positions += rng.normal(size=(len(atoms), 3)) * scale * settings.rattle_A
        frames.append(frame)
    found: dict[str, Finding] = {}
    lines: list[dict[str, Any]] = []

    def ask(name: str, measure: Callable[[], Finding | None]) -> None:
        try:
            finding = measure()
        except DistillerError as error:
            finding = Finding(None, str(error).split("\n")[0])
        if finding is not None:
            found[name] = finding

    def stress() -> Finding | None:
        if not atoms.pbc.all():
            return None
        agreement = stress_agreement(force_field, frames)
        if agreement is None:
            return Finding(None, "it gives no stress")
        return Finding(agreement.relative_error)

    def jump() -> Finding:
        scans = []
        for atom in rng.choice(len(atoms), min(_N_SCANS, len(atoms)), replace=False):
            direction = np.zeros((len(atoms), 3))
            direction[atom] = rng.normal(size=3)
            scan = straight_scan(force_field, frames[0], direction, _SCAN_A, _SCAN_POINTS)
            scans.append((scan.jump_meV, f"atom {atom} moved by {scan.at_A:.3f} Å"))
            lines.append(
                {
                    "name": f"atom {atom} ({atoms.symbols[atom]})",
                    "x": plain(scan.distance),
                    "energy_eV": plain(scan.energy),
                    "slope_eV_per_A": plain(scan.slope),
                }
            )
        return Finding(*max(scans))

    ask(
        "force_derivative_error",
        lambda: Finding(force_agreement(force_field, frames, 6, rng).relative_error),
    )
    ask("stress_derivative_error", stress)
    ask("scan_jump_meV", jump)
    try:
        moved = translation(force_field, frames[0], rng, n_atoms=settings.large_atoms)
        found["translation_meV_per_atom"] = Finding(moved.energy_meV_per_atom)
        found["energy_noise_meV"] = Finding(moved.noise_meV, f"of {moved.n_atoms} atoms")
    except DistillerError as error:
        why = str(error).split("\n")[0]
        found |= {
            name: Finding(None, why) for name in ("translation_meV_per_atom", "energy_noise_meV")
        }
    laws = {name: finding.value for name, finding in found.items()}
    return found, {"laws": laws, "scans": lines}


def short_range_findings(
    force_field: ForceField, atoms: Atoms, data: Sequence[Atoms]
) -> tuple[dict[str, Finding], dict[str, Any]]:
    """Dimers of all pairs of elements, and compression, from the shortest distances in ``data``."""
    shortest = shortest_distances(data or [atoms])
    curves = dimer_curves(force_field, shortest)
    cold = cold_curve(force_field, atoms, shortest)
    found = {}
    if len(atoms) > 1:
        drops = [(*curve.drop, curve.name) for curve in curves]
        depth, where, name = max(drops) if drops else (None, 0.0, "no pair")
        found["dimer_drop_eV"] = Finding(depth, f"{name} at {where:.2f} Å")
        depth, where = cold.drop if cold is not None else (None, 0.0)
        found["compression_drop_eV_per_atom"] = Finding(depth, f"at {where:.2f} of all lengths")
    blocks = [
        {"name": one.name, "x": plain(one.distance), "energy_eV": plain(one.energy)}
        for one in [*curves, *([cold] if cold is not None else [])]
    ]
    shown = {"-".join(pair): round(distance, 4) for pair, distance in shortest.items()}
    return found, {"short_range": {"shortest_A": shown, "curves": blocks}}

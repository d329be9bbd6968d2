"""A force field beside its teacher: forces, distributions, diffusion, elasticity, vibrations."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from ase import Atoms

from mlff_distiller.errors import DistillerError
from mlff_distiller.md.record import (
    Array,
    ForceField,
    OnStep,
    Trajectory,
    simulate,
)
from mlff_distiller.md.statistics import Estimate
from mlff_distiller.validation.accuracy_checks import own_frames_findings
from mlff_distiller.validation.crystals import (
    crystal_frequencies,
    equation_of_state,
    harmonic_frequencies,
)
from mlff_distiller.validation.heat import heat_capacity
from mlff_distiller.validation.kinds import Kind
from mlff_distiller.validation.observables import (
    Difference,
    Distribution,
    bond_angles,
    differences,
    diffusion,
    rdfs,
    vibrational_spectrum,
)
from mlff_distiller.validation.pressure_checks import (
    density_finding,
    pressure_block,
    pressure_run,
)
from mlff_distiller.validation.runs import Runs, plain, some_frames, thermostat
from mlff_distiller.validation.settings import ValidationSettings
from mlff_distiller.validation.verdict import Finding

_MOST_FRAMES = 400
"""Frames that distributions are counted over."""


def distributions(trajectory: Trajectory) -> list[Distribution]:
    """All that one run shows."""
    stride = max(1, len(trajectory.time_ps) // _MOST_FRAMES)
    thin = trajectory.part(0, None, stride)
    return [*rdfs(thin), *bond_angles(thin), *vibrational_spectrum(trajectory)]


def teacher_findings(
    force_field: ForceField,
    teacher: ForceField,
    atoms: Atoms,
    runs: Runs,
    kind: Kind,
    settings: ValidationSettings,
    training: Sequence[Atoms] = (),
    on_step: OnStep = lambda done, total: None,
) -> tuple[dict[str, Finding], dict[str, Any]]:
    """Forces on the student's own frames, and observables of both."""
    frames = some_frames(runs.nvt, settings.rescored)
    found, tables = own_frames_findings(force_field, teacher, frames, training)
    errors = {name: x for name, x in tables.get("forces", {}).items() if name != "n_atoms"}
    ensemble, n, n_before = thermostat(settings.temperature_K[0], settings, settings.seed + 1000)
    every = settings.record_every
    whole = simulate(teacher, atoms, ensemble, n_before + n, every, on_step)
    own = whole.part(n_before // every) if whole.completed else None
    both = own is not None and runs.nvt.completed
    student_side = distributions(runs.nvt) if both else []
    teacher_side = distributions(own) if own is not None and both else []
    compared = differences(student_side, teacher_side)
    for prefix, name in (
        ("rdf", "rdf_difference_percent"),
        ("angle", "angle_difference_percent"),
        ("vibrational", "spectrum_difference_percent"),
    ):
        rows = [one for one in compared if one.name.startswith(prefix)]
        if rows or not both or prefix == "rdf":
            found[name] = _difference(rows)
    if kind == "liquid":
        found["diffusion_difference_percent"] = _diffusion(runs.nvt, own)
    numbers: dict[str, Any] = {"heat_capacity": heat_capacity([whole if own is None else own])}
    if runs.npt is not None:
        begin = whole.frame(-1) if whole.completed else atoms
        shorter = replace(settings, time_ps=settings.teacher_npt_ps or 0.5 * settings.time_ps)
        npt = pressure_run(teacher, begin, shorter, settings.seed + 3000, on_step)
        found["density_difference_percent"] = density_finding(runs.npt, npt, settings)
        numbers["pressure"] = pressure_block(npt)
    if kind == "crystal":
        numbers |= _solid(force_field, teacher, atoms, found)
    if kind in ("crystal", "molecule") and len(atoms) > 1:
        measure = crystal_frequencies if kind == "crystal" else harmonic_frequencies
        numbers |= _frequencies(force_field, teacher, atoms, measure, found)
    blocks = [
        {
            "name": one.name,
            "unit": one.unit,
            "x": plain(one.x),
            "student": plain(mine.mean),
            "student_error": plain(mine.error),
            "teacher": plain(one.mean),
            "teacher_error": plain(one.error),
        }
        for one in teacher_side
        for mine in student_side
        if mine.name == one.name
    ]
    return found, {
        "accuracy": {"student_md": tables} if tables else {},
        "teacher": {
            "student_md": errors,
            "teacher_completed": whole.completed,
            "differences": [
                {"name": d.name, "percent": d.percent, "noise_percent": d.noise_percent}
                for d in compared
            ],
            "distributions": blocks,
            **numbers,
        },
    }


_MOST_NOISE_PERCENT = 10.0
"""Halves of the teacher's run that differ by so much are no yardstick."""


def _difference(rows: Sequence[Difference]) -> Finding:
    if not rows:
        return Finding(None, "a run broke off, or was too short")
    loud = max(rows, key=lambda row: row.noise_percent)
    if loud.noise_percent > _MOST_NOISE_PERCENT:
        return Finding(
            None,
            f"{loud.name}: halves of the teacher's own run differ by {loud.noise_percent:.0f} %;"
            " run longer",
        )
    worst = max(rows, key=lambda row: row.beyond_noise)
    return Finding(
        worst.beyond_noise,
        f"{worst.name}: {worst.percent:.1f} %, of which the teacher's own scatter is"
        f" {worst.noise_percent:.1f} %",
    )


def _diffusion(student: Trajectory, teacher: Trajectory | None) -> Finding:
    """The worst element's, beyond three errors of the difference."""
    worst = Finding(None, "a run broke off, or was too short")
    if teacher is None or not student.completed:
        return worst
    for symbol in dict.fromkeys(student.atoms.get_chemical_symbols()):
        mine, theirs = diffusion(student, symbol), diffusion(teacher, symbol)
        if mine is None or theirs is None or theirs.value <= 0:
            return Finding(None, f"{symbol}: too short a run")
        error = float(np.hypot(mine.error, theirs.error))
        if error > theirs.value:
            return Finding(None, f"{symbol}: error bars as large as the thing; run longer")
        beyond = 100.0 * Estimate(mine.value, error).beyond_noise(theirs.value) / theirs.value
        if worst.value is None or beyond > worst.value:
            words = f"{symbol}: {mine.value:.3g} and {theirs.value:.3g} ± {error:.2g} Å²/ps"
            worst = Finding(beyond, words)
    return worst


def _solid(
    force_field: ForceField, teacher: ForceField, atoms: Atoms, found: dict[str, Finding]
) -> dict[str, Any]:
    names = ("volume_difference_percent", "bulk_modulus_difference_percent")
    try:
        mine, theirs = equation_of_state(force_field, atoms), equation_of_state(teacher, atoms)
    except DistillerError as error:
        found |= {name: Finding(None, str(error).split("\n")[0]) for name in names}
        return {}
    if mine is None or theirs is None:
        found |= {name: Finding(None, "energies have no minimum") for name in names}
        return {}
    pairs = (
        (mine.volume, theirs.volume, "Å³/atom"),
        (mine.bulk_modulus_GPa, theirs.bulk_modulus_GPa, "GPa"),
    )
    for name, (a, b, unit) in zip(names, pairs, strict=True):
        found[name] = Finding(100.0 * abs(a / b - 1.0), f"{a:.4g} and {b:.4g} {unit}")
    return {
        "equation_of_state": [
            {
                "volume_A3_per_atom": one.volume,
                "bulk_modulus_GPa": one.bulk_modulus_GPa,
                "volumes_A3_per_atom": plain(one.volumes),
                "energies_eV_per_atom": plain(one.energies),
            }
            for one in (mine, theirs)
        ]
    }


def _frequencies(
    force_field: ForceField,
    teacher: ForceField,
    atoms: Atoms,
    measure: Callable[[ForceField, Atoms], Array],
    found: dict[str, Finding],
) -> dict[str, Any]:
    names = ("frequency_difference_percent", "imaginary_frequency_per_cm")
    try:
        mine, theirs = measure(force_field, atoms), measure(teacher, atoms)
    except DistillerError as error:
        why = str(error).split("\n")[0]
        found |= {name: Finding(None, why) for name in names}
        return {}
    if mine.shape != theirs.shape:
        why = "relaxed structures have different symmetries"
        found |= {name: Finding(None, why) for name in names}
        return {}
    scale = float(np.abs(theirs).mean())
    percent = 100.0 * float(np.abs(mine - theirs).mean()) / scale
    largest = float(np.abs(mine - theirs).max())
    found[names[0]] = Finding(percent, f"at most {largest:.1f} cm⁻¹")
    below = max(0.0, float(min(0.0, theirs.min()) - mine.min()))
    found[names[1]] = Finding(below, f"lowest {mine.min():.1f} and {theirs.min():.1f} cm⁻¹")
    return {"frequencies_per_cm": [plain(mine), plain(theirs)]}

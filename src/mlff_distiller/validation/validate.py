"""``validate``: everything that applies to a force field and a structure, and the verdict."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from math import inf, isfinite
from typing import Any

from ase import Atoms

from mlff_distiller.md.record import ForceField, OnStep
from mlff_distiller.structure import default_time_step_fs
from mlff_distiller.validation.accuracy_checks import labelled_findings
from mlff_distiller.validation.dynamic_checks import dynamic_findings
from mlff_distiller.validation.elasticity import elastic_findings
from mlff_distiller.validation.heat import heat_capacity
from mlff_distiller.validation.kinds import kind_of
from mlff_distiller.validation.law_checks import law_findings, short_range_findings
from mlff_distiller.validation.leakage import leakage
from mlff_distiller.validation.memory import memory_findings
from mlff_distiller.validation.pressure_checks import has_pressure, under_pressure
from mlff_distiller.validation.runs import dynamics, some_frames
from mlff_distiller.validation.series import series
from mlff_distiller.validation.settings import ValidationSettings
from mlff_distiller.validation.teacher_checks import teacher_findings
from mlff_distiller.validation.verdict import Finding, judge

SCHEMA = 1
OnProgress = Callable[[str, int, int, str], None]


def validate(
    force_field: ForceField,
    atoms: Atoms,
    settings: ValidationSettings | None = None,
    *,
    teacher: ForceField | None = None,
    training: Sequence[Atoms] = (),
    test: Sequence[Atoms] = (),
    on_progress: OnProgress = lambda stage, done, total, news: None,
) -> dict[str, Any]:
    """Measure whether ``force_field`` obeys physics in ``atoms``, and how it resembles ``teacher``.

    Returns ``system``, ``measurements``, ``verdict``, and ``series`` for plots, which a certificate
    would be too large with; fit for JSON. Checks against a teacher and of leakage are made where
    there is one, and test structures. ``remarks`` of the verdict say where the teacher itself has a
    hole at short distance: its dynamics may fall into it, and is no yardstick then.

    Raises
    ------
    ConfigError
        A limit is of no check.
    """
    settings = settings or ValidationSettings()
    judge({}, settings.limits)
    kind = settings.kind or kind_of(atoms)
    step = settings.time_step_fs or default_time_step_fs(atoms)
    settings = replace(settings, time_step_fs=step, kind=kind)
    findings: dict[str, Finding] = {}
    measured: dict[str, Any] = {}
    remarks: list[str] = []

    def shown(stage: str) -> OnStep:
        return lambda done, total: on_progress(stage, done, total, "")

    def keep(own: dict[str, Finding], numbers: dict[str, Any]) -> None:
        findings.update(own)
        measured.update(numbers)

    runs = [
        dynamics(force_field, atoms, kelvin, settings, settings.seed + k, shown(f"{kelvin:g} K"))
        for k, kelvin in enumerate(settings.temperature_K)
    ]
    on_progress("laws", 0, 1, "")
    # Where a run broke, distances are those of the break.
    seen = some_frames(runs[0].nvt, 20) if runs[0].nvt.completed else [atoms]
    keep(*dynamic_findings(force_field, runs, settings))
    measured["heat_capacity"] = heat_capacity([run.nvt for run in runs])
    keep(*law_findings(force_field, atoms, settings))
    keep(*short_range_findings(force_field, atoms, [*training, *seen]))
    on_progress("laws", 1, 1, "")
    if has_pressure(kind, findings, settings):
        runs[0], own, numbers = under_pressure(
            force_field, runs[0], settings, shown("constant pressure")
        )
        keep(own, numbers)
    keep(*memory_findings(force_field, runs[0], settings, shown("memory")))
    if test:
        leak = leakage(test, training)
        findings["leaked_fraction"] = Finding(
            leak.fraction, f"test and training: {leak.pairs[:3].tolist()}"
        )
    if kind == "crystal":
        on_progress("elasticity", 0, 1, "")
        keep(*elastic_findings(force_field, teacher, atoms))
        on_progress("elasticity", 1, 1, "")
    if teacher is not None:
        keep(
            *teacher_findings(
                force_field,
                teacher,
                atoms,
                runs[0],
                kind,
                settings,
                training,
                shown("teacher"),
            )
        )
        theirs, numbers = short_range_findings(teacher, atoms, [*training, *seen])
        known = {name: own for name, own in theirs.items() if own.value not in (None, inf)}
        remarks = [f"the teacher itself: {why}" for why in judge(known, settings.limits)["reasons"]]
        measured["short_range"]["curves"] += [
            {**curve, "name": f"{curve['name']}, teacher"}
            for curve in numbers["short_range"]["curves"]
        ]
    own, tables = labelled_findings(force_field, test, training)
    findings.update(own)
    if tables:
        measured.setdefault("accuracy", {})["test"] = tables
    return {
        "schema": SCHEMA,
        "system": {
            "formula": atoms.get_chemical_formula(),
            "n_atoms": len(atoms),
            "kind": kind,
        },
        "measurements": _finite(measured),
        "verdict": judge(findings, settings.limits) | {"remarks": remarks},
        "series": series(runs),
    }


def _finite(value: Any) -> Any:
    """The same with None for NaN and infinity, which JSON does not have."""
    if isinstance(value, dict):
        return {key: _finite(own) for key, own in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(own) for own in value]
    return None if isinstance(value, float) and not isfinite(value) else value

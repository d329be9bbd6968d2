"""``validate``: everything that applies to a force field and a structure, and the verdict."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from math import isfinite
from typing import Any

from ase import Atoms

from mlff_distiller.evaluate.stability import default_time_step_fs
from mlff_distiller.evaluate.validation.accuracy_checks import labelled_findings
from mlff_distiller.evaluate.validation.dynamic_checks import dynamic_findings
from mlff_distiller.evaluate.validation.elasticity import elastic_findings
from mlff_distiller.evaluate.validation.heat import heat_capacity
from mlff_distiller.evaluate.validation.kinds import kind_of
from mlff_distiller.evaluate.validation.law_checks import law_findings, short_range_findings
from mlff_distiller.evaluate.validation.leakage import leakage
from mlff_distiller.evaluate.validation.memory import memory_findings
from mlff_distiller.evaluate.validation.pressure_checks import has_pressure, under_pressure
from mlff_distiller.evaluate.validation.runs import dynamics, some_frames
from mlff_distiller.evaluate.validation.series import series
from mlff_distiller.evaluate.validation.settings import ValidationSettings
from mlff_distiller.evaluate.validation.teacher_checks import teacher_findings
from mlff_distiller.evaluate.validation.trajectory import ForceField
from mlff_distiller.evaluate.verdict import Finding, judge

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
    there is one, and test structures.

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
    runs = []
    for number, kelvin in enumerate(settings.temperature_K):

        def on_step(done: int, total: int, stage: str = f"{kelvin:g} K") -> None:
            on_progress(stage, done, total, "")

        runs.append(
            dynamics(
                force_field,
                atoms,
                kelvin,
                settings,
                settings.seed + number,
                on_step,
            )
        )
    on_progress("laws", 0, 1, "")
    # Where a run broke, distances are those of the break.
    seen = some_frames(runs[0].nvt, 20) if runs[0].nvt.completed else [atoms]
    findings, measured = dynamic_findings(force_field, runs, settings)
    measured["heat_capacity"] = heat_capacity([run.nvt for run in runs])
    for own, numbers in (
        law_findings(force_field, atoms, settings),
        short_range_findings(force_field, atoms, [*training, *seen]),
    ):
        findings |= own
        measured |= numbers
    on_progress("laws", 1, 1, "")
    if has_pressure(kind, findings, settings):

        def on_pressure(done: int, total: int) -> None:
            on_progress("constant pressure", done, total, "")

        runs[0], own, numbers = under_pressure(force_field, runs[0], settings, on_pressure)
        findings |= own
        measured |= numbers

    def on_memory(done: int, total: int) -> None:
        on_progress("memory", done, total, "")

    own, numbers = memory_findings(force_field, runs[0], settings, on_memory)
    findings |= own
    measured |= numbers
    if test:
        leak = leakage(test, training)
        findings["leaked_fraction"] = Finding(
            leak.fraction, f"test and training: {leak.pairs[:3].tolist()}"
        )
    if kind == "crystal":
        on_progress("elasticity", 0, 1, "")
        own, numbers = elastic_findings(force_field, teacher, atoms)
        findings |= own
        measured |= numbers
        on_progress("elasticity", 1, 1, "")
    if teacher is not None:

        def on_teacher(done: int, total: int) -> None:
            on_progress("teacher", done, total, "")

        own, numbers = teacher_findings(
            force_field, teacher, atoms, runs[0], kind, settings, training, on_teacher
        )
        findings |= own
        measured |= numbers
    own, tables = labelled_findings(force_field, test, training)
    findings |= own
    if tables:
        measured["accuracy"] = {**measured.get("accuracy", {}), "test": tables}
    return {
        "schema": SCHEMA,
        "system": {
            "formula": atoms.get_chemical_formula(),
            "n_atoms": len(atoms),
            "kind": kind,
        },
        "measurements": _finite(measured),
        "verdict": judge(findings, settings.limits),
        "series": series(runs),
    }


def _finite(value: Any) -> Any:
    """The same with None for NaN and infinity, which JSON does not have."""
    if isinstance(value, dict):
        return {key: _finite(own) for key, own in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(own) for own in value]
    return None if isinstance(value, float) and not isfinite(value) else value

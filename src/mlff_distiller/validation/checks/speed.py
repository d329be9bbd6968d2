"""How long a step takes, and how much faster that is than the teacher's."""

from __future__ import annotations

from typing import Any

from mlff_distiller.deploy import StudentCalculator
from mlff_distiller.measure.machine import device_name
from mlff_distiller.validation.benchmark import speed_table
from mlff_distiller.validation.check import Check, Measured
from mlff_distiller.validation.remembering import unremembered
from mlff_distiller.validation.speed import ms_per_step
from mlff_distiller.validation.subject import Subject
from mlff_distiller.validation.trajectory import ForceField
from mlff_distiller.validation.verdict import Finding


def _measure(subject: Subject) -> Measured:
    """The smallest system judges: launch and bookkeeping weigh most there."""
    field, kelvin = subject.force_field, subject.settings.temperature_K[0]
    calculator = field.calculator
    own, theirs = ms_per_step(field, subject.atoms, kelvin), None
    found: dict[str, Finding] = {}
    rows: list[dict[str, Any]] = []
    is_student = isinstance(calculator, StudentCalculator)
    device = str(calculator.student.device) if isinstance(calculator, StudentCalculator) else ""
    if subject.teacher is not None:
        teacher = unremembered(subject.teacher.calculator)
        reference = ForceField(subject.teacher.name, teacher)
        theirs = ms_per_step(reference, subject.atoms, kelvin)
        if is_student:
            rows = speed_table(
                subject.atoms,
                teacher,
                calculator,
                subject.settings.speed_sizes,
                device,
                subject.progress("speed"),
            )
            found["speedup"] = Finding(rows[0]["speedup"], f"{rows[0]['n_atoms']} atoms, ASE")
    return Measured(
        found,
        {
            "speed": {
                "n_atoms": len(subject.atoms),
                "dynamics": "run_md" if is_student else "ase",
                "device": device_name(device) if device else "",
                "ms_per_step": own,
                "teacher_ms_per_step": theirs,
                "speedup": theirs / own if theirs and own else None,
            },
            "speeds": rows,
        },
    )


CHECK = Check(("speedup",), _measure, short=True)

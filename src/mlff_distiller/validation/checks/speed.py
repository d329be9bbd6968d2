"""How long a step takes, and how much faster that is than the teacher's."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from typing import Any

from ase import Atoms

from mlff_distiller.md.record import ForceField, ms_per_step
from mlff_distiller.measure.machine import device_name
from mlff_distiller.structure import enlarge
from mlff_distiller.validation.check import Check, Measured
from mlff_distiller.validation.remembering import unremembered
from mlff_distiller.validation.subject import Subject
from mlff_distiller.validation.verdict import Finding


def speed_table(
    seed: Atoms,
    teacher: ForceField,
    student: ForceField,
    sizes: Sequence[int],
    device: str,
    on_row: Callable[[int, int], None] = lambda done, total: None,
) -> list[dict[str, Any]]:
    """The ``speed`` rows of report.json: ``seed`` enlarged to each of ``sizes``, both in ASE.

    The two take turns at each size, so that a slow moment of the machine meets both.
    """
    systems: dict[int, Atoms] = {}
    for size in sizes:
        large = enlarge(seed, size)
        systems.setdefault(len(large), large)
    rows = []
    for index, (n_atoms, atoms) in enumerate(sorted(systems.items())):
        slow, fast = [], []
        for _ in range(3):
            slow.append(ms_per_step(teacher, atoms, seconds=0.0, samples=1, in_ase=True))
            fast.append(ms_per_step(student, atoms, seconds=0.02, samples=1, in_ase=True))
        pair = statistics.median(slow), statistics.median(fast)
        rows.append(
            {
                "system": atoms.get_chemical_formula(),
                "n_atoms": n_atoms,
                "device": device,
                "teacher_ms_per_step": pair[0],
                "student_ms_per_step": pair[1],
                "speedup": pair[0] / pair[1],
            }
        )
        on_row(index + 1, len(systems))
    return rows


def _measure(subject: Subject) -> Measured:
    """The smallest system judges: launch and bookkeeping weigh most there."""
    field, theirs, student = subject.force_field, None, subject.force_field.student
    device = str(student.device) if student is not None else ""
    found: dict[str, Finding] = {}
    rows: list[dict[str, Any]] = []
    own = _ms_per_step(field, subject)
    if subject.teacher is not None:
        teacher = ForceField(subject.teacher.name, unremembered(subject.teacher.calculator))
        theirs = _ms_per_step(teacher, subject)
        if student is not None:
            sizes, shown = subject.settings.speed_sizes, subject.progress("speed")
            rows = speed_table(subject.atoms, teacher, field, sizes, device, shown)
            words = f"{rows[0]['n_atoms']} atoms, in ASE"
            found["speedup"] = Finding(rows[0]["speedup"], words)
    block = {
        "n_atoms": len(subject.atoms),
        "dynamics": "ase" if student is None else "run_md",
        "device": device_name(device) if device else "",
        "ms_per_step": own,
        "teacher_ms_per_step": theirs,
        "speedup": theirs / own if theirs and own else None,
    }
    return Measured(found, {"speed": block, "speeds": rows})


def _ms_per_step(field: ForceField, subject: Subject) -> float | None:
    """None where the dynamics breaks."""
    try:
        return ms_per_step(field, subject.atoms, subject.settings.temperature_K[0])
    except Exception:  # whatever a foreign calculator raises: other checks say why
        return None


CHECK = Check(("speedup",), _measure, short=True)

"""The model card: what a stranger must know before using a student."""

from __future__ import annotations

from typing import Any


def model_card(report: dict[str, Any], config: dict[str, Any]) -> str:
    """``student/README.md`` from report.json and the student's config.json, in Markdown."""
    teacher, student, data = report["teacher"], report["student"], report["data"]
    rows = "\n".join(
        f"| {title} | {_number(own['forces_fidelity'], 4)} "
        f"| {_number(own['forces_mae_meV_per_A'], 1)} "
        f"| {_number(own['energy_mae_meV_per_atom'], 2)} "
        f"| {_number(own['stress_mae_GPa'], 3)} | {own['n_frames']} |"
        for title, own in (
            ("held-out branches", report["accuracy"]["test"]),
            ("the student's own MD", report["accuracy"]["student_md"]),
        )
    )
    speed = "\n".join(
        f"| {row['n_atoms']} | {row['device']} | {row['teacher_ms_per_step']:.3g} "
        f"| {row['student_ms_per_step']:.3g} | {row['speedup']:.0f} × |"
        for row in report["speed"]
    )
    checks = "\n".join(
        f"- {'passed' if check['passed'] else '**failed**'}: {check['name']} = "
        f"{_number(check['value'], 4)} (limit {check['limit']:g})"
        for check in report["verdict"]["checks"]
    )
    temperatures = ", ".join(f"{kelvin:g}" for kelvin in config["about"]["temperature_K"])
    stability = report["stability"]
    elements = ", ".join(student["elements"])
    exports = "".join(
        f"`{name}` is the same model for {who}.\n\n"
        for name, who in config.get("exports", {}).items()
    )
    return f"""# {elements}: a {student["architecture"]} student of {teacher["name"]}

Verdict: **{report["verdict"]["status"]}**.

{checks}

```python
from mlff_distiller import StudentCalculator
atoms.calc = StudentCalculator("path/to/this/folder")
```

{exports}## Teacher

{teacher["name"]} ({teacher["family"]} {teacher["version"]}); licence: {teacher["licence"]}.
Weights (sha256): {teacher["weights_sha256"] or "none"}. What the teacher gets wrong, the student
gets wrong too. Its licence may bind what you do with this student.

## Domain

Elements {elements}; {data["n_labels"]} labels ({data["n_train"]} trained on)
of structures sampled at {temperatures} K, {data["teacher_seconds"]:.0f} s of the teacher's time.
Cutoff {student["cutoff"]:g} Å, {student["n_parameters"]} parameters. Outside these structures'
neighbourhood (other phases, defects, reactions, higher temperatures) it has not been tested.
Neutral systems only.

## Errors against the teacher

| frames | forces fidelity | forces MAE (meV/Å) | energy MAE (meV/atom) | stress MAE (GPa) | n |
|---|---|---|---|---|---|
{rows}

NVE at {stability["temperature_K"]:g} K, {stability["n_steps"]} steps of
{stability["time_step_fs"]:g} fs:
drift {_number(stability["nve_drift_meV_per_atom_per_ps"], 5)} meV/atom/ps, fluctuation
{_number(stability["nve_fluctuation_meV_per_atom"], 4)} meV/atom.

## Speed (ASE velocity Verlet, ms per step)

| atoms | device | teacher | student | ratio |
|---|---|---|---|---|
{speed}
"""


def _number(value: float | None, digits: int) -> str:
    return "not measured" if value is None else f"{value:.{digits}f}"

"""The evaluation of a student: accuracy, stability, observables, speed, verdict."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Annotated, Any

import numpy as np
from ase import Atoms
from pydantic import ConfigDict, Field
from pydantic.dataclasses import dataclass as validated

from mlff_distiller.batch import Batch
from mlff_distiller.dataset import Dataset, Split
from mlff_distiller.deploy import StudentCalculator
from mlff_distiller.errors import DistillerError
from mlff_distiller.structure import default_time_step_fs
from mlff_distiller.students import Student
from mlff_distiller.teachers import TeacherCalculator
from mlff_distiller.validation.accuracy import Comparison, compare, force_errors
from mlff_distiller.validation.benchmark import speed_table
from mlff_distiller.validation.evidence import Curve, Evidence, Sampling, Trajectory
from mlff_distiller.validation.physics import msd, rdf
from mlff_distiller.validation.stability import Run, run_nve
from mlff_distiller.validation.verdict import Limits, verdict

REPORT_SCHEMA = 1
_MOST_RUNS = 3

Positive = Annotated[float, Field(gt=0)]


@validated(frozen=True, config=ConfigDict(extra="forbid"))
class EvaluationSettings:
    """How the student is tested. None: from the data.

    ``temperature_K`` None is the highest sampling temperature; ``time_step_fs`` None is 0.5 with
    hydrogen and 1 without.
    """

    temperature_K: Positive | None = None
    time_ps: Positive = 5.0
    equilibration_ps: Annotated[float, Field(ge=0)] = 1.0
    time_step_fs: Positive | None = None
    n_frames: Annotated[int, Field(ge=2)] = 20
    speed_sizes: tuple[Annotated[int, Field(ge=1)], ...] = (64, 216, 512)
    limits: Limits = field(default_factory=Limits)


@dataclass(frozen=True, eq=False)
class Assessment:
    """``report`` is the content of report.json; the rest is what its plots are drawn from."""

    report: dict[str, Any]
    parity: dict[str, Any]
    run: Run
    sampling: Sampling
    curves: dict[str, Curve]

    def evidence(
        self, learning: Sequence[dict[str, Any]], rounds: Sequence[dict[str, Any]] = ()
    ) -> Evidence:
        run = self.run
        trajectory = Trajectory(run.time_ps, run.total_energy, run.temperatures, run.drift)
        return Evidence(
            self.parity,
            learning,
            trajectory,
            self.sampling,
            self.curves["rdf"],
            self.curves["msd"],
            rounds,
        )


def assess(
    seeds: Sequence[Atoms],
    labels: Dataset,
    split: Split,
    student: Student,
    calculator: StudentCalculator,
    teacher: TeacherCalculator,
    score: Callable[[Sequence[Atoms]], list[Batch]],
    settings: EvaluationSettings,
    temperature_K: float,
    seed: int,
    on_progress: Callable[[str, int, int, str], None],
) -> Assessment:
    """Evaluate ``student`` on held-out labels and on its own dynamics, beside its teacher.

    ``score`` has the teacher label structures. The stability figures are those of the run with
    the largest drift, or of the first that did not complete.
    """
    held_out = compare(student, labels.read(split.test).systems())
    runs = student_runs(seeds, calculator, settings, temperature_K, seed, on_progress)
    own_frames = [atoms for run in runs for atoms in run.frames]
    own = compare(student, score(own_frames)) if own_frames else None
    worst = min(runs, key=lambda run: (run.completed, -abs(run.drift or np.inf)))
    speed = speed_table(
        seeds[0],
        teacher,
        calculator,
        settings.speed_sizes,
        str(student.device),
        lambda done, total: on_progress("speed", done, total, ""),
    )
    radii, g = rdf(runs[0].frames)
    moved = msd(runs[0].frames)
    span = runs[0].n_steps * runs[0].time_step_fs * 1e-3
    times = np.linspace(0.0, span, len(moved) + 1)[1:]
    report = {
        "schema": REPORT_SCHEMA,
        "teacher": _teacher_block(teacher),
        "student": {
            "architecture": student.architecture,
            "preset": "default",
            "n_parameters": sum(parameter.numel() for parameter in student.parameters()),
            "cutoff": student.cutoff,
            "elements": list(student.elements),
        },
        "data": _data_block(labels, split),
        "accuracy": {"test": held_out.errors, "student_md": _errors(own)},
        "stability": {
            "ensemble": "NVE",
            "n_steps": worst.n_steps,
            "completed": worst.completed,
            "time_step_fs": worst.time_step_fs,
            "temperature_K": worst.temperature_K,
            "nve_drift_meV_per_atom_per_ps": worst.drift,
            "nve_fluctuation_meV_per_atom": worst.fluctuation,
        },
        "observables": {
            "rdf": {"r_A": radii.round(4).tolist(), "g": g.round(5).tolist()},
            "msd": {"time_ps": times.round(5).tolist(), "msd_A2": moved.round(6).tolist()},
        },
        "speed": speed,
    }
    report["verdict"] = verdict(report, settings.limits)
    parity = {"test": held_out.parity} | ({} if own is None else {"student_md": own.parity})
    curves = {"rdf": Curve(radii, g), "msd": Curve(times, moved)}
    return Assessment(report, parity, worst, sampling_evidence(labels, split, student), curves)


def student_runs(
    seeds: Sequence[Atoms],
    calculator: StudentCalculator,
    settings: EvaluationSettings,
    temperature_K: float,
    seed: int,
    on_progress: Callable[[str, int, int, str], None],
) -> list[Run]:
    """NVE runs of the student from up to three of the seeds."""
    chosen = [
        seeds[k] for k in np.unique(np.linspace(0, len(seeds) - 1, _MOST_RUNS).round().astype(int))
    ]
    runs = []
    for index, atoms in enumerate(chosen):

        def on_step(done: int, total: int, index: int = index) -> None:
            on_progress("student MD", index * total + done, len(chosen) * total, "")

        runs.append(
            run_nve(
                atoms,
                calculator,
                temperature_K=temperature_K,
                time_ps=settings.time_ps,
                time_step_fs=settings.time_step_fs or default_time_step_fs(atoms),
                equilibration_ps=settings.equilibration_ps,
                n_frames=max(1, settings.n_frames // len(chosen)),
                seed=seed + index,
                on_step=on_step,
            )
        )
        if runs[-1].why:
            on_progress("student MD", 1, 1, runs[-1].why)
    return runs


def _errors(own: Comparison | None) -> dict[str, Any]:
    """The ERRORS block; without frames every figure is null, and its check fails."""
    if own is not None:
        return own.errors
    names = [*force_errors(np.zeros((1, 3)), np.zeros((1, 3)))]
    return {"n_frames": 0, **dict.fromkeys(["energy_mae_meV_per_atom", *names, "stress_mae_GPa"])}


def _teacher_block(teacher: TeacherCalculator) -> dict[str, Any]:
    identity = asdict(teacher.identity)
    names = ("name", "family", "version", "weights_sha256", "licence", "device")
    return {name: identity[name] for name in names}


def _data_block(labels: Dataset, split: Split) -> dict[str, Any]:
    seconds = [labels.provenance(index).get("seconds", 0.0) for index in range(len(labels))]
    return {
        "n_labels": len(labels),
        "n_disputed": len(labels) - len(split.train) - len(split.validation) - len(split.test),
        "n_train": len(split.train),
        "n_validation": len(split.validation),
        "n_test": len(split.test),
        "teacher_seconds": float(np.sum(seconds)),
    }


def sampling_evidence(labels: Dataset, split: Split, student: Student) -> Sampling:
    """Energy and largest force of every label, by branch, generation and part of the split."""
    parts = np.full(len(labels), "train", dtype=object)
    parts[split.validation], parts[split.test] = "validation", "test"
    energies, largest = [], []
    for start in range(0, len(labels), 512):
        for frame in labels.read(np.arange(start, min(start + 512, len(labels)))).systems():
            baseline = student.reference_energies.cpu()[
                student.types_of_numbers.cpu()[frame.atomic_numbers]
            ].sum()
            energies.append(float(frame.labels["energy"][0] - baseline) / frame.n_atoms)
            largest.append(float(frame.labels["forces"].norm(dim=1).max()))
    origins = [labels.provenance(index) for index in range(len(labels))]
    energy = np.array(energies)
    if not len(energy):
        raise DistillerError("the dataset is empty", expected="at least one label")
    return Sampling(
        1e3 * (energy - energy.min()),
        np.array(largest),
        [f"{origin.get('seed', 0)}.{origin.get('branch', 0)}" for origin in origins],
        np.array([float(origin.get("generation", np.nan)) for origin in origins]),
        [str(origin.get("source", "")) for origin in origins],
        parts.tolist(),
    )

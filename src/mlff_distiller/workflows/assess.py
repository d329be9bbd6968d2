"""A student's assessment by `distill`: the short profile of `validate`, and report.json from it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from ase import Atoms

from mlff_distiller.dataset import Dataset, Split, input_hash
from mlff_distiller.deploy import StudentCalculator
from mlff_distiller.errors import DistillerError, TeacherError
from mlff_distiller.labeling import Labeler, open_labels
from mlff_distiller.md.record import ForceField, Trajectory
from mlff_distiller.reports.evidence import Curve, Evidence, ParitySet, Sampling
from mlff_distiller.reports.evidence import Trajectory as Drawn
from mlff_distiller.students import Student
from mlff_distiller.teachers import TeacherCalculator
from mlff_distiller.validation.accuracy import Answers, Compared, no_errors
from mlff_distiller.validation.checks import CHECKS
from mlff_distiller.validation.checks.distributions import rdfs
from mlff_distiller.validation.checks.held_out import MOST_FRAMES as MOST_TEST
from mlff_distiller.validation.series import series_of
from mlff_distiller.validation.settings import ValidationSettings
from mlff_distiller.validation.subject import Subject
from mlff_distiller.validation.validate import NOTHING, Examined, examine, summary, worst_of
from mlff_distiller.validation.verdict import Finding, judge
from mlff_distiller.workflows.config import Config
from mlff_distiller.workflows.train import OnProgress

REPORT_SCHEMA = 1
MOST_STRUCTURES = 3
"""Seeds whose dynamics is looked at, evenly spaced over all."""
MOST_TRAINING = 300
"""Training structures, evenly spaced, that distances of environments are taken to."""
_LEAST_FRAMES = 8
"""Frames of each that the teacher scores."""
_SCORED_AT_ONCE = 8
_MOST_FRAMES = 200
"""Frames that curves are counted over."""


@dataclass(frozen=True)
class Assessment:
    """``report`` is the content of report.json, ``certificate`` that of certificate.json."""

    report: dict[str, Any]
    certificate: dict[str, Any]
    series: dict[str, Any]
    evidence: Evidence
    own: Compared | None
    """Frames of the student's own dynamics, and both answers; None where there are none."""
    speed: Examined
    """What was found of its speed, which is the same for every student of its name."""


def assess(
    out: Path,
    seeds: Sequence[Atoms],
    labels: Dataset,
    split: Split,
    student: Student,
    teacher: TeacherCalculator,
    config: Config,
    on_progress: OnProgress,
    *,
    speed: Examined = NOTHING,
    seed: int | None = None,
) -> Assessment:
    """Examine ``student`` in up to three of ``seeds``; frames of its MD go to ``out/student_md``.

    Each check has the value that `validate` finds in the same structure with the same settings. Of
    several structures the worst counts. ``speed`` is what an earlier call found; ``seed`` that of
    the dynamics, by default ``config.seed``.
    """
    calculator = StudentCalculator(student, device=config.device)
    field = ForceField("student", calculator)
    chosen = some_of(seeds)
    settings = short_settings(config, len(chosen))
    settings = settings if seed is None else replace(settings, seed=seed)
    places = np.unique(np.linspace(0, len(split.train) - 1, MOST_TRAINING).round().astype(int))
    training = labels.read(split.train[places]).to_atoms()
    test = labels.read(split.test[:: max(1, len(split.test) // MOST_TEST)]).to_atoms()
    with open_labels(out / "student_md", teacher.identity) as writer:
        score = _scorer(Labeler(writer, teacher), on_progress)
        subjects = [
            Subject(
                field,
                atoms,
                settings,
                ForceField(teacher.identity.name, teacher),
                training,
                test,
                score,
                on_progress,
            )
            for atoms in chosen
        ]
        found = [examine(subjects[0], "short", speed)]
        # Errors on the test set and the speed belong to the student, not to one of its structures.
        shared = ("test_forces_fidelity", "speedup")
        known = {name: found[0].findings[name] for name in shared if name in found[0].findings}
        found += [examine(subject, "short", Examined(known)) for subject in subjects[1:]]
    named = {f"structure {k} ({s.atoms.get_chemical_formula()})": k for k, s in enumerate(subjects)}
    worst = worst_of({name: found[k].findings for name, k in named.items()})
    verdict = judge(worst, settings.limits)
    report = {
        "schema": REPORT_SCHEMA,
        "certificate": "certificate.json",
        "teacher": _teacher_block(teacher),
        "student": _student_block(student),
        "data": _data_block(labels, split, config),
        "accuracy": _accuracy(subjects),
        "error_estimates": found[0].measurements.get("error_estimates"),
        "stability": _stability(subjects, found),
        "observables": observables(subjects[0].nve[0]),
        "speed": found[0].measurements.get("speeds", []),
        "verdict": verdict,
    }
    certificate = {
        **summary(subjects[0], found[0], "short"),
        "verdict": {**verdict, "remarks": []},
        "settings": asdict(settings),
        "dtype": field.dtype,
        "teacher": asdict(teacher.identity),
        "structures": [
            structure_block(subject, one) for subject, one in zip(subjects, found, strict=True)
        ],
    }
    return Assessment(
        report,
        certificate,
        series_of(subjects[0]),
        _evidence(subjects, found, report, sampling_evidence(labels, split, student), student),
        _joined(own) if (own := _own_frames(subjects)) else None,
        _speed_of(found[0]),
    )


def _speed_of(found: Examined) -> Examined:
    findings = {name: own for name, own in found.findings.items() if name == "speedup"}
    names = ("speed", "speeds")
    measured = {name: found.measurements[name] for name in names if name in found.measurements}
    return Examined(findings, measured) if findings else NOTHING


def some_of(seeds: Sequence[Atoms]) -> list[Atoms]:
    """Up to three, evenly spaced."""
    places = np.unique(np.linspace(0, len(seeds) - 1, MOST_STRUCTURES).round().astype(int))
    return [seeds[k] for k in places.tolist()]


def short_settings(config: Config, n_structures: int = 1) -> ValidationSettings:
    """How ``config`` has its student examined, and how `validate` examines it by default."""
    own = config.evaluation
    return ValidationSettings(
        temperature_K=(own.temperature_K or max(config.sampling.temperature_K),),
        nve_ps=own.time_ps,
        equilibration_ps=own.equilibration_ps,
        time_step_fs=own.time_step_fs,
        rescored=max(min(own.n_frames, _LEAST_FRAMES), own.n_frames // n_structures),
        speed_sizes=own.speed_sizes,
        limits=own.limits.by_check(),
        seed=config.seed,
    )


def _scorer(
    label: Labeler, on_progress: OnProgress
) -> Callable[[Sequence[Atoms]], tuple[list[Atoms], Answers]]:
    def score(frames: Sequence[Atoms]) -> tuple[list[Atoms], Answers]:
        kept, energies, forces, stresses = [], [], [], []
        for start in range(0, len(frames), _SCORED_AT_ONCE):
            part = frames[start : start + _SCORED_AT_ONCE]
            origins = [
                {"source": "student_md", "seed": 0, "frame": start + k} for k in range(len(part))
            ]
            for atoms, answer in zip(part, label(part, origins), strict=True):
                if answer is not None:
                    kept.append(atoms)
                    energies.append(float(answer["energy"]))
                    forces.append(np.asarray(answer["forces"], dtype=np.float64))
                    stresses.append(answer.get("stress", np.full((3, 3), np.nan)))
            on_progress("re-score", start + len(part), len(frames), label.news)
        if not kept:
            raise TeacherError(
                "the teacher gave no label for any frame of the student's MD", found=label.news
            )
        return kept, Answers(np.array(energies), forces, np.array(stresses))

    return score


# -- report.json ----------------------------------------------------------------------------------


def _accuracy(subjects: Sequence[Subject]) -> dict[str, Any]:
    own = _own_frames(subjects)
    test = subjects[0].compared.get("test")
    return {
        "test": test.errors if test is not None else no_errors(),
        "student_md": _joined(own).errors if own else no_errors(),
    }


def _own_frames(subjects: Sequence[Subject]) -> list[Compared]:
    return [one.compared["student_md"] for one in subjects if "student_md" in one.compared]


def _joined(parts: Sequence[Compared]) -> Compared:
    def answers(who: str) -> Answers:
        own = [getattr(part, who) for part in parts]
        return Answers(
            np.concatenate([one.energy for one in own]),
            [forces for one in own for forces in one.forces],
            np.concatenate([one.stress for one in own]),
        )

    frames = [frame for part in parts for frame in part.frames]
    return Compared(frames, answers("theirs"), answers("mine"))


def _stability(subjects: Sequence[Subject], found: Sequence[Examined]) -> dict[str, Any]:
    """The run with the largest drift beyond noise, or the first that did not complete."""

    def badness(k: int) -> tuple[float, float]:
        findings = found[k].findings
        drift = findings["nve_drift_meV_per_atom_per_ps"].value
        return 1.0 - (findings["nve_completed"].value or 0.0), np.inf if drift is None else drift

    worst = max(range(len(found)), key=badness)
    row = found[worst].measurements["dynamics"][0]
    drift = row["drift_meV_per_atom_per_ps"] or [None, None]
    return {
        "ensemble": "NVE",
        "n_steps": row["nve_steps"],
        "completed": bool(found[worst].findings["nve_completed"].value),
        "time_step_fs": row["time_step_fs"],
        "temperature_K": row["temperature_K"],
        "nve_drift_meV_per_atom_per_ps": drift[0],
        "nve_drift_error_meV_per_atom_per_ps": drift[1],
        "nve_fluctuation_meV_per_atom": row["fluctuation_meV_per_atom"],
    }


def observables(run: Trajectory | None) -> dict[str, Any]:
    """The radial distribution function of all pairs, and the mean squared displacement.

    The motion of the centre of mass is taken out of the latter.
    """
    if run is None or len(run.time_ps) < 2:
        return {}
    thin = _thinned(run)
    alike = Atoms(np.ones(len(run.atoms)), cell=run.atoms.cell, pbc=run.atoms.pbc)
    found = rdfs(replace(thin, atoms=alike), n_blocks=1)
    masses = run.atoms.get_masses()[:, None] / run.atoms.get_masses().sum()
    moved = thin.positions - (thin.positions * masses).sum(1, keepdims=True)
    msd = ((moved - moved[0]) ** 2).sum(2).mean(1)
    curves = {
        "msd": {"time_ps": thin.time_ps.round(5).tolist(), "msd_A2": msd.round(6).tolist()},
    }
    if found:
        rdf = {"r_A": found[0].x.round(4).tolist(), "g": found[0].mean.round(5).tolist()}
        curves = {"rdf": rdf, **curves}
    return curves


def _thinned(run: Trajectory) -> Trajectory:
    stride = -(-len(run.time_ps) // _MOST_FRAMES)
    names = ("time_ps", "positions", "velocities", "potential")
    return replace(run, **{name: getattr(run, name)[::stride] for name in names})


def _teacher_block(teacher: TeacherCalculator) -> dict[str, Any]:
    identity = asdict(teacher.identity)
    names = ("name", "family", "version", "weights_sha256", "licence", "device")
    return {name: identity[name] for name in names}


def _student_block(student: Student) -> dict[str, Any]:
    return {
        "architecture": student.architecture,
        "preset": "default",
        "n_parameters": sum(parameter.numel() for parameter in student.parameters()),
        "cutoff": student.cutoff,
        "elements": list(student.elements),
    }


def _data_block(labels: Dataset, split: Split, config: Config) -> dict[str, Any]:
    seconds = [origin.get("seconds", 0.0) for origin in labels.provenances()]
    unused = np.setdiff1d(
        np.arange(len(labels)), np.concatenate([split.train, split.validation, split.test])
    )
    n_disputed = int((labels.disagreement[unused] > config.max_disagreement_eV_per_A).sum())
    return {
        "n_labels": len(labels),
        "n_disputed": n_disputed,
        "n_out_of_reach": len(unused) - n_disputed,
        "n_train": len(split.train),
        "n_validation": len(split.validation),
        "n_test": len(split.test),
        "teacher_seconds": float(np.sum(seconds)),
    }


# -- certificate.json -----------------------------------------------------------------------------


def structure_block(subject: Subject, found: Examined) -> dict[str, Any]:
    """What a certificate says of one structure."""
    return {
        "sha256": input_hash(subject.start),
        "formula": subject.atoms.get_chemical_formula(),
        "n_atoms": len(subject.atoms),
        "kind": subject.kind,
        "findings": {name: asdict(finding) for name, finding in found.findings.items()},
        "measurements": found.measurements,
    }


def known_of(
    certificate: Mapping[str, Any], atoms: Atoms, settings: ValidationSettings, dtype: str
) -> tuple[Examined | None, list[dict[str, Any]]]:
    """What a certificate says of ``atoms`` by short checks, and its blocks of other structures.

    None if it was made with other settings, or does not know ``atoms``. `validate` takes it over:
    a question that `distill` asked has the answer that it found.
    """
    before, now = _resolved(certificate.get("settings") or {}), _resolved(asdict(settings))
    blocks = certificate.get("structures") or []
    alike = all(before.get(name) == now[name] for name in _ASKED)
    own, sha256 = None, input_hash(atoms)
    for block in blocks if alike and certificate.get("dtype") == dtype else []:
        if block["sha256"] == sha256:
            own = block
    if own is None:
        return None, []
    short = {name for check in CHECKS if check.short for name in check.criteria}
    findings = {
        name: Finding(one["value"], one["words"])
        for name, one in own["findings"].items()
        if name in short
    }
    return Examined(findings, _short_part(own["measurements"])), [
        block for block in blocks if block is not own
    ]


def _short_part(measured: Mapping[str, Any]) -> dict[str, Any]:
    """What short checks measured, without the rest of a full certificate."""
    kept = {
        name: measured[name]
        for name in ("accuracy", "dynamics", "error_estimates", "speed", "speeds")
        if name in measured
    }
    own = (measured.get("teacher") or {}).get("student_md")
    return {**kept, **({"teacher": {"student_md": own}} if own else {})}


_ASKED = (
    *("temperature_K", "nve_ps", "equilibration_ps", "time_step_fs", "friction_per_ps"),
    *("record_every", "rescored", "speed_sizes", "seed"),
)
"""Settings that short checks depend on."""


def _resolved(settings: Mapping[str, Any]) -> dict[str, Any]:
    """As JSON has them, with the length of the run at constant energy."""
    plain: dict[str, Any] = {
        name: list(value) if isinstance(value, tuple) else value for name, value in settings.items()
    }
    return {**plain, "nve_ps": plain.get("nve_ps") or 0.5 * plain.get("time_ps", 0.0)}


# -- what the report draws ------------------------------------------------------------------------


def _evidence(
    subjects: Sequence[Subject],
    found: Sequence[Examined],
    report: dict[str, Any],
    sampling: Sampling,
    student: Student,
) -> Evidence:
    run = subjects[0].nve[0] or subjects[0].equilibrations[0]
    rdf, msd = (report["observables"].get(name) for name in ("rdf", "msd"))
    drift = report["stability"]["nve_drift_meV_per_atom_per_ps"]
    sets = {"test": [s.compared["test"] for s in subjects[:1] if "test" in s.compared]}
    sets["student_md"] = _own_frames(subjects)
    return Evidence(
        {name: _parity(_joined(parts), student) for name, parts in sets.items() if parts},
        (),
        Drawn(run.time_ps, run.total_energy, run.temperatures, drift),
        sampling,
        rdf and Curve(np.array(rdf["r_A"]), np.array(rdf["g"])),
        msd and Curve(np.array(msd["time_ps"]), np.array(msd["msd_A2"])),
    )


def _parity(compared: Compared, student: Student) -> ParitySet:
    """Energies are relative to the elements' and to the teacher's mean."""
    numbers = [frame.numbers for frame in compared.frames]
    known = student.reference_energies.cpu().numpy()
    types = student.types_of_numbers.cpu().numpy()
    baseline = np.array([known[types[own]].sum() for own in numbers])
    sizes = np.array([len(own) for own in numbers])
    teacher = (compared.theirs.energy - baseline) / sizes
    mine = (compared.mine.energy - baseline) / sizes
    stress = [compared.theirs.stress, compared.mine.stress]
    both = np.isfinite(stress[0]).all((1, 2)) & np.isfinite(stress[1]).all((1, 2))
    return ParitySet(
        teacher - teacher.mean(),
        mine - teacher.mean(),
        np.concatenate(compared.theirs.forces).reshape(-1),
        np.concatenate(compared.mine.forces).reshape(-1),
        stress[0][both].reshape(-1),
        stress[1][both].reshape(-1),
        sizes,
        [symbol for frame in compared.frames for symbol in frame.get_chemical_symbols()],
    )


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

"""A report and its evidence as a real run would give them, made of random numbers."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from ase import units

from mlff_distiller.reports.evidence import Curve, Evidence, ParitySet, Sampling, Trajectory
from mlff_distiller.validation.accuracy import force_errors
from mlff_distiller.validation.verdict import Finding, judge


def make_parity(n_frames: int, error: float, seed: int) -> ParitySet:
    rng = np.random.default_rng(seed)
    n_atoms = rng.choice([24, 48, 72], n_frames)
    symbols = np.concatenate([["O"] * (n // 3) + ["H"] * (n - n // 3) for n in n_atoms])
    strength = np.repeat(rng.lognormal(-0.2, 0.9, symbols.size), 3)
    forces = strength * rng.normal(size=3 * symbols.size)
    noise = error * np.repeat(np.where(symbols == "O", 1.4, 0.8), 3)
    energy = rng.gamma(3.0, 0.012, n_frames)
    stress = rng.normal(0.0, 0.03, 6 * n_frames)
    return ParitySet(
        energy_teacher=energy - energy.mean(),
        energy_student=energy - energy.mean() + rng.normal(0.0, 0.0015, n_frames),
        forces_teacher=forces,
        forces_student=forces + noise * (0.3 + strength) * rng.standard_t(4, forces.size),
        stress_teacher=stress,
        stress_student=stress + rng.normal(0.0, 0.0012, stress.size),
        n_atoms=n_atoms,
        symbols=symbols.tolist(),
    )


def make_errors(pair: ParitySet) -> dict[str, Any]:
    energy = np.abs(pair.energy_student - pair.energy_teacher)
    stress = np.abs(pair.stress_student - pair.stress_teacher)
    return {
        "n_frames": pair.energy_teacher.size,
        "energy_mae_meV_per_atom": float(1e3 * energy.mean()),
        **force_errors(pair.forces_teacher.reshape(-1, 3), pair.forces_student.reshape(-1, 3)),
        "stress_mae_GPa": float(stress.mean() / units.GPa),
    }


def make_sampling(n: int = 3000) -> Sampling:
    rng = np.random.default_rng(5)
    generation = rng.integers(0, 9, n).astype(float)
    source = rng.choice(["rattle", "md-300K", "md-600K"], n, p=[0.7, 0.2, 0.1])
    generation[source != "rattle"] = np.nan
    energy = rng.gamma(1.6, 45.0, n)
    energy[0] = 0.0
    force = 0.25 * np.sqrt(energy + 0.2) * rng.lognormal(0.0, 0.45, n)
    split = rng.choice(["train", "validation", "test"], n, p=[0.8, 0.1, 0.1])
    return Sampling(energy, force, rng.integers(0, 40, n), generation, source, split)


def make_learning(n: int = 150) -> list[dict[str, Any]]:
    rng = np.random.default_rng(6)
    decay = np.exp(-np.arange(n) / 25.0)
    mae = (28.0 + 300.0 * decay) * rng.lognormal(0.0, 0.03, n)
    return [
        {
            "event": "epoch",
            "epoch": epoch + 1,
            "seconds": 4.1 * (epoch + 1),
            "learning_rate": 5e-3 * 0.97**epoch,
            "train_loss": float((0.02 + 3 * decay[epoch]) * rng.lognormal(0, 0.05)),
            "validation_forces_mae_meV_per_A": float(mae[epoch]),
            "validation_forces_fidelity": float(1 - mae[epoch] / 900),
            "validation_energy_mae_meV_per_atom": float(0.05 * mae[epoch]),
        }
        for epoch in range(n)
    ]


def make_rounds() -> list[dict[str, Any]]:
    medians = (0.19, 0.16, 0.145, 0.13, 0.124)
    names = ("error_lower_quartile", "error_median", "error_upper_quartile")
    return [
        {"round": k, "n_labels": 50}
        | dict(zip(names, (0.8 * error, error, 1.3 * error), strict=True))
        for k, error in enumerate(medians)
    ]


def make_evidence() -> Evidence:
    rng = np.random.default_rng(7)
    time = np.linspace(0.0, 50.0, 5001)
    energy = 0.0006 * time + 0.012 * np.sin(9 * time) + rng.normal(0, 0.01, time.size)
    r, t = np.linspace(0.04, 6.0, 150), np.linspace(0.0, 10.0, 60)
    g = (
        1
        / (1 + np.exp(-14 * (r - 2.6)))
        * (1 + 1.8 * np.exp(-1.3 * (r - 2.4)) * np.cos(4 * r - 11))
    )
    return Evidence(
        parity={"test": make_parity(120, 0.02, 1), "student_md": make_parity(60, 0.024, 2)},
        learning=make_learning(),
        trajectory=Trajectory(time, energy - energy[0], 300 + rng.normal(0, 9, time.size), 0.0006),
        sampling=make_sampling(),
        rdf=Curve(r, g, g + rng.normal(0, 0.03, r.size) * (r > 2.2)),
        msd=Curve(t, 0.9 * t + 0.4 * (1 - np.exp(-6 * t))),
        rounds=make_rounds(),
    )


def make_report(evidence: Evidence) -> dict[str, Any]:
    sizes = (64, 216, 512, 1000, 4096)
    teacher, student = (53.1, 54.4, 56.2, 58.3, 171.0), (0.352, 0.368, 0.391, 0.442, 1.271)
    report: dict[str, Any] = {
        "schema": 1,
        "teacher": {
            "name": "orb-v3-conservative-inf-omat",
            "family": "orb",
            "version": "0.5.5",
            "weights_sha256": "9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08",
            "licence": "Apache-2.0",
            "device": "NVIDIA H100 80GB HBM3",
        },
        "student": {
            "architecture": "painn",
            "preset": "painn-64x2",
            "n_parameters": 77_312,
            "cutoff": 4.5,
            "elements": ["H", "O"],
        },
        "data": {
            "n_labels": 3000,
            "n_train": 2400,
            "n_validation": 300,
            "n_test": 300,
            "teacher_seconds": 1423.7,
        },
        "accuracy": {key: make_errors(pair) for key, pair in evidence.parity.items()},
        "stability": {
            "ensemble": "NVE",
            "n_steps": 100_000,
            "completed": True,
            "time_step_fs": 0.5,
            "temperature_K": 300.0,
            "nve_drift_meV_per_atom_per_ps": 0.0006,
            "nve_fluctuation_meV_per_atom": 0.0134,
        },
        "observables": {"rdf": {"r_max": 6.0, "overlap": 0.9871}, "msd": {"diffusion": 0.15}},
        "speed": [
            {
                "system": "liquid water",
                "n_atoms": n,
                "device": "NVIDIA H100 80GB HBM3",
                "teacher_ms_per_step": slow,
                "student_ms_per_step": fast,
                "speedup": slow / fast,
            }
            for n, slow, fast in zip(sizes, teacher, student, strict=True)
        ],
    }
    findings = {
        "test_forces_fidelity": report["accuracy"]["test"]["forces_fidelity"],
        "student_md_forces_fidelity": report["accuracy"]["student_md"]["forces_fidelity"],
        "nve_completed": 1.0,
        "nve_drift_meV_per_atom_per_ps": abs(report["stability"]["nve_drift_meV_per_atom_per_ps"]),
        "speedup": report["speed"][0]["speedup"],
    }
    return report | {"verdict": judge({k: Finding(v) for k, v in findings.items()}, {})}


@pytest.fixture(scope="session")
def evidence() -> Evidence:
    return make_evidence()


@pytest.fixture
def report(evidence: Evidence) -> dict[str, Any]:
    return make_report(evidence)


def make_estimates() -> dict[str, Any]:
    """What a student that knows its errors adds to the measurements."""
    one = {
        "n_atoms": 640,
        "rank_correlation": 0.4375,
        "auroc_of_large_errors": None,
        "fraction_above_limit": 0.0,
        "estimated_eV_per_A": [0.0, 0.05, 0.1],
        "found_eV_per_A": [0.01, 0.06, 0.09],
    }
    return {"typical_eV_per_A": 0.08, "limit_eV_per_A": 0.3125, "test": one, "student_md": one}


def make_goal() -> dict[str, Any]:
    """Two turns: labels helped."""

    def turn(number: int, labels: int, own: float, step: dict[str, Any] | None) -> dict[str, Any]:
        return {
            "number": number,
            "step": {"student": "nep", "updates": 8000, "why": "the first turn"},
            "n_labels": labels,
            "fit_error": 0.02,
            "test_error": 0.03,
            "own_error": own,
            "train_seconds": 20.0,
            "seconds": 80.0,
            "next": {"step": step, "diagnosis": "labels are the limit" if step else "passed"},
        }

    return {
        "forces_fidelity": 0.95,
        "best": 1,
        "ended": "passed",
        "relaxed": ["structure 0 (SiO2): forces of up to 7.2 eV/Å were relaxed to 0.95"],
        "advice": ["Take a faster student (--student nep-small)."],
        "turns": [turn(0, 300, 0.07, {"why": "labels where it goes"}), turn(1, 900, 0.04, None)],
    }

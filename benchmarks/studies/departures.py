"""Simulations that leave what their student knows: when the guard speaks, and how wrong it is then.

    python departures.py melting compression vacancy reaction adsorbate --students students \
        --out departures.json
    python departures.py silicon silicon-600K ethanol --ns 1 --students students --out FILE
    python departures.py --run si --run nacl --ns 1 --device cuda --out FILE

The students are those that ``error_estimates.py`` leaves, trained on the sets of ``error_sets.py``.
A departure runs with ``guard="stop"``, and unguarded, where the teacher is asked about each frame
that a guard would look at. In the others, and for a ``--run`` of `distill` with its teacher, first
structure and first temperature, nothing is planted: an alarm is a false one unless the teacher
finds an error of so many typical ones in the frame that was kept.
"""

import argparse
import json
import platform
import warnings
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch
import yaml
from ase import Atoms
from ase.io import read
from error_sets import start_of, with_adsorbate

from mlff_distiller import run_md
from mlff_distiller.deploy import StudentCalculator
from mlff_distiller.durable import write_json
from mlff_distiller.errors import DynamicsError, UntrustedError
from mlff_distiller.structure import default_time_step_fs, thermalise
from mlff_distiller.students import load_student
from mlff_distiller.teachers import TeacherCalculator

TIMES = 5.0
"""The guard must speak before forces are off by so many times the certified error."""


@dataclass(frozen=True)
class Case:
    student: str
    start: Callable[[], Atoms]
    teacher: str = "7net-0"
    n_steps: int = 1000
    settings: dict = field(default_factory=dict)
    volume: float = 1.0
    """At the end, over that of the start."""

    def squeeze(self, simulation):
        """A ten-step share of the way there."""
        share = self.volume ** (10 / self.n_steps / 3)
        simulation.set_cell(simulation.state().cell[0] * share)


def cold(atoms):
    """At the temperature that trained."""
    thermalise(atoms, 300.0, np.random.default_rng(0))
    return atoms


def perforated():
    atoms = start_of("si")
    del atoms[0]
    return atoms


CRYSTAL = {"time_step_fs": 2.0}
MOLECULE = {"time_step_fs": 0.5, "friction_per_ps": 10.0}
DEPARTURES = {
    "melting": Case(
        "si-nep",
        lambda: cold(start_of("si")),
        settings=CRYSTAL | {"temperature_K": 3500.0, "friction_per_ps": 1.0},
    ),
    "compression": Case("si-nep", lambda: start_of("si"), settings=CRYSTAL, volume=0.8),
    "vacancy": Case("si-nep", perforated, n_steps=500, settings=CRYSTAL),
    "reaction": Case(
        "ethanol-nep",
        lambda: cold(start_of("ethanol")),
        "ani-1x",
        2000,
        MOLECULE | {"temperature_K": 1500.0, "friction_per_ps": 2.0},
    ),
    "adsorbate": Case(
        "slab-nep",
        lambda: with_adsorbate(start_of("slab")),
        "ase:ase.calculators.emt:EMT",
        500,
        CRYSTAL,
    ),
}
QUIET = {
    "silicon": Case("si-nep", lambda: start_of("si"), settings=CRYSTAL),
    "silicon-600K": Case(
        "si-nep", lambda: start_of("si"), settings=CRYSTAL | {"temperature_K": 600.0}
    ),
    "ethanol": Case("ethanol-nep", lambda: start_of("ethanol"), "ani-1x", settings=MOLECULE),
}


def of_run(folder):
    """The dynamics that `distill` taught its student."""
    words = yaml.safe_load((folder / "config.yaml").read_text())
    start = read(folder / "structures.traj", 0)
    kelvin = words["config"]["sampling"]["temperature_K"][0]
    settings = {"temperature_K": kelvin, "time_step_fs": default_time_step_fs(start)}
    return Case("student", start.copy, words["inputs"]["teacher"], settings=settings)


def off(atoms, forces, teacher, typical):
    """Lengths of the errors of ``forces``, in units of the typical one, (n_atoms,)."""
    atoms.calc = teacher
    return np.linalg.norm(forces - atoms.get_forces(), axis=1) / typical


def departs(case, student, teacher, folder, every, seed):
    """When the guard speaks, and the true errors, in units of the typical one, frame by frame."""
    settings = {"ensemble": "nvt", "frames_every": every, "guard_every": every, "seed": seed}
    settings |= {"device": "cpu", "n_steps": case.n_steps, "max_temperature_K": 1e5}
    settings |= case.settings
    if case.volume != 1.0:
        settings["observers"] = [(10, case.squeeze)]
    told = None
    with suppress(DynamicsError), warnings.catch_warnings(action="ignore"):
        try:
            run_md(case.start(), student, guard="stop", **settings)
        except UntrustedError as error:
            told = error.step
    path, exploded = folder / "md.extxyz", None
    try:
        run_md(case.start(), student, guard="off", out=path, overwrite=True, **settings)
    except DynamicsError as error:
        exploded = str(error).splitlines()[0]
    model, rows = student.error_model, []
    calculator = StudentCalculator(student, device="cpu")
    for number, atoms in enumerate(read(path, ":")):
        mine, kelvin = atoms.get_forces(), atoms.get_temperature()
        calculator.calculate(atoms)
        estimate = float(calculator.extra["forces_error"].max()) / model.typical
        errors = off(atoms, mine, teacher, model.typical)
        row = number * every, kelvin, estimate, np.sqrt((errors**2).mean()), errors.max()
        rows.append([round(float(value), 3) for value in row])
    return {
        "step_fs": case.settings["time_step_fs"],
        "typical_eV_per_A": model.typical,
        "limit_over_typical": model.limit / model.typical,
        "told_at_step": told,
        "rms_above_5_at_step": next((int(row[0]) for row in rows if row[3] > TIMES), None),
        "an_atom_above_5_at_step": next((int(row[0]) for row in rows if row[4] > TIMES), None),
        "exploded": exploded,
        "columns": "step, K, largest estimate, rms error, largest error; errors in typical ones",
        "rows": rows,
    }


def stays(case, student, teacher, folder, every, device, ns, seed):
    """What a guard says of so many ns of the dynamics that the student learned."""
    n_steps = round(1e6 * ns / case.settings["time_step_fs"])
    settings = {"ensemble": "nvt", "guard_every": every, "log_every": n_steps, "seed": seed}
    settings |= {"n_steps": n_steps, "frames_every": n_steps, "device": device} | case.settings
    start, model = case.start(), student.error_model
    with warnings.catch_warnings(action="ignore"):
        run = run_md(start, student, out=folder / "md.extxyz", **settings)
    kept = read(run.files["untrusted"], ":") if "untrusted" in run.files else []
    calculator, largest = StudentCalculator(student, device="cpu"), []
    for atoms in kept:
        calculator.calculate(atoms)
        errors = off(atoms, calculator.results["forces"], teacher, model.typical)
        largest.append(round(float(errors.max()), 2))
    looks = n_steps // every + 1
    return {
        "ns": ns,
        "looks": looks,
        "n_atoms": len(start),
        "atoms_above_limit": round((1.0 - run.trusted) * looks * len(start)),
        "largest_estimate_over_typical": run.max_forces_error / model.typical,
        "limit_over_typical": model.limit / model.typical,
        "largest_error_over_typical_of_frames_kept": largest,
        "false": sum(error <= TIMES for error in largest),
        "seconds": run.seconds,
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("names", nargs="*", choices=[*DEPARTURES, *QUIET, []])
    parser.add_argument("--students", type=Path, help="folder of those of the names")
    parser.add_argument("--run", type=Path, action="append", default=[])
    parser.add_argument("--device", default="cpu", help="of those that do not depart")
    parser.add_argument("--ns", type=float, default=1.0, help="of those that do not depart")
    parser.add_argument("--every", type=int, default=50, help="steps between looks")
    parser.add_argument("--steps", type=int, help="of a departure")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, required=True)
    given = parser.parse_args()
    torch.set_num_threads(1)
    content = json.loads(given.out.read_text()) if given.out.exists() else {}
    content |= {"machine": platform.processor() or platform.machine(), "torch": torch.__version__}
    cases = [(name, given.students, (DEPARTURES | QUIET)[name]) for name in given.names]
    cases += [(folder.name, folder, of_run(folder)) for folder in given.run]
    for name, students, case in cases:
        case = replace(case, n_steps=given.steps or case.n_steps)
        student = load_student(students / case.student)
        with (
            TemporaryDirectory() as folder,
            TeacherCalculator(case.teacher, device="cpu") as teacher,
        ):
            settings = case, student, teacher, Path(folder), given.every
            if name in DEPARTURES:
                found = departs(*settings, given.seed)
            else:
                found = stays(*settings, given.device, given.ns, given.seed)
        content.setdefault("rows", {})[f"{name}, every {given.every}"] = found
        write_json(given.out, content)
        print(name, {key: value for key, value in found.items() if key != "rows"}, flush=True)


if __name__ == "__main__":
    main()

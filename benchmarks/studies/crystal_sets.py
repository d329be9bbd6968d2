"""Label sets of crystals by a slow teacher: students walk, the teacher judges, twice.

    python crystal_sets.py si train --out sets/si
    python crystal_sets.py hfo2 train --seed-structure hfo2.extxyz --out sets/hfo2
    python crystal_sets.py si test --out sets/si
    python crystal_sets.py hfo2 walks --student STUDENT --out sets/hfo2
    python crystal_sets.py hfo2 more --device cuda --out sets/hfo2

Training: a rattle-relax tree and strongly strained, rattled cells give a first nep student; its
Langevin dynamics in strained cells is labelled and gives a second one; so is that one's. Test:
dynamics by the teacher itself, from starts equilibrated by the last student with other seeds.
``walks`` are structures of a better student's dynamics, which ``more`` labels, in batches, and adds
to the training set.
"""

import argparse
import json
import time
from pathlib import Path

import numpy as np
import torch
from ase.build import bulk
from ase.filters import FrechetCellFilter
from ase.io import read
from ase.optimize import FIRE
from label_sets import load_extra, load_set, save_set, stored
from safetensors.torch import load_file
from walks import fit_nep, rounded, strained, student_walks, walk

from mlff_distiller.deploy import StudentCalculator
from mlff_distiller.sampling import RattleSettings, grow
from mlff_distiller.students import load_student
from mlff_distiller.students.artefact import save_student
from mlff_distiller.teachers import TeacherCalculator

TEACHER = "7net-0"
MAX_FORCE_EV_PER_A = 20.0
RECIPES = {
    "si": {
        "repeat": (2, 2, 2),
        "temperatures_K": (300.0, 600.0, 900.0, 1200.0, 1500.0),
        "test_K": (300.0, 1500.0),
        "tree": 80,
        "rattled": 40,
        "rounds": ((15, 10), (60, 10)),  # walkers, frames of each
        "walks": (100, 20),
    },
    "hfo2": {
        "repeat": (2, 2, 2),
        "temperatures_K": (300.0, 500.0, 700.0, 1000.0),
        "test_K": (300.0, 1000.0),
        "tree": 60,
        "rattled": 40,
        "rounds": ((12, 8), (40, 10)),
        "walks": (100, 20),
    },
}
WALK = {"time_step_fs": 2.0, "equilibration_fs": 1000.0, "every_fs": 100.0}
SEEDS = {"train": 10_000, "test": 500_000, "walks": 800_000, "more": 800_000}
TEST = {"time_step_fs": 2.0, "equilibration_fs": 160.0, "every_fs": 20.0}


def relaxed(atoms, teacher):
    moved = atoms.copy()
    moved.calc = teacher
    FIRE(FrechetCellFilter(moved), logfile=None).run(fmax=0.02, steps=200)
    moved.calc = None
    return moved


class Labels:
    """Frames labelled so far."""

    def __init__(self, teacher):
        self.teacher, self.frames, self.answers, self.seconds = teacher, [], [], 0.0

    def add(self, frames, source):
        """Label and keep those that are whole; the labels of all, for the tree."""
        found = []
        frames = list(map(rounded, frames))
        for atoms, answer in zip(frames, self.teacher.label(frames), strict=True):
            self.seconds += answer.seconds
            found.append(answer.labels)
            sane = answer.labels and np.abs(answer.labels["forces"]).max() < MAX_FORCE_EV_PER_A
            if sane:
                atoms.info["source"] = source
                self.frames.append(atoms)
                self.answers.append(answer.labels)
        return found

    def tensors(self):
        labels = {
            "energy": torch.tensor(np.array([own["energy"] for own in self.answers])).double(),
            "forces": torch.tensor(np.concatenate([own["forces"] for own in self.answers])).float(),
            "stress": torch.tensor(np.stack([own["stress"] for own in self.answers])).double(),
        }
        return {**stored(self.frames), **labels}

    def save(self, path, about):
        sources = [atoms.info["source"] for atoms in self.frames]
        counts = {source: sources.count(source) for source in dict.fromkeys(sources)}
        about = {**about, "frames": counts, "teacher_s": round(self.seconds, 1)}
        save_set(path, self.tensors(), about)
        print(json.dumps(about), flush=True)


def make_training(recipe, cell, labels, out, seed, about):
    rng = np.random.default_rng([seed, 1])
    cell = relaxed(cell, labels.teacher) * recipe["repeat"]
    cell.write(out / "relaxed.extxyz")
    tree = RattleSettings(temperature_K=(300.0, 1000.0), sigma_range_A=(0.02, 0.2), sigma_cell=0.02)
    grow([cell], lambda frames, _: labels.add(frames, "tree"), recipe["tree"], tree, seed)
    rattled = []
    for _ in range(recipe["rattled"]):
        moved = strained(cell, rng, 0.025)
        moved.positions += rng.normal(
            scale=np.exp(rng.uniform(*np.log([0.03, 0.2]))), size=(len(moved), 3)
        )
        rattled.append(moved)
    labels.add(rattled, "rattled")
    labels.save(out / "train.safetensors", about)
    for number, (n_walkers, frames_each) in enumerate(recipe["rounds"], 1):
        student, metrics = fit_nep(load_set(out / "train.safetensors"), 3_000, seed + number)
        about[f"student_{number}"] = metrics
        starts = [strained(cell, rng, 0.01) for _ in range(n_walkers)]
        frames, exploded = student_walks(
            student,
            starts,
            recipe["temperatures_K"],
            frames_each,
            seed + 1000 * number,
            max_force_eV_per_A=MAX_FORCE_EV_PER_A,
            **WALK,
        )
        about[f"exploded_{number}"] = exploded
        labels.add(frames, f"student {number}")
        labels.save(out / "train.safetensors", about)
    batches = load_set(out / "train.safetensors")
    student, about["student_last"] = fit_nep(batches, 4_000, seed)
    save_student(
        student, out / "nep", about=about, card="made by crystal_sets.py\n", frames=batches
    )
    labels.save(out / "train.safetensors", about)


def make_walks(recipe, student, out, seed, about):
    """Structures of many walkers of ``student``, most from strained cells, without labels."""
    rng = np.random.default_rng([seed, 3])
    cell = read(out / "relaxed.extxyz")
    n_walkers, frames_each = recipe["walks"]
    starts = [strained(cell, rng, 0.01) for _ in range(n_walkers)]

    def keep(frames):
        save_set(out / "walks.safetensors", stored(frames), {**about, "frames": len(frames)})

    frames, about["exploded"] = student_walks(
        load_student(student),
        starts,
        recipe["temperatures_K"],
        frames_each,
        seed,
        keep,
        max_force_eV_per_A=MAX_FORCE_EV_PER_A,
        **WALK,
    )
    keep(frames)


def add_walks(labels, out, about):
    """Label the structures of ``make_walks`` and put them after those of the training set."""
    walks, walkers = (
        load_set(out / "walks.safetensors"),
        load_extra(out / "walks.safetensors", "walker"),
    )
    frames = [batch.to_atoms()[0] for batch in walks]
    for atoms, walker in zip(frames, walkers, strict=True):
        atoms.info["walker"] = int(walker)
    labels.add(frames, "walks")
    new, old = labels.tensors(), load_file(out / "train.safetensors")
    joined = {name: torch.cat([value, new[name].to(value.dtype)]) for name, value in old.items()}
    about |= {"frames": len(joined["n_atoms"]), "labelled": len(labels.frames)}
    about["teacher_s"] = round(labels.seconds, 1)
    save_set(out / "train.safetensors", joined, about)
    print(json.dumps(about), flush=True)


def make_test(recipe, labels, out, seed, about):
    rng = np.random.default_rng([seed, 2])
    cell = read(out / "relaxed.extxyz")
    student = StudentCalculator(load_student(out / "nep"), device="cpu")
    for number, temperature in enumerate(recipe["test_K"]):
        for replica in range(3):
            own = seed + 1000 * number + 10 * replica
            start = strained(cell, rng, 0.005)
            hot = {**WALK, "equilibration_fs": 3000.0, "max_force_eV_per_A": MAX_FORCE_EV_PER_A}
            [start] = walk(student, start, temperature, 1, own, **hot)
            frames = walk(
                labels.teacher,
                start,
                temperature,
                10,
                own + 1,
                max_force_eV_per_A=MAX_FORCE_EV_PER_A,
                **TEST,
            )
            labels.add(frames, f"teacher {temperature:.0f} K")
            labels.save(out / "test.safetensors", about)


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("system", choices=list(RECIPES))
    parser.add_argument("part", choices=["train", "test", "walks", "more"])
    parser.add_argument("--seed-structure", type=Path, help="of HfO2; the first frame")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--student", type=Path, help="that walks")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--seed", type=int)
    arguments = parser.parse_args()
    recipe = RECIPES[arguments.system]
    arguments.out.mkdir(parents=True, exist_ok=True)
    seed = arguments.seed or SEEDS[arguments.part]
    started = time.time()
    with TeacherCalculator(TEACHER, device=arguments.device) as teacher:
        about = {
            "teacher": TEACHER,
            "seed": seed,
            "recipe": recipe,
            "dynamics": WALK if arguments.part == "train" else TEST,
            "max_force_eV_per_A": MAX_FORCE_EV_PER_A,
            "command": f"crystal_sets.py {arguments.system} {arguments.part} --seed {seed}",
        }
        labels = Labels(teacher)
        if arguments.part == "train":
            source = arguments.seed_structure
            cell = read(source, 0) if source else bulk("Si", cubic=True, a=5.46)
            cell.calc = None
            make_training(recipe, cell, labels, arguments.out, seed, about)
        elif arguments.part == "walks":
            make_walks(recipe, arguments.student, arguments.out, seed, about)
        elif arguments.part == "more":
            add_walks(labels, arguments.out, about)
        else:
            make_test(recipe, labels, arguments.out, seed, about)
    print(f"{time.time() - started:.0f} s", flush=True)


if __name__ == "__main__":
    main()

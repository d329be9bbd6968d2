"""Labelled structures in and out of a student's domain, for ``error_estimates.py``.

    python error_sets.py si --sampler Si_2022_NEP4_3body.txt --frames 160 --out sets
    python error_sets.py cuni --sampler UNEP-v1.txt --by-sampler --frames 120 --out sets

``sampler`` is a student or ``nep.txt`` whose Langevin dynamics gives the structures; the teacher,
or with ``--by-sampler`` itself, labels them. Each file ``SET/DOMAIN.extxyz`` holds frames of one
kind: ``train`` and ``held_out`` from the same conditions but other walks, the others from foreign
ones.
"""

import argparse
from pathlib import Path

import numpy as np
from ase import units
from ase.build import bulk, diamond111, fcc111
from ase.calculators.singlepoint import SinglePointCalculator
from ase.io import write
from ase.md.langevin import Langevin
from ase.md.velocitydistribution import MaxwellBoltzmannDistribution

from mlff_distiller.deploy import StudentCalculator
from mlff_distiller.teachers import TeacherCalculator

IN = (300.0, 600.0)  # K
STRAIN = 0.01


def walk(atoms, calculator, temperature_K, n_frames, seed, *, first=200, every=40, step_fs=1.0):
    rng = np.random.default_rng(seed)
    atoms = atoms.copy()
    atoms.rattle(0.02, seed=seed)
    atoms.calc = calculator
    MaxwellBoltzmannDistribution(atoms, temperature_K=temperature_K, rng=rng)
    dynamics = Langevin(
        atoms, step_fs * units.fs, temperature_K=temperature_K, friction=0.02 / units.fs, rng=rng
    )
    dynamics.run(first)
    frames = []
    for _ in range(n_frames):
        dynamics.run(every)
        frames.append(atoms.copy())
    return frames


def scaled(atoms, factor):
    atoms = atoms.copy()
    atoms.set_cell(atoms.cell * factor, scale_atoms=True)
    return atoms


def crystal(perfect, surface, calculator, melting_K, n):
    """Frames of each domain by name."""
    vacancy = perfect.copy()
    del vacancy[0]
    frames = {"train": [], "held_out": []}
    seed = 0
    for name, walks in (("train", 8), ("held_out", 4)):
        for k in range(walks):
            seed += 1
            start = scaled(perfect, 1.0 + STRAIN * (k % 3 - 1))
            per_walk = n // 8
            frames[name] += walk(start, calculator, IN[k % 2], per_walk, seed, every=60)
    few = n // 10
    for name, start, temperature in (
        ("hot", perfect, 0.75 * melting_K),
        ("compressed", scaled(perfect, 0.8 ** (1 / 3)), IN[0]),
        ("vacancy", vacancy, IN[0]),
        ("surface", surface, IN[0]),
        ("melted", perfect, 2.0 * melting_K),
    ):
        seed += 1
        first = 2000 if name == "melted" else 300
        frames[name] = walk(start, calculator, temperature, few, seed, first=first, every=100)
    return frames


def labelled(frames, calculator):
    done = []
    for atoms in frames:
        atoms = atoms.copy()
        atoms.calc = calculator
        results = {"energy": atoms.get_potential_energy(), "forces": atoms.get_forces()}
        if atoms.pbc.all():
            results["stress"] = atoms.get_stress()
        size = np.linalg.norm(results["forces"], axis=1).max()
        if size < 60.0:
            atoms.calc = SinglePointCalculator(atoms, **results)
            done.append(atoms)
    return done


def frames_of(name, sampler, n):
    if name == "si":
        surface = diamond111("Si", (2, 2, 6), a=5.45, vacuum=6.0)
        surface.pbc = True
        return crystal(bulk("Si", cubic=True, a=5.45) * 2, surface, sampler, 1687.0, n)
    rng = np.random.default_rng(0)

    def mixed(atoms):
        atoms.numbers[rng.permutation(len(atoms))[: len(atoms) // 2]] = 28
        return atoms

    surface = mixed(fcc111("Cu", (2, 2, 6), a=3.58, vacuum=6.0))
    surface.pbc = True
    return crystal(mixed(bulk("Cu", cubic=True, a=3.58) * 2), surface, sampler, 1500.0, n)


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("name", choices=("si", "cuni"))
    parser.add_argument("--sampler", required=True)
    parser.add_argument("--teacher", default="7net-0")
    parser.add_argument("--by-sampler", action="store_true")
    parser.add_argument("--frames", type=int, default=200)
    parser.add_argument("--out", type=Path, required=True)
    given = parser.parse_args()
    sampler = StudentCalculator(given.sampler, device="cpu")
    folder = given.out / given.name
    folder.mkdir(parents=True, exist_ok=True)
    with TeacherCalculator(given.teacher, device="cpu") as calculator:
        for name, frames in frames_of(given.name, sampler, given.frames).items():
            path = folder / f"{name}.extxyz"
            if not path.exists():
                write(path, labelled(frames, sampler if given.by_sampler else calculator))
                print(given.name, name, len(frames), flush=True)


if __name__ == "__main__":
    main()

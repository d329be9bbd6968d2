"""Labelled structures in and out of a student's domain, for ``error_estimates.py``.

    python error_sets.py si --sampler Si_2022_NEP4_3body.txt --frames 160 --out sets
    python error_sets.py cuni --sampler UNEP-v1.txt --by-sampler --frames 120 --out sets
    python error_sets.py slab --sampler emt --by-sampler --frames 80 --out sets
    python error_sets.py hfo2 --start hfo2.extxyz --frames 80 --device cuda --out sets
    python error_sets.py water --start water.extxyz --frames 80 --device cuda --out sets
    python error_sets.py ethanol --teacher ani-1x --frames 80 --out sets

``sampler`` is a student, ``nep.txt`` or EMT, whose Langevin dynamics gives the structures; by
default a nep that learns rattled structures, and then its own dynamics. The teacher labels them, or
with ``--by-sampler`` the sampler. Each file ``SET/DOMAIN.extxyz`` holds frames of one kind:
``train`` and ``held_out`` from the same conditions but other walks, the others from foreign ones.
"""

import argparse
from pathlib import Path

import numpy as np
from ase import units
from ase.build import add_adsorbate, bulk, diamond111, fcc111, molecule
from ase.build import surface as cleaved
from ase.calculators.emt import EMT
from ase.calculators.singlepoint import SinglePointCalculator
from ase.io import read, write
from ase.md.langevin import Langevin
from ase.md.velocitydistribution import MaxwellBoltzmannDistribution
from walks import fit_nep, strained

from mlff_distiller.batch import Batch
from mlff_distiller.deploy import StudentCalculator
from mlff_distiller.teachers import TeacherCalculator

IN = (300.0, 600.0)  # K
WET = (300.0, 400.0)
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


def known(start, calculator, temperatures_K, strain, n):
    """Frames that train and that are held out, from the same conditions."""
    frames, seed = {"train": [], "held_out": []}, 0
    for name, walks in (("train", 8), ("held_out", 4)):
        for k in range(walks):
            seed += 1
            own = scaled(start, 1.0 + strain * (k % 3 - 1))
            kelvin = temperatures_K[k % len(temperatures_K)]
            frames[name] += walk(own, calculator, kelvin, n // 8, seed, every=60)
    return frames


def crystal(perfect, surface, calculator, melting_K, n):
    """Frames of each domain by name."""
    vacancy = perfect.copy()
    del vacancy[0]
    frames = known(perfect, calculator, IN, STRAIN, n)
    few = n // 10
    for seed, (name, start, temperature) in enumerate(
        (
            ("hot", perfect, 0.75 * melting_K),
            ("compressed", scaled(perfect, 0.8 ** (1 / 3)), IN[0]),
            ("vacancy", vacancy, IN[0]),
            ("surface", surface, IN[0]),
            ("melted", perfect, 2.0 * melting_K),
        ),
        13,
    ):
        first = 2000 if name == "melted" else 300
        frames[name] = walk(start, calculator, temperature, few, seed, first=first, every=100)
    return frames


def stretched(atoms, rng):
    """With the bond of oxygen to hydrogen or carbon up to twice as long."""
    atoms = atoms.copy()
    [o] = np.flatnonzero(atoms.numbers == 8)
    apart = atoms.get_distances(o, range(len(atoms)))
    [h, c] = (min(np.flatnonzero(atoms.numbers == z), key=apart.__getitem__) for z in (1, 6))
    near, far = ([h], o) if rng.random() < 0.5 else ([o, h], c)
    away = atoms.positions[near[0]] - atoms.positions[far]
    atoms.positions[near] += rng.uniform(0.3, 1.0) * away
    return atoms


def ethanol(start, calculator, n):
    """Frames of each domain by name."""
    rng, few = np.random.default_rng(0), n // 4
    fine = {"every": 30, "step_fs": 0.5}
    frames = known(start, calculator, IN[:1], 0.0, n)
    for seed, kelvin in enumerate((1000.0, 1500.0), 13):
        frames[f"{kelvin:.0f} K"] = walk(start, calculator, kelvin, few, seed, **fine)
    frames["broken bond"] = [stretched(atoms, rng) for atoms in frames["held_out"][:few]]
    for name in ("CH3OH", "CH3CHO"):
        frames[name] = [molecule(name) for _ in range(few)]
        for atoms in frames[name]:
            atoms.positions += rng.normal(scale=0.05, size=(len(atoms), 3))
    return frames


def water(start, calculator, n):
    """Frames of each domain by name."""
    few = n // 8
    frames = known(start, calculator, WET, 0.5 * STRAIN, n)
    fine = {"first": 100, "every": 50, "step_fs": 0.5}
    dense = scaled(start, 0.8 ** (1 / 3))
    frames["hot"] = walk(start, calculator, 700.0, few, 13, **fine)
    frames["compressed"] = walk(dense, calculator, WET[0], few, 14, **fine)
    rng = np.random.default_rng(0)
    frames["broken bond"] = [parted(atoms, rng) for atoms in frames["held_out"][:few]]
    frames["alone"] = [molecule("H2O") for _ in range(few)]
    for atoms in frames["alone"]:
        atoms.positions += rng.normal(scale=0.05, size=(3, 3))
    return frames


def parted(atoms, rng):
    """With one bond to hydrogen up to twice as long."""
    atoms = atoms.copy()
    o = rng.choice(np.flatnonzero(atoms.numbers == 8))
    hydrogens = np.flatnonzero(atoms.numbers == 1)
    h = hydrogens[atoms.get_distances(o, hydrogens, mic=True).argmin()]
    atoms.positions[h] += rng.uniform(0.3, 1.0) * atoms.get_distance(o, h, mic=True, vector=True)
    return atoms


def sampler_for(start, teacher, temperature_K, strain):
    """A nep whose dynamics stays near ``start``: from rattled structures, then from its own."""
    rng = np.random.default_rng(1)
    frames = []
    for _ in range(30):
        frames.append(strained(start, rng, strain))
        frames[-1].positions += rng.normal(scale=rng.uniform(0.02, 0.12), size=(len(start), 3))
    frames = labelled(frames, teacher)
    for seed in range(2):
        student, metrics = fit_nep([Batch.from_atoms([own]) for own in frames], 600, seed)
        print("sampler", metrics, flush=True)
        calculator = StudentCalculator(student, device="cpu")
        if seed == 0:
            walked = walk(start, calculator, temperature_K, 20, 100, every=20, step_fs=0.5)
            frames += labelled(walked, teacher)
    return calculator


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


def start_of(name, path=None):
    """The structure that the domain is about."""
    if name == "si":
        return bulk("Si", cubic=True, a=5.45) * 2
    if name == "cuni":
        return mixed(bulk("Cu", cubic=True, a=3.58) * 2)
    if name == "slab":
        slab = fcc111("Cu", (3, 3, 4), a=3.61, vacuum=7.0)
        slab.pbc = True
        return slab
    if name == "ethanol":
        return molecule("CH3CH2OH")
    return read(path, 0) * (2, 1, 1) if name == "hfo2" else read(path, 0)


def with_adsorbate(atoms):
    """Oxygen in a hollow of the surface."""
    atoms = atoms.copy()
    add_adsorbate(atoms, "O", 1.5, "fcc")
    return atoms


def mixed(atoms, seed=0):
    order = np.random.default_rng(seed).permutation(len(atoms))
    atoms.numbers[order[: len(atoms) // 2]] = 28
    return atoms


def frames_of(name, start, sampler, n):
    if name in ("ethanol", "water"):
        return (ethanol if name == "ethanol" else water)(start, sampler, n)
    if name == "slab":
        frames = known(start, sampler, IN, 0.0, n)
        gas = known(molecule("O2"), sampler, IN, 0.0, n // 2)
        frames = {name: own + gas[name] for name, own in frames.items()}
        return frames | {"adsorbate": walk(with_adsorbate(start), sampler, IN[0], n // 8, 13)}
    surface = {
        "si": lambda: diamond111("Si", (2, 2, 6), a=5.45, vacuum=6.0),
        "cuni": lambda: mixed(fcc111("Cu", (2, 2, 6), a=3.58, vacuum=6.0), 1),
        "hfo2": lambda: cleaved(start, (0, 0, 1), 1, vacuum=6.0),
    }[name]()
    surface.pbc = True
    melting_K = {"si": 1687.0, "cuni": 1500.0, "hfo2": 3030.0}[name]
    return crystal(start, surface, sampler, melting_K, n)


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("name", choices=("si", "cuni", "slab", "hfo2", "ethanol", "water"))
    parser.add_argument("--sampler")
    parser.add_argument("--start", type=Path, help="of hfo2 or water; the first frame")
    parser.add_argument("--teacher", default="7net-0")
    parser.add_argument("--device", default="cpu", help="of the teacher")
    parser.add_argument("--by-sampler", action="store_true")
    parser.add_argument("--frames", type=int, default=200)
    parser.add_argument("--out", type=Path, required=True)
    given = parser.parse_args()
    start = start_of(given.name, given.start)
    folder = given.out / given.name
    folder.mkdir(parents=True, exist_ok=True)
    with TeacherCalculator(given.teacher, device=given.device) as teacher:
        if given.sampler == "emt":
            sampler = EMT()
        elif given.sampler:
            sampler = StudentCalculator(given.sampler, device="cpu")
        else:
            kelvin = WET[-1] if given.name == "water" else IN[-1]
            sampler = sampler_for(start, teacher, kelvin, STRAIN if start.pbc.any() else 0.0)
        for name, frames in frames_of(given.name, start, sampler, given.frames).items():
            path = folder / f"{name}.extxyz"
            if not path.exists():
                write(path, labelled(frames, sampler if given.by_sampler else teacher))
                print(given.name, name, len(frames), flush=True)


if __name__ == "__main__":
    main()

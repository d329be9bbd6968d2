"""Quickly trained students and dynamics by their or the teacher's forces, to make structures."""

import math

import numpy as np
import torch
from ase import Atoms
from ase.data import atomic_masses

from mlff_distiller.deploy import StudentCalculator
from mlff_distiller.students import NEPSettings, nep_for
from mlff_distiller.training import TrainingSettings, train

EV_PER_A_AMU = 9.648533212e-3
"""eV/Å per amu, as Å/fs²."""
KB_EV_PER_K = 8.617333262e-5


def rounded(atoms):
    """``atoms`` with positions that float32 holds, so that a label belongs to what is stored."""
    copy = Atoms(atoms.numbers, atoms.positions.astype(np.float32), cell=atoms.cell, pbc=atoms.pbc)
    copy.info = dict(atoms.info)
    return copy


def strained(atoms, rng, sigma):
    """The cell, and atoms with it, under a strain of N(0, sigma), and a swelling of as much."""
    if not sigma:
        return atoms.copy()
    strain = rng.normal(scale=sigma, size=(3, 3))
    deformation = np.eye(3) * (1 + rng.normal(scale=sigma)) + 0.5 * (strain + strain.T)
    moved = atoms.copy()
    moved.set_cell(atoms.cell.array @ deformation, scale_atoms=True)
    return moved


def fit_nep(batches, updates, seed, settings=None):
    """A nep student trained on ``batches`` but every tenth; its metrics on those."""
    order = np.random.default_rng(seed).permutation(len(batches))
    n_validation = max(2, len(batches) // 10)
    validation = [batches[k] for k in order[:n_validation]]
    training = [batches[k] for k in order[n_validation:]]
    student = nep_for(training, settings or NEPSettings(), seed)
    history = train(student, training, validation, TrainingSettings(updates=updates), seed=seed)
    best = min(history, key=lambda row: row["validation_forces_mae_meV_per_A"])
    return student, {name: round(value, 4) for name, value in best.items()}


def langevin(forces_of, positions, masses, temperature_K, time_step_fs, friction_per_ps, generator):
    """Endless (positions, forces, temperature of the velocities) after each step of BAOAB.

    Leimkuhler and Matthews, Appl. Math. Res. Express 2013, 34. Tensors (n_atoms, 3) float64 on
    one device; ``temperature_K`` a number or (n_atoms, 1). Velocities begin at ``temperature_K``.
    """

    def noise():
        return torch.randn(
            positions.shape, generator=generator, dtype=torch.float64, device=positions.device
        )

    masses = masses.unsqueeze(1)
    thermal = (KB_EV_PER_K * EV_PER_A_AMU * temperature_K / masses).sqrt()
    kick = 0.5 * time_step_fs * EV_PER_A_AMU / masses
    keep = math.exp(-friction_per_ps * 1e-3 * time_step_fs)
    velocities = thermal * noise()
    forces = forces_of(positions)
    while True:
        velocities = velocities + kick * forces
        positions = positions + 0.5 * time_step_fs * velocities
        velocities = keep * velocities + math.sqrt(1 - keep**2) * thermal * noise()
        positions = positions + 0.5 * time_step_fs * velocities
        forces = forces_of(positions)
        velocities = velocities + kick * forces
        yield positions, forces, masses * velocities.square() / (KB_EV_PER_K * EV_PER_A_AMU)


def by_calculator(calculator, atoms):
    """``forces_of`` for ``langevin`` from an ASE calculator."""
    moving = Atoms(atoms.numbers, cell=atoms.cell, pbc=atoms.pbc, positions=atoms.positions)
    moving.calc = calculator

    def forces_of(positions):
        moving.positions = positions.numpy()
        return torch.from_numpy(np.asarray(moving.get_forces(), dtype=np.float64))

    return forces_of


def walk(calculator, atoms, temperature_K, n_frames, seed, **settings):
    """Frames of one walker, every ``every_fs`` after ``equilibration_fs``; fewer if it explodes.

    It has exploded, and what it would give is discarded, when a force exceeds
    ``max_force_eV_per_A`` at a frame, or is not a number.
    """
    time_step_fs, every_fs = settings["time_step_fs"], settings["every_fs"]
    steps = langevin(
        by_calculator(calculator, atoms),
        torch.from_numpy(atoms.positions.copy()),
        torch.from_numpy(atomic_masses[atoms.numbers]),
        temperature_K,
        time_step_fs,
        settings.get("friction_per_ps", 10.0),
        torch.Generator().manual_seed(seed),
    )
    stride = round(every_fs / time_step_fs)
    first = round(settings["equilibration_fs"] / time_step_fs)
    frames = []
    for step, (positions, forces, _) in enumerate(steps, 1):
        if step % stride == 0 and not forces.abs().max() < settings["max_force_eV_per_A"]:
            break
        if step > first and (step - first) % stride == 0:
            frame = Atoms(atoms.numbers, positions.numpy(), cell=atoms.cell, pbc=atoms.pbc)
            frame.info = {"temperature_K": temperature_K, "walker": seed}
            frames.append(rounded(frame))
        if len(frames) == n_frames:
            break
    return frames


def student_walks(
    student, starts, temperatures_K, frames_each, seed, on_walk=lambda frames: None, **settings
):
    """Frames of a walker for each start, temperatures taken in turn; which ones exploded.

    After each walker ``on_walk`` is shown the frames of all so far.
    """
    calculator = StudentCalculator(student, device="cpu")
    frames, exploded = [], []
    for k, atoms in enumerate(starts):
        temperature = temperatures_K[k % len(temperatures_K)]
        own = walk(calculator, atoms, temperature, frames_each, seed + k, **settings)
        frames += own
        if len(own) < frames_each:
            exploded.append({"walker": seed + k, "temperature_K": temperature, "kept": len(own)})
        print(f"walker {seed + k} {temperature} K: {len(own)} frames", flush=True)
        on_walk(frames)
    return frames, exploded

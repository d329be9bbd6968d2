"""Harmonic frequencies of a student and its teacher: a molecule's modes, or a crystal's phonons.

    python benchmarks/vibrations.py 3bpa.xyz --teacher fennol:a.fnx,b.fnx --student RUN/student \
        --out benchmarks/results/vibrations_3bpa.json
    python benchmarks/vibrations.py si.extxyz --teacher 7net-0 --student RUN/student \
        --path GXU,KGL --plot bands.png --out benchmarks/results/vibrations_si.json

Each relaxes the structure by itself (a crystal with its cell), from the same start, and is then
differentiated: central differences of forces. A molecule's translations and rotations are projected
out, and modes are compared in the order of their frequencies; phonons at the points of a band path
and of a regular mesh, branch by branch. Imaginary frequencies count as negative. Relative errors
are of the teacher's frequencies above 50 cm^-1.

Phonons need ``pip install phonopy`` (4.x), which is no dependency of ours.
"""

import argparse
import json
import platform
import subprocess
import warnings
from pathlib import Path

import numpy as np
import torch
from ase import units
from ase.build import minimize_rotation_and_translation
from ase.filters import FrechetCellFilter
from ase.io import read
from ase.optimize import BFGS

from mlff_distiller.deploy import StudentCalculator
from mlff_distiller.teachers import load_teacher

LOWEST_PER_CM = 50.0
"""Below it relative errors say nothing: acoustic branches vanish at the zone's centre."""
TERAHERTZ = 1e12 / (100.0 * units._c)
"""cm^-1."""


def relaxed(atoms, calculator, largest_force):
    """A copy at the minimum, with its cell if it is a crystal; and whether it got there."""
    own = atoms.copy()
    own.calc = calculator
    mobile = FrechetCellFilter(own) if own.pbc.all() else own
    done = BFGS(mobile, logfile=None).run(fmax=largest_force, steps=1_000)
    if not done:
        print(f"not relaxed: largest force {np.abs(own.get_forces()).max():.2g} eV/Å", flush=True)
    return own


# -- molecules ------------------------------------------------------------------------------------


def normal_modes(atoms, displacement):
    """Frequencies (3 n_atoms - 6,) in cm^-1, ascending."""
    n = 3 * len(atoms)
    hessian = np.zeros((n, n))
    moved = atoms.copy()
    moved.calc = atoms.calc
    for k in range(n):
        forces = []
        for sign in (-1.0, 1.0):
            moved.positions = atoms.positions
            moved.positions[k // 3, k % 3] += sign * displacement
            forces.append(moved.get_forces().ravel())
        hessian[k] = (forces[0] - forces[1]) / (2.0 * displacement)
    root = np.sqrt(np.repeat(atoms.get_masses(), 3))
    weighted = 0.5 * (hessian + hessian.T) / np.outer(root, root)
    inner = vibrations_only(atoms)
    squares = np.linalg.eigvalsh(inner.T @ weighted @ inner)  # eV/(Å² u)
    hertz = np.sqrt(units._e / units._amu) * 1e10 / (2.0 * np.pi)
    return np.sign(squares) * np.sqrt(np.abs(squares)) * hertz / (100.0 * units._c)


def vibrations_only(atoms):
    """Orthonormal columns, in mass-weighted coordinates, free of translations and rotations."""
    root = np.sqrt(atoms.get_masses())[:, None]
    arms = atoms.positions - atoms.get_center_of_mass()
    rigid = [np.broadcast_to(axis, arms.shape) for axis in np.eye(3)]
    rigid += [np.cross(axis, arms) for axis in np.eye(3)]
    columns = np.stack([(root * own).ravel() for own in rigid], 1)
    left, sizes, _ = np.linalg.svd(columns, full_matrices=True)
    return left[:, int((sizes > 1e-6 * sizes[0]).sum()) :]


# -- crystals -------------------------------------------------------------------------------------


def phonons(atoms, supercell, displacement):
    """``Phonopy`` with its force constants."""
    from phonopy import Phonopy
    from phonopy.structure.atoms import PhonopyAtoms

    cell = PhonopyAtoms(
        symbols=atoms.get_chemical_symbols(),
        cell=atoms.cell.array,
        scaled_positions=atoms.get_scaled_positions(),
    )
    with warnings.catch_warnings():  # that "auto" was another release's default
        warnings.simplefilter("ignore")
        model = Phonopy(cell, np.diag(supercell), primitive_matrix="auto", symprec=1e-3)
    model.generate_displacements(distance=displacement)
    forces = []
    for own in model.supercells_with_displacements:
        moved = atoms.__class__(own.symbols, own.positions, cell=own.cell, pbc=True)
        moved.calc = atoms.calc
        forces.append(moved.get_forces())
    model.forces = np.array(forces)
    model.produce_force_constants()
    model.symmetrize_force_constants()
    return model


def band_path(model, path, n_points, atoms):
    primitive = atoms.__class__(model.primitive.symbols, cell=model.primitive.cell, pbc=True)
    return primitive.cell.bandpath(path, npoints=n_points)


def frequencies_at(model, points):
    """(n_points, n_branches) in cm^-1."""
    model.run_qpoints(points)
    return TERAHERTZ * model.qpoints.frequencies


def on_mesh(model, mesh):
    """Frequencies (n_points, n_branches) in cm^-1 of the irreducible points, and their weights."""
    model.run_mesh(mesh, is_gamma_center=True)
    return TERAHERTZ * model.mesh.frequencies, model.mesh.weights


def draw(file, path, bands, title):
    import matplotlib.pyplot as plt

    x, ticks, names = path.get_linear_kpoint_axis()
    figure, axes = plt.subplots(figsize=(6.4, 4.2), constrained_layout=True)
    looks = {"teacher": ("#27313F", "-", 2.2), "student": ("#DD6B20", "--", 1.4)}
    for who, values in bands.items():
        color, dash, width = looks[who]
        lines = axes.plot(x, values, dash, color=color, lw=width)
        lines[0].set_label(who)
    for tick in ticks:
        axes.axvline(tick, color="#DDE2E9", lw=0.8, zorder=0)
    labels = {}
    for tick, name in zip(ticks, names, strict=True):  # at a jump two names share a tick
        key = round(float(tick), 6)
        labels[key] = f"{labels[key]}|{name}" if key in labels else name
    axes.set_xticks(list(labels), [name.replace("G", "Γ") for name in labels.values()])
    axes.set_xlim(x[0], x[-1])
    axes.axhline(0.0, color="#8792A2", lw=0.8)
    axes.set_ylabel("frequency / cm⁻¹")
    axes.set_title(title)
    axes.legend(loc="lower right", frameon=True)
    file.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(file, dpi=150)


# -- comparison -----------------------------------------------------------------------------------


def difference(teacher, student, weights=None):
    """Errors of frequencies (n_modes,) or (n_points, n_branches), whose points have ``weights``."""
    error = np.abs(student - teacher)
    weights = np.ones(len(teacher)) if weights is None else weights
    each = np.broadcast_to(weights.reshape(-1, *[1] * (error.ndim - 1)), error.shape)
    counted = teacher > LOWEST_PER_CM
    relative = 100.0 * error[counted] / teacher[counted]
    return {
        "n": int(error.size),
        "mean_per_cm": float(np.average(error, weights=each)),
        "max_per_cm": float(error.max()),
        "mean_per_cent": float(np.average(relative, weights=each[counted])),
        "max_per_cent": float(relative.max()),
        "teacher_lowest_per_cm": float(teacher.min()),
        "student_lowest_per_cm": float(student.min()),
    }


def molecule(minima, arguments):
    frequencies = {w: normal_modes(own, arguments.displacement) for w, own in minima.items()}
    fixed, moved = minima["teacher"].copy(), minima["student"].copy()
    minimize_rotation_and_translation(fixed, moved)
    shift = np.sqrt(np.square(moved.positions - fixed.positions).sum(1).mean())
    return {
        "minima_rmsd_A": float(shift),
        "modes": difference(frequencies["teacher"], frequencies["student"]),
        "frequencies_per_cm": {w: np.round(own, 2).tolist() for w, own in frequencies.items()},
    }


def crystal(minima, arguments):
    size = [arguments.supercell] * 3
    models = {who: phonons(own, size, arguments.displacement) for who, own in minima.items()}
    paths = {
        who: band_path(model, arguments.path, arguments.n_points, minima[who])
        for who, model in models.items()
    }
    bands = {who: frequencies_at(model, paths[who].kpts) for who, model in models.items()}
    mesh = {who: on_mesh(model, [arguments.mesh] * 3) for who, model in models.items()}
    if arguments.plot:
        title = f"{minima['teacher'].get_chemical_formula(empirical=True)}, {arguments.teacher}"
        draw(arguments.plot, paths["teacher"], bands, title)
    return {
        "cell_lengths_A": {
            w: np.round(own.cell.lengths(), 5).tolist() for w, own in minima.items()
        },
        "supercell": size,
        "path": paths["teacher"].path,
        "band": difference(bands["teacher"], bands["student"]),
        "mesh": difference(mesh["teacher"][0], mesh["student"][0], mesh["teacher"][1]),
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("structure", type=Path, help="the first of the file is taken")
    parser.add_argument("--teacher", required=True)
    parser.add_argument("--student", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--plot", type=Path, help="of the phonon bands (PNG)")
    parser.add_argument("--displacement", type=float, default=0.01, help="Å")
    parser.add_argument("--largest-force", type=float, default=1e-3, help="eV/Å, when relaxed")
    parser.add_argument("--supercell", type=int, default=2)
    parser.add_argument("--path", help="of special points, as in ase; by default all")
    parser.add_argument("--n-points", type=int, default=200)
    parser.add_argument("--mesh", type=int, default=16)
    parser.add_argument("--device", default="cpu")
    arguments = parser.parse_args()
    atoms = read(arguments.structure, 0)
    commit = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False
    )
    report = {
        "about": {
            "machine": platform.machine(),
            "torch": torch.__version__,
            "commit": commit.stdout.strip(),
            "teacher": ",".join(Path(own).name for own in arguments.teacher.split(",")),
            "student": arguments.student.name,
            "structure": arguments.structure.name,
            "n_atoms": len(atoms),
            "displacement_A": arguments.displacement,
            "largest_force_eV_per_A": arguments.largest_force,
        }
    }
    student = StudentCalculator(arguments.student, device=arguments.device, dtype="float64")
    with load_teacher(arguments.teacher, device=arguments.device) as teacher:
        minima = {
            "teacher": relaxed(atoms, teacher, arguments.largest_force),
            "student": relaxed(atoms, student, arguments.largest_force),
        }
        kind = crystal if atoms.pbc.all() else molecule
        report |= kind(minima, arguments)
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    arguments.out.write_text(json.dumps(report, indent=1) + "\n")
    print(json.dumps({key: own for key, own in report.items() if key != "frequencies_per_cm"}))


if __name__ == "__main__":
    main()

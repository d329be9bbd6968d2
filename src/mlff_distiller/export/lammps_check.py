"""What LAMMPS makes of a student, compared with the student's own float64 results."""

from __future__ import annotations

import copy
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import numpy as np
from ase import Atoms
from ase.io import read
from numpy.typing import NDArray

from mlff_distiller.batch import Batch
from mlff_distiller.export.lammps_files import BAR_A3, boundary, write_data
from mlff_distiller.export.target import Row
from mlff_distiller.neighbors import neighbor_list
from mlff_distiller.structure import default_time_step_fs, enlarge
from mlff_distiller.students import Student

Run = Callable[[Path, int], None]
"""Runs an input of LAMMPS, in its own folder, on the given number of ranks."""
_Array = NDArray[np.float64]
RANKS = (1, 2, 4)
_LIMITS = {
    "energy": ("eV/atom", 1e-8),
    "energies": ("eV", 1e-8),
    "forces": ("eV/Å", 1e-6),
    "virial": ("eV/atom", 1e-8),
    "forces_error": ("relative", 1e-6),
}
_SUMS = ("energy", "virial", "virials", "centroid")
"""Over the atoms."""
_POSITIONS = 1e-9
"""Å."""
_DRIFT = 0.1
"""meV/atom/ps."""
_ATOMS, _FEW = 64, 12
_NVE_STEPS, _NVE_EVERY = 2000, 20


@dataclass(frozen=True)
class _Results:
    energy: float  # eV
    energies: _Array  # (n_atoms,) eV
    forces: _Array  # (n_atoms, 3) eV/Å
    virial: _Array  # (3, 3) eV, the sum of r F
    forces_error: _Array  # (n_atoms,) logarithms of estimates in eV/Å; none without an error model


def compare(student: Student, out: Path, run: Run) -> list[Row]:
    """Rows of `Target.check`: frames on 1, 2 and 4 ranks, per-atom values, a restart, and NVE."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        structure = cast(Atoms, read(out / "structure.extxyz"))
        frames = dict(_frames(structure, student.elements))
        for title, atoms in frames.items():
            write_data(folder / f"{_stem(title)}.data", atoms, student.elements)
        exact = copy.deepcopy(student).double()
        expected = {
            title: _expected(exact, folder / f"{_stem(title)}.data", atoms)
            for title, atoms in frames.items()
        }
        model = _model(out, student)
        found = {}
        for ranks in RANKS:
            script = folder / "in.frames"
            script.write_text(
                "".join(_single_point(model, t, atoms) for t, atoms in frames.items())
            )
            run(script, ranks)
            for title in frames:
                found[title, ranks] = _read(folder, title)
        rows = _frame_rows(expected, found)
        script = folder / "in.dynamics"
        moving = _moving(structure, frames["bulk"])
        write_data(folder / "moving.data", moving, student.elements)
        script.write_text(_dynamics(model, moving))
        run(script, 1)
        return rows + _dynamics_rows(folder, moving)


def _frames(structure: Atoms, elements: tuple[str, ...]) -> Iterator[tuple[str, Atoms]]:
    """By name: structures of every kind that engines treat differently, all displaced a little."""
    rng = np.random.default_rng(0)

    def displaced(atoms: Atoms) -> Atoms:
        moved: Atoms = atoms.copy()
        moved.positions += rng.normal(scale=0.05, size=moved.positions.shape)
        return moved

    unit = structure.copy()
    if not unit.pbc.all():  # of molecules, the densest crystal that keeps them apart
        unit.cell, unit.pbc = np.ptp(unit.positions, axis=0) + 2.5, True
    bulk = enlarge(unit, _ATOMS)
    yield "bulk", displaced(bulk)
    if len(elements) > 1:
        mixed = displaced(bulk)
        mixed.symbols = rng.choice(elements, len(mixed))
        yield "elements at random", mixed
    skewed = displaced(bulk)
    skewed.set_cell(skewed.cell @ (np.eye(3) + np.triu(rng.uniform(-0.2, 0.2, (3, 3)), 1)), True)
    yield "skewed cell", skewed
    if len(unit) <= _ATOMS:
        yield "small cell", displaced(unit)
    slab = displaced(bulk)
    slab.center(vacuum=10.0, axis=2)
    slab.pbc = [True, True, abs(slab.cell[2, :2]).max() > 0]  # LAMMPS wants walls upright
    yield "slab", slab
    if np.allclose(slab.cell.angles(), 90.0):
        wire = slab.copy()
        wire.center(vacuum=10.0, axis=1)
        wire.pbc = [True, False, False]
        yield "wire", wire
    centre = bulk.positions - bulk.positions.mean(0)
    molecule = structure if not structure.pbc.any() else bulk[np.argsort((centre**2).sum(1))[:_FEW]]
    molecule = displaced(molecule)
    molecule.pbc = False
    yield "molecule in a large box", molecule


def _moving(structure: Atoms, bulk: Atoms) -> Atoms:
    """What moves: copies of a molecule or slab, whose student need not know a crystal of them."""
    if structure.pbc.all():
        return bulk
    apart = structure.copy()
    for axis in np.flatnonzero(~structure.pbc).tolist():
        apart.center(vacuum=10.0, axis=axis)
    apart.pbc = True
    return enlarge(apart, _ATOMS)


def _expected(student: Student, data: Path, frame: Atoms) -> _Results:
    """The student's results for the structure in the data file: LAMMPS turns cells."""
    atoms = cast(Atoms, read(data, format="lammps-data", atom_style="atomic", sort_by_id=True))
    atoms.numbers, atoms.pbc = frame.numbers, frame.pbc
    batch = Batch.from_atoms([atoms])
    near = neighbor_list(batch, student.cutoff)
    found, estimates = student(batch, near), np.zeros(0)
    if student.error_model is not None:
        types = student.types(batch.atomic_numbers)
        estimates = student.error_model.estimate(student, types, batch, near)[0].log().numpy()
    return _Results(
        found.energy[0].item(),
        found.energies.detach().numpy(),
        found.forces.detach().numpy(),
        -found.strain_gradient[0].detach().numpy(),
        estimates,
    )


def _model(out: Path, student: Student) -> str:
    elements = " ".join(student.elements)
    plugin = f"plugin load {out / 'mlffdplugin.so'}"
    errors = f" errors {out / 'errors.txt'}" if (out / "errors.txt").exists() else ""
    style = f"{plugin}\npair_style mlffd{errors}\npair_coeff * * {out / 'nep.txt'} {elements}\n"
    return f"{style}fix errors all pair 1 mlffd forces_error 1\n" if errors else style


def _system(model: str, title: str, atoms: Atoms) -> str:
    return f"clear\nunits metal\nboundary {boundary(atoms)}\nread_data {_stem(title)}.data\n{model}"


def _stem(title: str) -> str:
    return title.replace(" ", "-")


def _single_point(model: str, title: str, atoms: Atoms) -> str:
    own, errors = _stem(title), " f_errors" if "fix errors" in model else ""
    pressure = " ".join(f"$(c_pressure[{k}]:%.17g)" for k in range(1, 7))
    return f"""{_system(model, title, atoms)}
compute energies all pe/atom
compute virials all stress/atom NULL virial
compute centroid all centroid/stress/atom NULL virial
compute pressure all pressure NULL virial
thermo_style custom step pe vol c_pressure[*]
dump atoms all custom 1 {own}.atoms id fx fy fz c_energies c_virials[*] c_centroid[*]{errors}
dump_modify atoms sort id format float %.17g
run 0
print "$(pe:%.17g) $(vol:%.17g) {pressure}" file {own}.sums
"""


@dataclass(frozen=True)
class _Found(_Results):
    virials: _Array  # (3, 3) eV, sum over the atoms of ``stress/atom``
    centroid: _Array  # of ``centroid/stress/atom``


def _read(folder: Path, title: str) -> _Found:
    energy, volume, *pressure = np.loadtxt(folder / f"{_stem(title)}.sums")
    atoms = np.loadtxt(folder / f"{_stem(title)}.atoms", skiprows=9, ndmin=2)
    virials, centroid = -atoms[:, 5:11].sum(0), -atoms[:, 11:20].sum(0)
    symmetric = [0, 3, 4, 3, 1, 5, 4, 5, 2]  # of xx, yy, zz, xy, xz, yz
    return _Found(
        energy,
        atoms[:, 4],
        atoms[:, 1:4],
        np.array(pressure)[symmetric].reshape(3, 3) * volume / BAR_A3,
        np.log(atoms[:, 20:]).ravel(),
        virials[symmetric].reshape(3, 3) / BAR_A3,
        centroid[[0, 3, 4, 6, 1, 5, 7, 8, 2]].reshape(3, 3) / BAR_A3,
    )


def _frame_rows(expected: dict[str, _Results], found: dict[tuple[str, int], _Found]) -> list[Row]:
    """The largest differences: by frame on one rank, over all frames on several."""

    def off(quantity: str, title: str, ranks: int, other: str = "") -> float:
        own, engine = expected[title], found[title, ranks]
        wanted = getattr(engine, other) if other else getattr(own, quantity)
        difference = float(np.abs(getattr(engine, quantity) - wanted).max())
        return difference / len(own.forces) if quantity in _SUMS else difference

    rows = []
    for ranks in RANKS:
        groups = [[title] for title in expected] if ranks == 1 else [[*expected]]
        for titles in groups:
            what = titles[0] if ranks == 1 else f"all, {ranks} ranks"
            for quantity, (unit, limit) in _LIMITS.items():
                if quantity == "forces_error" and not len(expected[titles[0]].forces_error):
                    continue
                worst = max(off(quantity, title, ranks) for title in titles)
                rows.append(Row(f"{quantity}, {what}", worst, unit, limit))
    for quantity, name in (("virials", "stress/atom"), ("centroid", "centroid/stress/atom")):
        worst = max(off(quantity, title, ranks, "virial") for title, ranks in found)
        rows.append(Row(f"sum of {name}", worst, *_LIMITS["virial"]))
    return rows


def _dynamics(model: str, atoms: Atoms) -> str:
    last = "write_dump all custom {} id x y z vx vy vz modify sort id format float %.17g"
    step = default_time_step_fs(atoms) * 1e-3
    return f"""{_system(model, "moving", atoms)}
minimize 0 1e-3 300 3000
reset_timestep 0
timestep {step:g}
velocity all create 300 4928 mom yes rot no dist gaussian
fix nve all nve
thermo_modify lost error
variable energy equal etotal
run 100
fix energies all ave/time {_NVE_EVERY} 1 {_NVE_EVERY} v_energy file nve.energies format " %.17g"
run {_NVE_STEPS}
unfix energies
write_restart half.restart
run 50
{last.format("straight.atoms")}
clear
read_restart half.restart
{model}fix nve all nve
timestep {step:g}
run 50
{last.format("restarted.atoms")}
"""


def _dynamics_rows(folder: Path, atoms: Atoms) -> list[Row]:
    step, energy = np.loadtxt(folder / "nve.energies").T
    time_ps = (step - step[0]) * default_time_step_fs(atoms) * 1e-3
    drift = 1e3 * np.polyfit(time_ps, energy / len(atoms), 1)[0]
    straight, restarted = (
        np.loadtxt(folder / f"{name}.atoms", skiprows=9) for name in ("straight", "restarted")
    )
    return [
        Row(f"NVE drift, {time_ps[-1]:g} ps", abs(drift), "meV/atom/ps", _DRIFT),
        Row("positions 50 steps after a restart", abs(straight - restarted).max(), "Å", _POSITIONS),
    ]

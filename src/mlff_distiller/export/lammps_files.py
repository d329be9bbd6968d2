"""The files that a run of LAMMPS with a nep student begins with."""

from __future__ import annotations

import shlex
from dataclasses import replace
from pathlib import Path

import numpy as np
from ase import Atoms
from ase.io import write

from mlff_distiller.kernels.nep.warp_simd import sizes
from mlff_distiller.structure import default_time_step_fs
from mlff_distiller.students import NEP

_WATCH = """
# How far forces may be from the teacher's, eV/A, every 50 steps; f_errors[1] is that of each atom.
fix           errors all pair 50 mlffd forces_error 1 extrapolation 1
compute       worst all reduce max f_errors[1]
variable      worst equal c_worst
fix           guard all halt 50 v_worst > {limit:.3g} error continue
"""
_TELLS = """
The student estimates the errors of its forces. `in.lammps` asks every 50 steps (`fix pair`), and
`fix halt` ends the run where an atom's surroundings are unlike what trained.
"""
BAR_A3 = 1.6021765e6
"""In an eV, as LAMMPS has it in units metal."""


def write_data(path: Path, atoms: Atoms, elements: tuple[str, ...]) -> None:
    """A data file of LAMMPS, which has an atom type for each of ``elements``."""
    boxed = atoms.copy()
    for axis in np.flatnonzero(~atoms.pbc).tolist():
        boxed.center(vacuum=10.0, axis=axis)
    write(path, boxed, format="lammps-data", specorder=list(elements), masses=True)


def sizes_header(student: NEP) -> str:
    """The constants that the pair style is compiled for."""
    shape = replace(student.shape, neurons=student.shape.neurons + 1)
    constants = sizes(shape, has_zbl=student.zbl is not None, float64=True)
    return f"""// The sizes of the student in nep.txt, written by its export.
// One neuron more than it has holds the energies of lone atoms.

#ifndef MLFFD_SIZES_H
#define MLFFD_SIZES_H

{constants}
#endif
"""


def errors_text(student: NEP) -> str | None:
    """The error model of a student as the pair style reads it; None if it has none.

    None, too, where elements have cutoffs of their own: LAMMPS does not list the neighbours then.
    """
    model = student.error_model
    if model is None or len(set(student.cutoffs)) > 1:
        return None
    lines = [
        f"elements {' '.join(student.elements)}",
        f"neurons {model.mean.shape[1]}",
        f"power {model.power:.17g}",
        f"reach {model.reach:.17g}",
    ]
    for parts in zip(model.edge, model.scale, model.mean, model.whitening, strict=True):
        lines += (f"{value:.17g}" for part in parts for value in part.flatten().tolist())
    return "\n".join(lines) + "\n"


def boundary(atoms: Atoms) -> str:
    """Periodic, or growing so that no atom is lost; with `s` a flat molecule has no box at all."""
    return " ".join("p" if periodic else "m" for periodic in atoms.pbc)


def input_text(student: NEP, atoms: Atoms) -> str:
    """An input that runs as it is."""
    tells = errors_text(student) is not None
    style = f"pair_style    mlffd{' errors errors.txt' if tells else ''}"
    watch = _WATCH.format(limit=student.error_model.limit) if tells and student.error_model else ""
    return f"""# {len(atoms)} atoms, NVE from 300 K: mpiexec -n 2 lmp -in in.lammps
units         metal
newton        on
boundary      {boundary(atoms)}
atom_style    atomic
read_data     structure.data

plugin load   ./mlffdplugin.so
{style}
pair_coeff    * * nep.txt {" ".join(student.elements)}

neighbor      1.0 bin
neigh_modify  every 1 delay 0 check yes
timestep      {default_time_step_fs(atoms) * 1e-3:g}
velocity      all create 300 4928 mom yes rot yes dist gaussian
fix           nve all nve
{watch}
thermo        100
thermo_style  custom step temp pe etotal press{" v_worst" if tells else ""}
thermo_modify lost error
dump          frames all custom 100 frames.lammpstrj id element x y z
dump_modify   frames element {" ".join(student.elements)} sort id
run           1000
"""


def readme(student: NEP, install: str, options: list[str]) -> str:
    """How to build and run, and what a pair style of a nep needs."""
    build = shlex.join(["python", "build.py", *options])
    return f"""# A nep student of {", ".join(student.elements)} in LAMMPS

```bash
{install}   # or a LAMMPS of yours with the package PLUGIN: build.py --lammps-source FOLDER
{build}
lmp -in in.lammps             # or mpiexec -n 4 lmp -in in.lammps
```

`in.lammps` begins with `structure.data`: replace it by your own. `pair_coeff * * nep.txt` names the
element of each atom type. Needed: `units metal`, `newton on`. Give `pair_style` and `pair_coeff`
again after `read_restart`. For `compute heat/flux` use `centroid/stress/atom`.
{_TELLS if errors_text(student) else ""}"""

"""LAMMPS with a student on one process: python run_lammps.py, and LAMMPS' own options."""

import sys

from mlff_distiller.deploy.lammps import StudentFix, lammps

lmp = lammps(*sys.argv[1:])
lmp.file("in.system")  # up to the atoms
student = StudentFix(lmp, "student")  # fix mlffd: forces, energy and virial
lmp.file("in.run")

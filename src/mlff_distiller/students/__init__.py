"""Students: small models of per-atom energies with exact forces and stress."""

from mlff_distiller.students.artefact import (
    load_student,
    read_config,
    save_student,
    student_folder,
)
from mlff_distiller.students.base import Prediction, Student
from mlff_distiller.students.data import set_repulsion
from mlff_distiller.students.nep import NEP
from mlff_distiller.students.nep_file import read_nep, write_nep
from mlff_distiller.students.nep_setup import NEPSettings, nep_for
from mlff_distiller.students.painn import PaiNN
from mlff_distiller.students.painn_setup import PaiNNSettings, painn_for

__all__ = [
    "NEP",
    "NEPSettings",
    "PaiNN",
    "PaiNNSettings",
    "Prediction",
    "Student",
    "load_student",
    "nep_for",
    "painn_for",
    "read_config",
    "read_nep",
    "save_student",
    "set_repulsion",
    "student_folder",
    "write_nep",
]

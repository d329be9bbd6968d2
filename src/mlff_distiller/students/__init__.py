"""Students: small models of per-atom energies with exact forces and stress."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mlff_distiller.students.artefact import load_student, read_config, save_student
    from mlff_distiller.students.base import Prediction, Student
    from mlff_distiller.students.nep import NEP
    from mlff_distiller.students.nep_file import read_nep, write_nep
    from mlff_distiller.students.nep_setup import NEPSettings, nep_for
    from mlff_distiller.students.painn import PaiNN
    from mlff_distiller.students.painn_setup import PaiNNSettings, painn_for
    from mlff_distiller.students.repulsion import set_repulsion

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
    "write_nep",
]
_HOMES = {
    "NEP": "nep",
    "NEPSettings": "nep_setup",
    "PaiNN": "painn",
    "PaiNNSettings": "painn_setup",
    "Prediction": "base",
    "Student": "base",
    "load_student": "artefact",
    "nep_for": "nep_setup",
    "painn_for": "painn_setup",
    "read_config": "artefact",
    "read_nep": "nep_file",
    "save_student": "artefact",
    "set_repulsion": "repulsion",
    "write_nep": "nep_file",
}


def __getattr__(name: str) -> Any:
    # Imported when first used: `--help` names the architectures, and has no time for torch.
    if name in _HOMES:
        return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

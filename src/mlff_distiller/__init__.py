"""MLFF Distiller: a slow, accurate force field in; a fast one for your chemistry out."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mlff_distiller.deploy import StudentCalculator
    from mlff_distiller.md import run_md
    from mlff_distiller.measure import MDBenchmark
    from mlff_distiller.teachers import load_teacher
    from mlff_distiller.workflows.distill import distill

__all__ = ["MDBenchmark", "StudentCalculator", "distill", "load_teacher", "run_md"]

_HOMES = {
    "MDBenchmark": "mlff_distiller.measure",
    "StudentCalculator": "mlff_distiller.deploy",
    "distill": "mlff_distiller.workflows.distill",
    "load_teacher": "mlff_distiller.teachers",
    "run_md": "mlff_distiller.md",
}


def __getattr__(name: str) -> Any:
    # Imported when first used: torch alone takes two seconds, and `--help` needs none of it.
    if name in _HOMES:
        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

"""MLFF Distiller: a slow, accurate force field in; a fast one for your chemistry out."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mlff_distiller.deploy import StudentCalculator
    from mlff_distiller.md import run_md
    from mlff_distiller.measure import MDBenchmark
    from mlff_distiller.teachers import load_teacher
    from mlff_distiller.workflows.config import Config
    from mlff_distiller.workflows.distill import distill
    from mlff_distiller.workflows.label import label
    from mlff_distiller.workflows.sample import sample
    from mlff_distiller.workflows.train import train
    from mlff_distiller.workflows.validate import validate

    __version__: str

_HOMES = {
    "Config": "mlff_distiller.workflows.config",
    "MDBenchmark": "mlff_distiller.measure",
    "StudentCalculator": "mlff_distiller.deploy",
    "distill": "mlff_distiller.workflows.distill",
    "label": "mlff_distiller.workflows.label",
    "load_teacher": "mlff_distiller.teachers",
    "run_md": "mlff_distiller.md",
    "sample": "mlff_distiller.workflows.sample",
    "train": "mlff_distiller.workflows.train",
    "validate": "mlff_distiller.workflows.validate",
}

__all__ = [
    "Config",
    "MDBenchmark",
    "StudentCalculator",
    "__version__",
    "distill",
    "label",
    "load_teacher",
    "run_md",
    "sample",
    "train",
    "validate",
]


def __getattr__(name: str) -> Any:
    # Imported when first used: torch alone takes two seconds, and `--help` needs none of it.
    if name in _HOMES:
        return getattr(import_module(_HOMES[name]), name)
    if name == "__version__":
        from importlib.metadata import version

        return version("mlff-distiller")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return [*__all__, "__doc__", "__file__", "__name__", "__path__"]

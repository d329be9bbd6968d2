"""Ways to run a student in other programs."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mlff_distiller.deploy.calculator import StudentCalculator

__all__ = ["StudentCalculator"]


def __getattr__(name: str) -> Any:
    # Imported when first used: OpenMM-ML imports `openmm_ml` whenever it is imported itself.
    if name == "StudentCalculator":
        from mlff_distiller.deploy.calculator import StudentCalculator

        return StudentCalculator
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

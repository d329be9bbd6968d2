"""What a step of molecular dynamics costs, why, and whether it got worse; and what works here."""

from mlff_distiller.measure.benchmark import MDBenchmark, Settings
from mlff_distiller.measure.doctor import Check, examine
from mlff_distiller.measure.results import Result, check, compare, read_result, record

__all__ = [
    "Check",
    "MDBenchmark",
    "Result",
    "Settings",
    "check",
    "compare",
    "examine",
    "read_result",
    "record",
]

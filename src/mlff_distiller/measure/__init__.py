"""What a step of molecular dynamics costs, why, and whether it got worse; and what works here."""

from mlff_distiller.measure.benchmark import MDBenchmark, Settings
from mlff_distiller.measure.profiling import Profile, ProfileSettings, profile
from mlff_distiller.measure.results import Result, check, compare, read_result, record

__all__ = [
    "MDBenchmark",
    "Profile",
    "ProfileSettings",
    "Result",
    "Settings",
    "check",
    "compare",
    "profile",
    "read_result",
    "record",
]

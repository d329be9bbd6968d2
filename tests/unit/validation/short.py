"""A validation of argon that takes seconds, and what it rejects."""

from dataclasses import replace

from mlff_distiller.validation.settings import ValidationSettings

SHORT = ValidationSettings(
    temperature_K=(40.0,),
    time_ps=1.4,
    equilibration_ps=0.6,
    time_step_fs=8.0,
    friction_per_ps=20.0,
    record_every=1,
    large_atoms=256,
    memory_steps=600,
    speed_sizes=(32,),
)

# Too few steps to tell whether memory grows, which fails that check and saves half of the time.
UNWATCHED = replace(SHORT, memory_steps=10)
BRIEF = replace(UNWATCHED, time_ps=0.4, equilibration_ps=0.2, kind="slab")
"""For faults that need no statistics: without elastic constants and constant pressure too."""
NOT_TOLD = {"memory_growth_kB_per_step"}


def failed(report: dict) -> set[str]:
    return {check["name"] for check in report["verdict"]["checks"] if not check["passed"]}

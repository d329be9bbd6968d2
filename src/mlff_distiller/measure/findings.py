"""The parts of a step, and a sentence with a remedy for each that is large."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

ASE, COMPARING, CALCULATOR = "ASE", "comparing atoms", "calculator"
NEIGHBORS, MODEL, REMAINDER = "neighbours", "model", "remainder"
MEANING = {
    ASE: "the same dynamics with a calculator that answers at once",
    COMPARING: "what ASE's comparison and copy of the atoms add to that",
    CALCULATOR: "checks, and copies to the model and back: a call less the model",
    NEIGHBORS: "finding neighbours, as often as an atom leaves its skin or the list does not fit",
    MODEL: "energy, forces and stress, evaluated alone",
    REMAINDER: "the step less all parts: by run_md the integrator and the host's checks, "
    "through ASE caches that a part alone finds warm",
}
"""How each part is measured."""

_LARGE = {
    ASE: (20, "is ASE's Python around the calculator", "run_md keeps the step on the device"),
    COMPARING: (10, "is ASE's comparison of atoms", "a student's calculator avoids it"),
    CALCULATOR: (10, "checks and copies arrays for the model", "run_md leaves them there"),
    NEIGHBORS: (10, "finds neighbours", "take a larger skin"),
    MODEL: (50, "is the model itself", "take a smaller or compiled model"),
    REMAINDER: (30, "is the integrator and the host", "larger systems or replicas hide it"),
}
"""Percent of the step that are worth a sentence, and its words."""
_REMEDIES = {ASE: "larger systems hide it", MODEL: "distil it"}
"""Where the model is not a student."""


def findings(case: Mapping[str, Any]) -> list[dict[str, Any]]:
    """What stands out, each with its number: parts of the step, the largest first, then the GPU."""
    found = []
    for row in sorted(case["phases"], key=lambda row: -row["percent"]):
        least, text, remedy = _LARGE[row["name"]]
        if row["percent"] < least or (row["name"] == REMAINDER and case["engine"] == "ase"):
            continue
        if case["kind"] != "student":
            remedy = _REMEDIES.get(row["name"], remedy)
        # Alone, a part may take longer than the whole step, which finds its caches warm.
        percent = min(100.0, row["percent"])
        found.append(_finding(row["name"], percent, f"% of the step {text}; {remedy}"))
    gpu, step_us = case["trace"]["gpu"], 1e3 * case["step_ms"]
    if gpu is None:
        return found
    # Under the profiler the host is slower, so the GPU's time is held against the plain step.
    busy, launches = 100 * gpu["busy_us"] / step_us, f"{gpu['n_launches']:.3g} launches per step"
    if busy < 60:
        text = f"% of the time the GPU computes, after {launches}; take larger systems or replicas"
        found.append(_finding("utilisation", busy, text))
    if gpu["launch_us"] >= 0.1 * step_us and gpu["n_launches"] >= 10:
        text = f"µs of the host's time go into {launches}; a CUDA graph is one launch"
        found.append(_finding("launches", gpu["launch_us"], text))
    for row in gpu["kernels"][:1]:
        if row["share"] >= 0.3:
            text = f"% of the kernels' time is {row['name'][:60]}"
            found.append(_finding("kernel", 100 * row["share"], text))
    return found


def _finding(name: str, value: float, text: str) -> dict[str, Any]:
    return {"name": name, "value": value, "text": f"{value:.0f} {text}"}

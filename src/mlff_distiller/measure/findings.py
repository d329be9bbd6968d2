"""What a profile comes to, in sentences, each with the number behind it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from mlff_distiller.measure import phases as p


@dataclass(frozen=True)
class Finding:
    """``value`` is what ``text`` says, in ``unit``; the weightiest come first."""

    text: str
    name: str
    value: float
    unit: str


def findings(case: Mapping[str, Any]) -> list[Finding]:
    """At most a handful; nothing below a twentieth of the step is worth a sentence."""
    share = {row["name"]: row["ms"] / case["sum_ms"] for row in case["phases"]}
    found: list[Finding] = []

    def say(name: str, value: float, least: float, text: str) -> None:
        if value >= least:
            found.append(Finding(f"{100 * value:.0f} % of the step {text}", name, 100 * value, "%"))

    is_ase = case["engine"] == "ase"
    student = case["kind"] == "student"
    remedy = "run_md does without" if student else "a student's calculator does without"
    say("comparing", share.get(p.COMPARING, 0.0), 0.1, f"is the comparison of atoms; {remedy}")
    around = share.get(p.BOOKKEEPING, 0.0) + share.get(p.INTEGRATOR, 0.0)
    if is_ase:
        remedy = "run_md keeps all of it on the device" if student else "larger systems hide it"
        say("python", around, 0.2, f"is ASE's Python around the calculator; {remedy}")
    else:
        say(
            "integrator", around, 0.3, "is integrator and looks of the host: larger blocks of steps"
        )
    remedy = (
        "run_md keeps a list with a skin"
        if student and is_ase
        else "a larger skin, if there is one"
    )
    say("neighbours", share.get(p.NEIGHBORS, 0.0), 0.1, f"goes into finding neighbours; {remedy}")
    copies = share.get(p.TO_DEVICE, 0.0) + share.get(p.TO_HOST, 0.0)
    say("copies", copies, 0.1, "carries arrays to the model and back; run_md leaves them there")
    remedy = "a smaller or compiled model" if student else "distil it"
    say("model", share.get(p.MODEL, 0.0), 0.5, f"is the model itself; {remedy}")
    found.sort(key=lambda one: -one.value)
    gpu = case["trace"]["gpu"] if case.get("trace") else None
    return found + (_of_gpu(case, gpu) if gpu else []) + _of_memory(case)


def _of_gpu(case: Mapping[str, Any], gpu: Mapping[str, Any]) -> list[Finding]:
    found = []
    # Under the profiler the host is slower, so the GPU's time is held against the plain step.
    busy = gpu["busy_us"] / (1e3 * case["step_ms"])
    kernels, launches, us = gpu["n_kernels"], gpu["n_launches"], gpu["launch_us"]
    if busy < 0.6:
        text = (
            f"the GPU computes {100 * busy:.0f} % of the time, in {kernels:.0f} kernels of "
            f"{launches:.0f} launches a step: the host cannot feed it; larger systems, replicas, "
            "or CUDA graphs"
        )
        found.append(Finding(text, "utilisation", 100 * busy, "%"))
    if 1e-3 * us / case["step_ms"] >= 0.1:
        text = (
            f"{launches:.0f} launches take {us:.0f} µs of host time a step, under the profiler; "
            "a CUDA graph is one"
        )
        found.append(Finding(text, "launches", us, "µs"))
    if gpu["kernels"] and gpu["kernels"][0]["share"] >= 0.3:
        share, name = 100 * gpu["kernels"][0]["share"], _short(gpu["kernels"][0]["name"])
        found.append(Finding(f"{share:.0f} % of the GPU's time is {name}", "kernel", share, "%"))
    return found


def _of_memory(case: Mapping[str, Any]) -> list[Finding]:
    found = []
    for device, row in (case["trace"]["allocations"] if case.get("trace") else {}).items():
        if row["n"] >= 500:
            found.append(
                Finding(
                    f"PyTorch allocates {row['n']:.0f} times a step on the {device}, "
                    f"{row['bytes'] / 2**20:.3g} MiB in all",
                    f"allocations {device}",
                    row["n"],
                    "a step",
                )
            )
    return found


def _short(name: str) -> str:
    return name if len(name) <= 60 else name[:57] + "..."

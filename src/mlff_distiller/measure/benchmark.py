"""``MDBenchmark``: whole trajectories of several models from the same start, and what they cost."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
from ase import Atoms
from numpy.typing import NDArray

from mlff_distiller.errors import ConfigError, DistillerError
from mlff_distiller.md import statistics
from mlff_distiller.md.ensemble import seeds_of
from mlff_distiller.measure.contenders import Contender, Model, contenders_of
from mlff_distiller.measure.machine import describe
from mlff_distiller.measure.meters import MemoryMeter, Telemetry, gpu_memory, host_bytes, thinned
from mlff_distiller.measure.nvml import open_nvml
from mlff_distiller.measure.results import SCHEMA, Result
from mlff_distiller.measure.systems import System, build_system
from mlff_distiller.measure.trial import Clock, EnsembleName, Plan, Trial, run_ase, run_student
from mlff_distiller.structure import default_time_step_fs, thermalise

Engine = Literal["ase", "run_md"]
Progress = Callable[[str, int, int, str], None]


@dataclass(frozen=True)
class Settings:
    """How long and how often. A case runs ``repeats`` times, all models taking turns.

    ``least_seconds`` makes fast models take more steps than ``n_steps``, so that their median is
    as sure as that of slow ones; ``most_seconds`` cuts slow ones short, and the result says so.
    """

    n_steps: int = 1000
    warm_up: int = 50
    repeats: int = 3
    temperature_K: float = 300.0
    pressure_GPa: float = 0.0
    time_step_fs: float | None = None
    least_seconds: float = 1.0
    most_seconds: float | None = None
    replicas: tuple[int, ...] = (1,)
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("n_steps", "repeats"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} must be at least 1", found=getattr(self, name))
        if min(self.replicas, default=0) < 1:
            raise ConfigError("replicas must be at least 1", found=self.replicas)


@dataclass(frozen=True)
class _Case:
    """One model, on one system, by one engine."""

    system: System
    ensemble: EnsembleName
    replicas: int
    contender: Contender
    engine: Engine

    @property
    def label(self) -> str:
        copies = f" x {self.replicas}" if self.replicas > 1 else ""
        return f"{self.contender.name} {self.engine} {self.ensemble} {self.system.name}{copies}"

    def why_not(self) -> str:
        """Why this cannot be, by its nature; '' if it can."""
        if self.ensemble == "npt" and not self.system.has_pressure:
            return "npt needs a structure that is periodic in three directions"
        if self.engine == "run_md" and self.contender.student is None:
            return "run_md runs students only"
        if self.engine == "ase" and self.replicas > 1:
            return "ASE moves one system at a time"
        return ""


class MDBenchmark:
    """Trajectories of ``models`` on ``systems``, side by side.

    Parameters
    ----------
    models
        By name, or without: students (folder, ``nep.txt``, ``Student``), teachers' SPECs, ASE
        calculators. The first teacher, or the first model, is what speed-ups refer to.
    systems
        ``NAME:N`` of the built-in ones, a file, or ``Atoms`` of your own.
    ensembles, engines
        Every combination that there can be is run; the others are listed in ``skipped``.
    device, dtype
        Of students; teachers are told the device.
    clock
        Seconds; tests bring their own.

    Examples
    --------
    >>> from mlff_distiller.reports.benchmark import write_result
    >>> result = MDBenchmark(["RUN/student", "7net-0"], ["silicon:64"]).run()
    >>> write_result(result, "bench")
    """

    def __init__(
        self,
        models: Iterable[Model | Contender] | Mapping[str, Model],
        systems: Iterable[str | Path | Atoms] = ("silicon:64",),
        *,
        ensembles: Sequence[EnsembleName] = ("nve",),
        engines: Sequence[Engine] = ("ase", "run_md"),
        settings: Settings | None = None,
        device: str = "auto",
        dtype: Literal["float32", "float64"] = "float32",
        teacher_python: str | None = None,
        clock: Clock = time.perf_counter,
    ) -> None:
        self.settings = settings or Settings()
        self.clock, self.dtype = clock, dtype
        self.contenders = contenders_of(models, device=device, dtype=dtype, python=teacher_python)
        self.systems = named_systems(systems)
        for words, known in ((ensembles, ("nve", "nvt", "npt")), (engines, ("ase", "run_md"))):
            for word in words:
                if word not in known:
                    raise ConfigError(f"unknown name {word!r}", expected=", ".join(known))
        self.ensembles, self.engines = tuple(ensembles), tuple(engines)
        if not self.contenders or not self.systems or not self.ensembles or not self.engines:
            raise ConfigError("nothing to measure", expected="a model, a system and an ensemble")

    def run(
        self,
        on_progress: Progress | None = None,
        on_case: Callable[[Result], None] = lambda result: None,
    ) -> Result:
        """Run everything; ``on_case`` is given the result so far after each group of cases.

        A case that fails is recorded in ``failed``, and the others go on.
        """
        device = next((c.device for c in self.contenders if c.device != "cpu"), "cpu")
        result = Result(
            {
                "schema": SCHEMA,
                "kind": "md-benchmark",
                "about": describe(device),
                "settings": asdict(self.settings),
                "models": [],
                "cases": [],
                "skipped": [],
                "failed": [],
            }
        )
        groups = self._groups(result)
        total = self.settings.repeats * sum(map(len, groups))
        done = 0
        for group in groups:
            gc.collect()  # or what others left would be collected in the middle of a step
            trials: dict[str, list[dict[str, Any]]] = {case.label: [] for case in group}
            for repeat in range(self.settings.repeats):
                for case in group:
                    if on_progress is not None:
                        on_progress("benchmark", done, total, case.label)
                    done += 1
                    if any(row["case"] == case.label for row in result.failed):
                        continue
                    try:
                        trials[case.label].append(self._trial(case, repeat))
                    except (DistillerError, MemoryError) as error:
                        result.failed.append({"case": case.label, "error": str(error)})
            result.cases += [
                _summary(case, self.settings, trials[case.label])
                for case in group
                if trials[case.label]
            ]
            result.content["models"] = [one.about() for one in self.contenders]
            on_case(result)
        if on_progress is not None:
            on_progress("benchmark", total, total, "")
        return result

    def close(self) -> None:
        """End the teachers' processes."""
        for one in self.contenders:
            one.close()

    def _groups(self, result: Result) -> list[list[_Case]]:
        """Cases that are compared with one another, and so take turns."""
        groups = []
        for system in self.systems:
            for ensemble in self.ensembles:
                for replicas in self.settings.replicas:
                    group = []
                    for one in self.contenders:
                        for engine in self.engines:
                            case = _Case(system, ensemble, replicas, one, engine)
                            reason = case.why_not()
                            if reason:
                                result.skipped.append({"case": case.label, "reason": reason})
                            else:
                                group.append(case)
                    if group:
                        groups.append(group)
        return groups

    def _trial(self, case: _Case, repeat: int) -> dict[str, Any]:
        s = self.settings
        plan = Plan(
            case.ensemble,
            s.time_step_fs or default_time_step_fs(case.system.atoms),
            s.temperature_K,
            s.pressure_GPa,
            s.n_steps,
            s.warm_up,
            s.least_seconds,
            np.inf if s.most_seconds is None else s.most_seconds,
            int(seeds_of(s.seed, repeat + 1)[repeat]),
            case.system.compressibility_per_GPa,
        )
        seeds = seeds_of(s.seed, case.replicas).tolist()
        frames = [start_of(case.system, s.temperature_K, seed) for seed in seeds]
        calculator = case.contender.calculator() if case.engine == "ase" else None
        device, pids = case.contender.device, case.contender.processes()
        memory = MemoryMeter(lambda: host_bytes(pids), gpu_memory(device))
        nvml = open_nvml()[0] if device.startswith("cuda") else None
        with Telemetry(nvml) as telemetry:
            if calculator is not None:
                trial = run_ase(frames[0], calculator, plan, memory, self.clock)
            elif case.contender.student is not None:
                trial = run_student(
                    frames,
                    case.contender.student,
                    plan,
                    memory,
                    self.clock,
                    device=device,
                    dtype=self.dtype,
                    compile=case.contender.compile,
                )
        return {
            "trial": trial,
            "plan": plan,
            "memory": memory.summary(),
            "gpu": telemetry.summary(),
        }


def named_systems(systems: Iterable[str | Path | Atoms]) -> list[System]:
    """Systems of different names."""
    found: list[System] = []
    for one in systems:
        if isinstance(one, Atoms):
            system = System(f"{one.get_chemical_formula()}:{len(one)}", one)
        else:
            system = build_system(str(one))
        same = sum(other.name.partition(" (")[0] == system.name for other in found)
        name = f"{system.name} ({same + 1})" if same else system.name
        found.append(replace(system, name=name))
    return found


def start_of(system: System, temperature_K: float, seed: int) -> Atoms:
    """The same for everyone: momenta of the structure, or new ones, at rest as a whole."""
    atoms: Atoms = system.atoms.copy()
    if not atoms.get_momenta().any():
        thermalise(atoms, system.heat * temperature_K, np.random.default_rng(seed))
        momenta = atoms.get_momenta()
        mass_share = atoms.get_masses()[:, None] / atoms.get_masses().sum()
        atoms.set_momenta(momenta - mass_share * momenta.sum(0))
    return atoms


# -- from trials to the rows of the result ---------------------------------------------------------


def _summary(case: _Case, settings: Settings, found: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """One case of the result; its samples are those of all repeats."""
    trials: list[Trial] = [one["trial"] for one in found]
    plan: Plan = found[0]["plan"]
    samples = np.concatenate([trial.samples_ms for trial in trials])
    n_atoms = len(case.system.atoms) * case.replicas
    seconds, n_steps = sum(t.seconds for t in trials), sum(t.n_steps for t in trials)
    rate = n_steps / seconds if seconds > 0 else 0.0
    spread = [statistics.block_medians(trial.samples_ms) for trial in trials]
    medians = [float(np.median(trial.samples_ms)) for trial in trials]
    latency = statistics.latency(samples)
    return {
        "system": case.system.name,
        "formula": case.system.atoms.get_chemical_formula(),
        "n_atoms": len(case.system.atoms),
        "replicas": case.replicas,
        "ensemble": case.ensemble,
        "model": case.contender.name,
        "kind": case.contender.kind,
        "engine": case.engine,
        "device": case.contender.device,
        "time_step_fs": plan.time_step_fs,
        "n_steps": trials[0].n_steps,
        "cut_short": any(trial.n_steps < settings.n_steps for trial in trials),
        "steps_a_sample": trials[0].steps_a_sample,
        "first_call_s": trials[0].first_call_s,
        "warm_up": {"n_steps": trials[0].warm_up_steps, "seconds": trials[0].warm_up_s},
        "total_s": seconds / len(trials),
        "latency_ms": latency,
        "quantiles_ms": statistics.quantiles(samples),
        "repeats": [
            {"median_ms": m, "n_steps": t.n_steps, "total_s": t.seconds, "blocks_ms": b}
            for m, t, b in zip(medians, trials, spread, strict=True)
        ],
        "quiet_ms": min(map(statistics.quiet, spread)),
        "noise": statistics.noise(spread),
        "steps_per_s": rate,
        "ns_per_day": 86400e-6 * plan.time_step_fs * rate,
        "atom_steps_per_s": n_atoms * rate,
        "us_per_atom": 1e6 / (n_atoms * rate) if rate > 0 else None,
        "memory": found[-1]["memory"],
        "gpu": found[-1]["gpu"],
        "physics": physics(trials[0], plan, n_atoms),
    }


def physics(trial: Trial, plan: Plan, n_atoms: int) -> dict[str, Any]:
    """Drift and fluctuation of the energy (NVE); means and drifts of temperature and pressure."""
    steps, energy, temperature, pressure = np.array(trial.seen).reshape(-1, 4).T
    time_ps, energy = 1e-3 * plan.time_step_fs * steps, 1e3 * energy / n_atoms
    found: dict[str, Any] = {"temperature_K": _steadiness(temperature)}
    if np.isfinite(pressure).all():
        found["pressure_GPa"] = _steadiness(pressure)
    if plan.ensemble == "nve" and len(steps) > 2:
        slope, offset = np.polyfit(time_ps, energy, 1)
        found["drift_meV_per_atom_per_ps"] = float(slope)
        by_blocks = statistics.slope(time_ps, energy)
        found["drift_error_meV_per_atom_per_ps"] = by_blocks.error if by_blocks else None
        found["fluctuation_meV_per_atom"] = float((energy - slope * time_ps - offset).std())
    keep = thinned(len(steps))
    found["series"] = {
        "time_ps": _rounded(time_ps[keep]),
        "total_energy_meV_per_atom": _rounded(energy[keep] - energy[0]),
        "temperature_K": _rounded(temperature[keep]),
    }
    return found


def _steadiness(values: NDArray[np.float64]) -> dict[str, float | None]:
    """Mean and scatter of the second half, and by how much its mean differs from the first's.

    Fewer than four values have neither scatter nor drift.
    """
    few = len(values) < 4
    first, second = (values, values) if few else np.array_split(values, 2)
    return {
        "mean": float(second.mean()),
        "std": None if few else float(second.std()),
        "drift": None if few else float(second.mean() - first.mean()),
    }


def _rounded(values: NDArray[np.float64]) -> list[float]:
    return [float(f"{value:.6g}") for value in values]

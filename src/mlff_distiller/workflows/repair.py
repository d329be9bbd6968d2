"""``md --guard repair``: a simulation whose student learns what it meets, and goes on with it.

Where the guard stops, the teacher labels what was met and where the student's dynamics leads from
the last trusted state; the student learns that from where it is, together with all labels of the
run that it is from; the short profile examines it; and the simulation goes on from that state.

Next to the trajectory is a folder ``NAME.repairs/NN`` for each: ``start.traj`` (the last trusted
state, then what was met), ``dataset`` (new labels), ``fit`` (training and student), and
``certificate.json``. Who ran which steps is in the simulation's checkpoint, which alone decides
where it goes on: whatever kills the command, the same one finds its place again.
``NAME.students.json`` says it for readers.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
from ase import Atoms

from mlff_distiller.dataset import Dataset
from mlff_distiller.durable import read_json, write_json
from mlff_distiller.engines.loading import ready_student
from mlff_distiller.errors import ConfigError, UntrustedError
from mlff_distiller.md import MDResult, run_md
from mlff_distiller.md.checkpoint import hand_over, hash_of_student, read_header, students_of
from mlff_distiller.students import load_student, student_folder
from mlff_distiller.teachers import TeacherCalculator
from mlff_distiller.training.sources import Sources
from mlff_distiller.validation.certificate import read_certificate, write_certificate
from mlff_distiller.validation.validate import Examined
from mlff_distiller.validation.verdict import Finding
from mlff_distiller.workflows.assess import assess
from mlff_distiller.workflows.config import Config, config_of
from mlff_distiller.workflows.folder import files_of_student, read_inputs
from mlff_distiller.workflows.labels import label_more
from mlff_distiller.workflows.plan import lower_budget
from mlff_distiller.workflows.seeds import read_structures, save_structures
from mlff_distiller.workflows.train import OnProgress, split_labels, train

_LONGEST = 0.25
"""Longest training of a repair, as a fraction of the run's updates."""
_ERROR = 0.05
"""Relative force error of a student whose run does not say it."""


@dataclass(frozen=True)
class RepairSettings:
    """How much a repair may cost."""

    labels: int = 24
    """Structures that the teacher labels, in each."""
    updates: int | None = None
    """Updates of the training; None is a quarter of the run's."""
    most: int = 5
    """Repairs of one simulation; what is met after the last ends it, as ``stop`` does."""


def run_with_repair(
    structures: Atoms | Sequence[Atoms],
    run: str | Path,
    out: str | Path,
    *,
    student: str | Path | None = None,
    teacher: str | None = None,
    teacher_python: str | None = None,
    allow_download: bool = False,
    teacher_timeout_s: float | None = None,
    settings: RepairSettings | None = None,
    device: str = "auto",
    dtype: Literal["float32", "float64"] = "float32",
    overwrite: bool = False,
    on_progress: OnProgress = lambda stage, done, total, news: None,
    **simulation: Any,
) -> MDResult:
    """``run_md`` with ``guard="stop"``, and a repair wherever it stops.

    Parameters
    ----------
    run
        Folder of a run of `distill`, whose labels are rehearsed.
    out
        The trajectory. The same call continues, whatever has ended it, also within a repair.
    student
        The folder of the one that begins; None is the run's.
    teacher
        A teacher's SPEC; None is the run's.
    simulation
        Other arguments of ``run_md``.

    Raises
    ------
    UntrustedError
        The last repair allowed was not enough.
    ConfigError
        ``run`` holds no labels, or the checkpoint is of a student that is none of its repairs.
    TeacherError
        The teacher cannot be started, or gives no label.
    """
    settings, out, run = settings or RepairSettings(), Path(out), Path(run)
    first = student_folder(run if student is None else student)
    repairs = _Repairs(run, first, out, settings, device, dtype, on_progress)
    if overwrite:
        shutil.rmtree(repairs.folder, ignore_errors=True)
    simulation |= {"device": device, "dtype": dtype, "on_progress": on_progress}
    simulation |= {"out": out, "guard": "stop"}
    with ExitStack() as stack:
        source: TeacherCalculator | None = None
        while True:
            current, number = (first, 0) if overwrite else repairs.turn()
            try:
                result = run_md(structures, current, overwrite=overwrite, **simulation)
                repairs.write_record()
                return result
            except UntrustedError as met:
                overwrite = False
                repairs.write_record()
                if number >= settings.most:
                    raise
                if source is None:
                    source = TeacherCalculator(
                        teacher or str(read_inputs(run)["inputs"]["teacher"]),
                        device=device,
                        python=teacher_python,
                        allow_download=allow_download,
                        timeout_s=teacher_timeout_s,
                    )
                    stack.enter_context(source)
                repairs.make(number, met, current, source, simulation)


def run_of(student: Path) -> Path:
    """The run that a student's folder, or the run's own, belongs to, if it does to any."""
    return student.parent if (student.parent / "config.yaml").is_file() else student


@dataclass(frozen=True)
class _Repairs:
    """Those of one simulation, on disk."""

    run: Path
    first: Path
    out: Path
    settings: RepairSettings
    device: str
    dtype: Literal["float32", "float64"]
    on_progress: OnProgress

    def __post_init__(self) -> None:
        if not ((self.run / "config.yaml").is_file() and (self.run / "dataset").is_dir()):
            raise ConfigError(
                f"{self.run} is not a run whose labels can be rehearsed",
                expected="the folder of a run of distill, with its labels",
                remedy="name it with --run, or take --guard harvest",
            )

    @property
    def folder(self) -> Path:
        return self.out.with_suffix(".repairs")

    @property
    def checkpoint(self) -> Path:
        return self.out.with_suffix(".checkpoint.safetensors")

    def students(self) -> dict[str, Path]:
        """The first and those of all repairs, by the hash that a checkpoint has of them."""
        ready = [path.parent for path in sorted(self.folder.glob("*/fit/student/config.json"))]
        return {self._hash_of(folder): folder for folder in [self.first, *ready]}

    def turn(self) -> tuple[Path, int]:
        """The student whose turn it is, and how many repairs have led to it."""
        if not self.checkpoint.exists():
            return self.first, 0
        wanted = students_of(read_header(self.checkpoint))[-1]["student_sha256"]
        for number, (sha256, folder) in enumerate(self.students().items()):
            if sha256 == wanted:
                return folder, number
        raise ConfigError(
            f"{self.checkpoint} is of a student that is none of this simulation's",
            expected=f"{self.first}, or that of a repair in {self.folder}",
            remedy="name the student that the simulation began with, or another --out",
        )

    def write_record(self) -> None:
        """Which student has run which steps, and what each repair has come to."""
        header, known = read_header(self.checkpoint), self.students()
        students = students_of(header)
        ends = [*(one["from_step"] for one in students[1:]), header["step"]]
        rows = []
        for one, end in zip(students, ends, strict=True):
            folder = known.get(one["student_sha256"])
            path = None if folder is None else folder.parent.parent / "certificate.json"
            content = read_json(path) if path is not None and path.is_file() else {}
            rows.append(
                {
                    **one,
                    "to_step": end,
                    "student": None if folder is None else str(folder),
                    "status": content.get("verdict", {}).get("status"),
                }
            )
        write_json(self.out.with_suffix(".students.json"), {"students": rows})

    def make(
        self,
        number: int,
        met: UntrustedError,
        student: Path,
        teacher: TeacherCalculator,
        simulation: dict[str, Any],
    ) -> None:
        """One repair, or what is left of one that was begun; the checkpoint is last."""
        own = self.folder / f"{number:02d}"
        start = own / "start.traj"
        if not start.exists():
            save_structures(start, [*met.before, *met.met])
        frames = read_structures(start)
        trusted, unknown = frames[: len(frames) // 2], frames[len(frames) // 2 :]
        config = self._config(met.before, simulation)
        self._label(own, trusted, unknown, student, teacher, config)
        self._train(own, student, config)
        self._certify(own, trusted, teacher, config)
        hand_over(self.checkpoint, self._hash_of(own / "fit" / "student"))

    def _config(self, frames: Sequence[Atoms], simulation: dict[str, Any]) -> Config:
        """The run's, at the temperature and in the ensemble of the simulation."""
        config = config_of(read_inputs(self.run)["config"])
        given = np.atleast_1d(simulation.get("temperature_K", 300.0)).tolist()
        is_nve = simulation.get("ensemble", "nve") == "nve"
        kelvin = [max(1.0, float(a.get_temperature())) for a in frames] if is_nve else given
        dynamics = replace(config.dynamics, ensemble="nvt")
        if simulation.get("ensemble") == "npt":
            pressures = np.atleast_1d(simulation.get("pressure_GPa", 0.0)).tolist()
            dynamics = replace(dynamics, ensemble="npt", pressures_GPa=tuple(pressures))
        sampling = replace(config.sampling, temperature_K=tuple(sorted(set(kelvin))))
        config = replace(config, dynamics=dynamics, sampling=sampling, device=self.device)
        updates = self.settings.updates or max(1, round(_LONGEST * config.training.updates))
        return lower_budget(config, updates)

    def _label(
        self,
        own: Path,
        trusted: Sequence[Atoms],
        unknown: Sequence[Atoms],
        student: Path,
        teacher: TeacherCalculator,
        config: Config,
    ) -> None:
        report = read_json(self.run / "report.json")
        fidelity = report.get("accuracy", {}).get("student_md", {}).get("forces_fidelity")
        error = _ERROR if fidelity is None else 1.0 - float(fidelity)
        first = [*unknown, *trusted]
        label_more(
            own,
            trusted,
            first,
            student,
            error,
            0,
            max(self.settings.labels, 2 * len(first)),
            teacher,
            config,
            self.on_progress,
        )

    def _train(self, own: Path, student: Path, config: Config) -> None:
        """From ``student``, on the run's labels and those of all repairs so far."""
        earlier = sorted(path.parent for path in self.folder.glob("*/dataset/manifest.json"))
        train(
            self.run / "dataset",
            own / "fit",
            config,
            init=student,
            sources=Sources(more=tuple(path for path in earlier if path <= own / "dataset")),
            on_progress=self.on_progress,
        )

    def _certify(
        self, own: Path, trusted: Sequence[Atoms], teacher: TeacherCalculator, config: Config
    ) -> None:
        """The short profile, where the simulation is; the speed is that of the run's student."""
        path = own / "certificate.json"
        if path.exists():
            return
        folder, labels = own / "fit" / "student", Dataset(self.run / "dataset")
        split = split_labels(labels, config)
        before = read_certificate(
            self.run / "certificate.json", files_of_student(self.run / "student")
        )
        blocks = (before or {}).get("structures") or [{}]
        speed = blocks[0].get("findings", {}).get("speedup")
        known = Examined({} if speed is None else {"speedup": Finding(**speed)})
        student = load_student(folder)
        found = assess(
            own, trusted, labels, split, student, teacher, config, self.on_progress, speed=known
        )
        write_certificate(path, found.certificate, files_of_student(folder))
        self.on_progress("repair", 1, 1, str(found.certificate["verdict"]["status"]))

    def _hash_of(self, folder: Path) -> str:
        return hash_of_student(ready_student(folder, "cpu", self.dtype))

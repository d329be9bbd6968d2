"""The files of a simulation: opened, continued where their checkpoint says, and made durable."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from ase import Atoms

from mlff_distiller.durable import Lock, explaining
from mlff_distiller.errors import ConfigError, DynamicsError
from mlff_distiller.md.checkpoint import (
    check_same,
    read_checkpoint,
    read_header,
    students_of,
    write_checkpoint,
)
from mlff_distiller.md.files import Mark
from mlff_distiller.md.guard import Guard, Mode
from mlff_distiller.md.simulation import Simulation
from mlff_distiller.md.thermo_log import OF_TEACHER, OF_TRUST, ThermoLog
from mlff_distiller.md.trajectory import TrajectoryThread, check_format


class Files:
    """Trajectory, log and checkpoint of one run, or none of them; they are locked for it."""

    def __init__(
        self,
        out: str | Path | None,
        log_format: str,
        overwrite: bool,
        guard: Mode,
        harvest: str | Path | None,
    ) -> None:
        self.paths: dict[str, Path] = {}
        self.trajectory: TrajectoryThread | None = None
        self.log: ThermoLog | None = None
        self._overwrite, self._stack = overwrite, ExitStack()
        self._header: dict[str, Any] | None = None
        if log_format not in ("csv", "jsonl"):
            raise ConfigError(
                "unknown format of the log", expected="csv or jsonl", found=log_format
            )
        of_teacher = (OF_TEACHER,) if guard == "teacher" else ()
        self._columns = () if guard == "off" else (*OF_TRUST, *of_teacher)
        if (guard == "harvest" and out is None) or (guard != "harvest" and harvest is not None):
            raise ConfigError(
                "no frames can be harvested",
                expected="guard=harvest, and a trajectory that names them",
                found=f"guard={guard}, out={out}",
            )
        if out is None:
            return
        path = Path(out)
        check_format(path)
        self.paths = {
            "trajectory": path,
            "log": path.with_suffix(f".log.{log_format}"),
            "checkpoint": path.with_suffix(".checkpoint.safetensors"),
            "untrusted": path.with_suffix(".untrusted.extxyz"),
        }
        if guard == "harvest":
            folder = path.with_suffix(".harvest") if harvest is None else Path(harvest)
            self.paths["untrusted"] = folder / f"{path.stem}.extxyz"

    def __enter__(self) -> Files:
        if not self.paths:
            return self
        try:
            self._claim(self.paths["checkpoint"], str(self.paths["trajectory"]))
            self._claim(self.paths["untrusted"])
            self._look()
        except BaseException:
            self._stack.close()
            raise
        return self

    def _claim(self, path: Path, what: str = "") -> None:
        with explaining(str(path.parent), DynamicsError):
            path.parent.mkdir(parents=True, exist_ok=True)
        self._stack.enter_context(Lock(path, what, refused=DynamicsError))

    def _look(self) -> None:
        """See whether there is a run to continue, or files that are not of one."""
        if self._overwrite:
            return
        files = {name: path for name, path in self.paths.items() if path.exists()}
        if "checkpoint" in files:
            self._header = read_header(files["checkpoint"])
            if self._header["files"]["trajectory"] is None:
                self._header = None  # it ended before it had written anything
        elif files:
            raise ConfigError(
                f"{next(iter(files.values()))} exists, without a checkpoint to continue from",
                remedy="choose another name, or overwrite",
            )

    @property
    def continues(self) -> bool:
        """Whether there is a run that goes on here."""
        return self._header is not None

    def seed(self, drawn: int) -> int:
        """The seed of the run that is continued, or ``drawn`` of a new one."""
        return drawn if self._header is None else int(self._header["about"]["seed"])

    @property
    def of_guard(self) -> dict[str, Any] | None:
        """What the checkpoint says of the guard; None if it had none."""
        return None if self._header is None else self._header.get("guard")

    def open(self, simulation: Simulation, frames: Sequence[Atoms], about: dict[str, Any]) -> None:
        """Open them, and bring ``simulation`` to where its checkpoint is, if there is one."""
        if not self.paths:
            return
        marks: dict[str, Mark | None] = {"trajectory": None, "log": None}
        checkpoint = self.paths["checkpoint"]
        if self._header is None:
            with explaining(str(checkpoint.parent), DynamicsError):
                for old in self.paths.values():
                    old.unlink(missing_ok=True)
            # From now on they are this run's, whatever ends it.
            write_checkpoint(checkpoint, simulation.state(), {"about": about, "files": marks})
        else:
            check_same(checkpoint, self._header["about"], about)
            state = read_checkpoint(checkpoint, sum(map(len, frames)), len(frames))
            for name in marks:
                mark = self._header["files"][name]
                marks[name] = Mark(*mark) if isinstance(mark, list) else Mark(int(mark))
                if not self.paths[name].exists():
                    raise DynamicsError(
                        f"{self.paths[name]} is missing, which {checkpoint.name} continues",
                        remedy="put it back, or overwrite to start again",
                    )
            simulation.load(state)
        self.log = ThermoLog(self.paths["log"], marks["log"], self._columns)
        self._stack.callback(self.log.close)
        self.trajectory = TrajectoryThread(
            self.paths["trajectory"], simulation.templates, marks["trajectory"]
        )
        self._stack.callback(self.trajectory.close)

    def checkpoint(
        self, simulation: Simulation, about: dict[str, Any], guard: Guard | None
    ) -> None:
        """Make all that was written durable, and say so."""
        if self.trajectory is None or self.log is None:
            return
        ends = {"trajectory": self.trajectory.mark(), "log": self.log.mark()}
        of_guard = self.of_guard if guard is None else guard.state()
        students = students_of(self._header or {"about": about})
        content = {"about": about, "files": ends, "guard": of_guard, "students": students}
        write_checkpoint(self.paths["checkpoint"], simulation.state(), content)

    def __exit__(self, *error: object) -> None:
        self._stack.close()

"""What an interrupted validation has measured: runs, checks and the teacher's answers, on disk.

The same validation finds them again. Runs and checks are kept when they end, an answer of the
teacher when it is given; the folder is removed when the certificate is written.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from ase import Atoms

from mlff_distiller.dataset import structure_hash
from mlff_distiller.durable import read_json, replacing, write_json, write_text
from mlff_distiller.errors import ConfigError
from mlff_distiller.md.ensemble import Ensemble
from mlff_distiller.md.record import ForceField, OnStep, Trajectory, begun, simulate
from mlff_distiller.validation.check import Measured
from mlff_distiller.validation.verdict import Finding

FOLDER = "partial"
_ARRAYS = ("time_ps", "positions", "velocities", "potential", "cells", "pressure_GPa")


class Partial:
    """Runs and checks kept in ``folder`` for one ``question``: what is examined, and how (JSON).

    What is there for another question is removed.
    """

    def __init__(self, folder: Path, question: Mapping[str, Any]) -> None:
        self.folder = folder
        asked = json.loads(json.dumps(question, default=str))
        if _read(folder / "question.json") != asked:
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir(parents=True)
            write_json(folder / "question.json", asked)
        self._checks = _read(folder / "checks.json")

    @property
    def n_checks(self) -> int:
        """How many checks an earlier call has finished."""
        return len(self._checks)

    def check(self, name: str, make: Callable[[], Measured]) -> Measured:
        """What an earlier call found, or what ``make`` finds; kept, unless something is unknown.

        A teacher that failed then may answer now.
        """
        if name not in self._checks:
            made = make()
            if all(finding.value is not None for finding in made.findings.values()):
                self._checks[name] = asdict(made)
                write_text(self.folder / "checks.json", json.dumps(self._checks))  # NaN and all
            return made
        known = dict(self._checks[name])
        for part in ("findings", "of_teacher"):
            known[part] = {key: Finding(**own) for key, own in known[part].items()}
        return Measured(**known)

    def run(
        self,
        force_field: ForceField,
        atoms: Atoms,
        ensemble: Ensemble,
        n_steps: int,
        every: int,
        on_step: OnStep,
    ) -> Trajectory:
        """As `simulate`; a run that an earlier call ended is read, with all its digits."""
        first, ensemble = begun(atoms, ensemble)
        told = hashlib.sha256(first.get_momenta().tobytes() + structure_hash(first).encode())
        told.update(repr((force_field.name, ensemble, n_steps, every)).encode())
        path = self.folder / f"{told.hexdigest()[:32]}.npz"
        if path.is_file():
            with suppress(OSError, ValueError, KeyError), np.load(path) as known:
                about = json.loads(str(known["about"]))
                arrays = {name: known[name] for name in _ARRAYS}
                return Trajectory(first, ensemble, ensemble.step_fs(first), **about, **arrays)
        made = simulate(force_field, first, ensemble, n_steps, every, on_step)
        about = {"n_steps": made.n_steps, "completed": made.completed, "why": made.why}
        with replacing(path) as temporary, temporary.open("wb") as stream:
            arrays = {name: getattr(made, name) for name in _ARRAYS}
            np.savez(stream, about=np.array(json.dumps(about)), **arrays)
        return made

    def remove(self) -> None:
        """Once the certificate is there."""
        shutil.rmtree(self.folder, ignore_errors=True)


def _read(path: Path) -> dict[str, Any]:
    try:
        return read_json(path)
    except ConfigError:  # damaged: measured again
        return {}

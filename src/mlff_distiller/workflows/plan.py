"""How many labels are worth their price: a learning curve, what it promises, where it ends.

Students trained on nested subsets of the labels at hand are tested on the same held-out branches.
Their relative force errors follow, over the range that matters,

    error(n) = floor + b n^(-c)        (Hestness et al., arXiv:1712.00409)

so three sizes say what a larger set would bring. The floor is the student's own limit; the
teacher's is how far its answers disagree with themselves: between the members of a committee, and
between a structure and the same structure turned.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from ase import Atoms

from mlff_distiller.dataset import Dataset, Frames, Split
from mlff_distiller.errors import DatasetError, TeacherError
from mlff_distiller.structure import random_rotation
from mlff_distiller.teachers import TeacherCalculator, load_teacher
from mlff_distiller.training import Samples, validate
from mlff_distiller.training.cache import Room
from mlff_distiller.workflows.config import Config
from mlff_distiller.workflows.train import OnProgress, fidelity_to, split_labels, train_student

WORTH_IT = 0.05
"""Twice the labels should lower the error by this fraction of it at least."""


@dataclass(frozen=True)
class Point:
    """A student trained on ``n_labels``, tested on held-out branches."""

    n_labels: int
    error: float
    """Relative force error: one minus the fidelity."""
    forces_mae_meV_per_A: float


@dataclass(frozen=True)
class Plan:
    """A learning curve and what follows from it."""

    points: list[Point]
    floor: float
    slope: float
    exponent: float
    seconds_per_label: float
    teacher_noise: float | None
    """Relative to the forces, as the errors are; None if the teacher was not asked."""

    def error(self, n_labels: float) -> float:
        """Predicted relative force error with ``n_labels``."""
        return float(self.floor + self.slope * n_labels ** (-self.exponent))

    @property
    def ahead(self) -> list[int]:
        """Numbers of labels to predict for: two, four and ten times as many as there are."""
        return [factor * self.points[-1].n_labels for factor in (2, 4, 10)]

    @property
    def saturated(self) -> bool:
        """Whether twice as many labels are predicted to change next to nothing."""
        n = self.points[-1].n_labels
        return self.error(2 * n) > (1.0 - WORTH_IT) * self.error(n)

    @property
    def teacher_is_the_limit(self) -> bool:
        """Whether the student is as close to the teacher as the teacher is to itself."""
        return self.teacher_noise is not None and self.points[-1].error <= self.teacher_noise

    def advice(self) -> str:
        """What to do, in a sentence."""
        last = self.points[-1]
        if self.teacher_is_the_limit:
            return (
                f"The teacher is the limit: it disagrees with itself by {self.teacher_noise:.1%} "
                f"of the forces, and the student with it by {last.error:.1%} only. A better "
                "teacher would gain more than more of its labels."
            )
        if self.saturated:
            return (
                f"The student is the limit: twice as many labels are predicted to lower its error "
                f"only from {self.error(last.n_labels):.1%} to {self.error(2 * last.n_labels):.1%}."
                " A larger student or cutoff would gain more."
            )
        hours = last.n_labels * self.seconds_per_label / 3600.0
        return (
            f"More labels help: {2 * last.n_labels} are predicted to lower the error from "
            f"{self.error(last.n_labels):.1%} to {self.error(2 * last.n_labels):.1%}, for "
            f"{hours:.2g} more hours of the teacher."
        )


def plan(
    folder: Path,
    sizes: Sequence[int] = (100, 333, 1000),
    teacher: str | None = None,
    *,
    updates: int = 2000,
    device: str = "auto",
    teacher_python: str | None = None,
    allow_download: bool = False,
    on_progress: OnProgress = lambda stage, done, total, news: None,
) -> Plan:
    """The learning curve of the labels in ``folder``, a dataset or a run; see `learning_curve`.

    Each pilot is trained by ``updates`` updates with otherwise default settings. ``teacher`` is a
    registered name, ``FAMILY:PATH`` or ``ase:package.module:factory``.
    """
    labels = Dataset(folder)
    config = lower_budget(dataclasses.replace(Config(), device=device), updates)
    with ExitStack() as stack:
        source = None
        if teacher is not None:  # started before hours of training, not after
            source = stack.enter_context(
                load_teacher(
                    teacher, device=device, python=teacher_python, allow_download=allow_download
                )
            )
            on_progress("teacher", 1, 1, source.identity.name)
        split = split_labels(labels, config)
        return learning_curve(labels, split, config, sizes, source, on_progress)


def learning_curve(
    labels: Dataset,
    split: Split,
    config: Config,
    sizes: Sequence[int] = (100, 333, 1000),
    teacher: TeacherCalculator | None = None,
    on_progress: OnProgress = lambda stage, done, total, news: None,
) -> Plan:
    """Train on nested subsets of ``split.train``, test on ``split.test``; fit the curve.

    Sizes beyond what there is are replaced by all there is. Each training takes
    ``config.training.updates`` updates. ``teacher`` is asked for its own noise, by some 40
    evaluations.

    Raises
    ------
    DatasetError
        Fewer than three sizes remain: a curve needs three points.
    """
    most = len(split.train)
    usable = sorted({min(size, most) for size in sizes})
    if len(usable) < 3:
        usable = sorted({max(8, most // 9), max(8, most // 3), most})
    if len(usable) < 3:
        raise DatasetError(
            "too few labels for a learning curve",
            expected="at least 72 for training",
            found=most,
            remedy="label some more structures first",
        )
    order = np.random.default_rng(config.seed).permutation(split.train)
    validation, test = Frames(labels, split.validation), Frames(labels, split.test)
    points = []
    for size in usable:
        training = Frames(labels, np.sort(order[:size]))
        told = fidelity_to(on_progress, f"{size} labels")
        student, _ = train_student(training, validation, config, on_validation=told)
        metrics = validate(student, Samples(test, student, Room(0)))
        points.append(
            Point(
                size,
                1.0 - metrics["validation_forces_fidelity"],
                metrics["validation_forces_mae_meV_per_A"],
            )
        )
    floor, slope, exponent = fit_power_law(
        [point.n_labels for point in points], [point.error for point in points]
    )
    noise = None
    if teacher is not None:
        chosen = np.random.default_rng(config.seed).permutation(split.test)[:20]
        frames = [record.atoms for record in labels.records(np.sort(chosen))]
        noise = teacher_noise(teacher, frames, config.seed)
    return Plan(points, floor, slope, exponent, _seconds_per_label(labels), noise)


def fit_power_law(n_labels: Sequence[int], errors: Sequence[float]) -> tuple[float, float, float]:
    """``floor, b, c`` of ``floor + b n^-c`` >= 0, by least squares of relative deviations.

    ``c`` is searched between 0.05 and 1.5; for each, ``floor`` and ``b`` follow linearly.
    """
    n, y = np.asarray(n_labels, dtype=float), np.asarray(errors, dtype=float)
    constant = float((1 / y).sum() / (1 / y**2).sum())
    best, law = float(((constant / y - 1.0) ** 2).sum()), (constant, 0.0, 1.0)
    for exponent in np.linspace(0.05, 1.5, 146):
        power = n**-exponent
        for columns in ((np.ones_like(n), power), (power,)):
            design = np.stack(columns, axis=1) / y[:, None]
            solution = np.linalg.lstsq(design, np.ones_like(y), rcond=None)[0]
            misfit = float(((design @ solution - 1.0) ** 2).sum())
            if (solution >= 0).all() and misfit < best - 1e-12:
                floor = float(solution[0]) if len(columns) == 2 else 0.0
                best, law = misfit, (floor, float(solution[-1]), float(exponent))
    return law


def teacher_noise(teacher: TeacherCalculator, frames: Sequence[Atoms], seed: int = 0) -> float:
    """How far the teacher disagrees with itself: the larger of both numbers of `disagreement`."""
    return max(disagreement(teacher, frames, seed))


def disagreement(
    teacher: TeacherCalculator, frames: Sequence[Atoms], seed: int = 0
) -> tuple[float, float]:
    """How far the teacher disagrees with itself, relative to its forces, in two ways.

    ``sum |R^-1 F(R x) - F(x)| / sum |F(x)|`` for random rotations R, where answers to one question
    differ; and ``sum spread / sum |F|`` over atoms (committees: root mean square deviation of the
    members; else 0).

    Raises
    ------
    TeacherError
        It gave no label for any of ``frames``.
    """
    rng = np.random.default_rng(seed)
    rotations = [random_rotation(rng) for _ in frames]
    turned = []
    for atoms, rotation in zip(frames, rotations, strict=True):
        copy = atoms.copy()
        copy.set_cell(atoms.cell.array @ rotation.T)
        copy.positions[:] = atoms.positions @ rotation.T
        turned.append(copy)
    change = spread = scale = size = 0.0
    why = None
    answers = zip(teacher.label(frames), teacher.label(turned), rotations, strict=True)
    for straight, rotated, rotation in answers:
        if straight.labels is None or rotated.labels is None:
            why = straight.error or rotated.error
            continue
        forces = straight.labels["forces"]
        back = rotated.labels["forces"] @ rotation
        change += float(np.abs(back - forces).sum())
        scale += float(np.abs(forces).sum())
        size += float(np.linalg.norm(forces, axis=1).sum())
        spread += float(np.sum(straight.extra.get("forces_spread", 0.0)))
    if scale == 0.0:
        raise TeacherError("the teacher gave no label to measure its noise on", found=why)
    return change / scale, spread / size


def _seconds_per_label(labels: Dataset) -> float:
    some = np.unique(np.linspace(0, len(labels) - 1, 200).astype(int))
    return float(np.mean([r.provenance.get("seconds", 0.0) for r in labels.records(some)]))


def lower_budget(config: Config, updates: int) -> Config:
    """``config`` with trainings of ``updates`` updates, as a pilot needs."""
    training = dataclasses.replace(config.training, epochs=None, updates=updates)
    return dataclasses.replace(config, training=training)

"""How far a student's forces may be from its teacher's, atom by atom, without asking the teacher.

h_i, the last hidden layer, tells an atom's environment apart from those of the atoms of its
element e that trained, by d_i^2 = |W_e (h_i - m_e)|^2 with W_e^T W_e the inverse of their
regularised covariance: the last-layer prediction rigidity (Bigi, Chong, Ceriotti and Grasselli,
Mach. Learn.: Sci. Technol. 5, 045018 (2024)). The force on an atom takes part in the energies of
its neighbours j, and so does its error::

    gamma_i^2 = (d_i^2 + sum_j w_ij d_j^2) / (1 + sum_j w_ij) / edge_e^2
    error_i   = scale_e gamma_i^power

with w_ij = (1 + cos(pi r_ij / reach)) / 2. gamma is 1 for the farthest atom that trained; scale and
power are fitted to errors of forces on frames that did not train.

What no such number can know: what the teacher has got wrong, and what the features do not tell
apart.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save
from torch import Tensor

from mlff_distiller.batch import Batch
from mlff_distiller.neighbors import Neighbors, edge_vectors, neighbor_list
from mlff_distiller.students.base import Student

LARGEST = 1e6
"""The largest estimate, eV/Å, and the largest gamma; what is not a number counts as that far."""
_MOST_ATOMS = 20_000
"""The most atoms of either set of frames that a fit looks at."""
_ATOMS_AT_ONCE = 2_048
_REGULARISER = 1e-6
"""Added to variances, as a fraction of the mean variance of a hidden number."""
_POWERS = 1.0, 2.0
_POWER_AFAR = 1.5
_BINS = 12
_TOO_LARGE = 3.0
"""Times the typical error: an estimate that is to be told. Far out estimates can be half of the
errors, which are to be told before they are some five times the typical one."""
_MARGIN = 1.1
"""Times the largest estimate of an atom that trained: what did train is not told ..."""
_FAR_TOO_LARGE = 5.0
"""... unless it is as many times the typical error: then its error is as large, trained or not."""


@dataclass(frozen=True, eq=False)
class ErrorModel:
    """Tensors are float64, on the CPU. T elements, H numbers of the last hidden layer."""

    mean: Tensor  # (T, H)
    whitening: Tensor  # (T, H, H)
    edge: Tensor  # (T,)
    scale: Tensor  # (T,) eV/Å
    power: float
    reach: float  # Å
    typical: float
    """Root mean square length of a force's error, eV/Å, on frames that did not train."""
    limit: float
    """eV/Å: beyond it are the estimates of atoms that are unlike those in training. Three times the
    typical error, or a tenth more than the largest estimate of an atom that trained, which is at
    most five times the typical error."""

    def estimate(
        self, student: Student, types: Tensor, batch: Batch, neighbors: Neighbors
    ) -> tuple[Tensor, Tensor]:
        """Errors (n_atoms,) in eV/Å and gamma (n_atoms,), float64, as PyTorch computes them.

        For known ``types`` (n_atoms,) and all pairs up to the cutoff, or more.
        """
        gamma = (
            self._distances(student, types, batch, neighbors) / self.edge.to(types.device)[types]
        )
        gamma = gamma.nan_to_num(LARGEST).clamp(max=LARGEST)
        errors = self.scale.to(types.device)[types] * gamma**self.power
        return errors.clamp(max=LARGEST), gamma

    @torch.no_grad()
    def _distances(
        self, student: Student, types: Tensor, batch: Batch, neighbors: Neighbors
    ) -> Tensor:
        """The root of the mean of d^2 over an atom and its neighbours (n_atoms,)."""
        i, j, vectors = neighbors.i, neighbors.j, edge_vectors(batch, neighbors)
        hidden = student.environments(types, i, j, vectors.to(student.dtype))
        if hidden is None:
            raise ValueError(f"{student.architecture} does not tell environments apart")
        away = hidden.double() - self.mean.to(types.device)[types]
        squares = away.new_zeros(len(types))
        for kind, whitening in enumerate(self.whitening.to(types.device)):
            own = (away @ whitening.T).square().sum(1)
            squares = torch.where(types == kind, own, squares)
        r = vectors.norm(dim=1).clamp(max=self.reach)
        weights = 0.5 + 0.5 * torch.cos(math.pi * r / self.reach)
        total = squares.index_add(0, i, weights * squares[j])
        return (total / torch.ones_like(squares).index_add(0, i, weights)).sqrt()

    def to_bytes(self) -> bytes:
        """The content of a safetensors file."""
        values = {one.name: getattr(self, one.name) for one in fields(self)}
        return bytes(save({k: torch.as_tensor(v, dtype=torch.float64) for k, v in values.items()}))

    @classmethod
    def from_file(cls, path: Path) -> ErrorModel:
        """KeyError where something is missing."""
        found = load_file(path)
        values: dict[str, Any] = {one.name: found[one.name] for one in fields(cls)}
        values = {name: own if own.ndim else float(own) for name, own in values.items()}
        return cls(**values)


@torch.no_grad()
def fit_error_model(
    student: Student, training: Sequence[Batch], calibration: Sequence[Batch]
) -> ErrorModel | None:
    """From single-system frames that trained, and labelled ones that did not.

    None if the architecture does not tell environments apart, or there are no forces to go by. Of
    many frames some are looked at, evenly spaced. Cost: seconds.
    """
    trained, fresh = _some(training), _some(calibration)
    hidden, kinds = _hidden(student, trained)
    if hidden is None or not len(fresh):
        return None
    parts = [_whitening(hidden[kinds == kind]) for kind in range(len(student.elements))]
    mean, whitening = (torch.stack(own) for own in zip(*parts, strict=True))
    one = torch.ones(len(parts), dtype=torch.float64)
    model = ErrorModel(mean, whitening, one, one, 1.0, student.cutoff, 0.0, 0.0)
    d_trained = _distances(model, student, trained)
    d_fresh, (of_fresh, errors) = _distances(model, student, fresh), _errors(student, fresh)
    known = errors.isfinite()
    if not known.any():
        return None
    edge = one.clone().scatter_reduce_(0, kinds, d_trained, "amax", include_self=False)
    gamma = d_fresh / edge[of_fresh]
    squares = errors.square()
    power = _power(gamma[known], squares[known])
    scale = _scales(gamma[known] ** power, squares[known], of_fresh[known], len(parts))
    model = replace(
        model, edge=edge, scale=scale, power=power, typical=float(squares[known].mean().sqrt())
    )
    largest = float((scale[kinds] * (d_trained / edge[kinds]) ** power).max())
    limit = max(_TOO_LARGE * model.typical, _MARGIN * largest)
    return replace(model, limit=min(limit, _FAR_TOO_LARGE * model.typical))


def _some(frames: Sequence[Batch]) -> Sequence[Batch]:
    """Some frames, evenly spaced, of about as many atoms as a fit looks at."""
    if not len(frames):
        return frames
    sizes = [frames[k].n_atoms for k in range(0, len(frames), max(1, len(frames) // 16))]
    n_atoms = len(frames) * sum(sizes) / len(sizes)
    return frames[:: max(1, math.ceil(n_atoms / _MOST_ATOMS))]


def _groups(student: Student, frames: Sequence[Batch]) -> Iterator[tuple[Tensor, Batch, Neighbors]]:
    """Types, frames and pairs, many at once, on the student's device."""
    group: list[Batch] = []
    for number, frame in enumerate(frames, 1):
        group.append(frame)
        if number == len(frames) or sum(own.n_atoms for own in group) >= _ATOMS_AT_ONCE:
            batch = Batch.concatenate(group).to(student.device)
            yield student.types(batch.atomic_numbers), batch, neighbor_list(batch, student.cutoff)
            group = []


def _hidden(student: Student, frames: Sequence[Batch]) -> tuple[Tensor | None, Tensor]:
    """The last hidden layer (n_atoms, H), and types (n_atoms,)."""
    found, kinds = [], []
    for types, batch, near in _groups(student, frames):
        vectors = edge_vectors(batch, near).to(student.dtype)
        hidden = student.environments(types, near.i, near.j, vectors)
        if hidden is None:
            return None, types
        found.append(hidden.double().cpu())
        kinds.append(types.cpu())
    return torch.cat(found), torch.cat(kinds)


def _distances(model: ErrorModel, student: Student, frames: Sequence[Batch]) -> Tensor:
    """(n_atoms,) as gamma, with an edge of 1."""
    groups = _groups(student, frames)
    return torch.cat([model._distances(student, *own).cpu() for own in groups])


def _errors(student: Student, frames: Sequence[Batch]) -> tuple[Tensor, Tensor]:
    """Types (n_atoms,), and lengths of the errors of forces (n_atoms,) in eV/Å."""
    kinds, found = [], []
    for types, batch, near in _groups(student, frames):
        apart = student.predict(types, batch, near).forces - batch.labels["forces"]
        found.append(apart.double().norm(dim=1).cpu())
        kinds.append(types.cpu())
    return torch.cat(kinds), torch.cat(found)


def _whitening(hidden: Tensor) -> tuple[Tensor, Tensor]:
    """Mean (H,) and W (H, H) of one element's hidden numbers (n_atoms, H)."""
    n, size = hidden.shape
    if not n:  # anything is far from nothing
        return hidden.new_zeros(size), torch.eye(size, dtype=hidden.dtype) / _REGULARISER
    mean = hidden.mean(0)
    covariance = (hidden - mean).mT @ (hidden - mean) / n
    floor = _REGULARISER * max(float(covariance.trace()) / size, _REGULARISER)
    identity = torch.eye(size, dtype=hidden.dtype)
    factor = torch.linalg.cholesky(covariance + floor * identity)
    return mean, torch.linalg.solve_triangular(factor, identity, upper=False)


def _power(gamma: Tensor, squares: Tensor) -> float:
    """The slope of the error over gamma, both logarithmic, from bins of equally many atoms.

    Half of it is what was found far from several training sets, as gamma within one varies little.
    """
    bins = [own for own in gamma.argsort().tensor_split(_BINS) if len(own)]
    x = torch.stack([gamma[own].square().mean() for own in bins]).clamp(min=1e-12).log()
    y = torch.stack([squares[own].mean() for own in bins]).clamp(min=1e-24).log()
    spread = (x - x.mean()).square().sum()
    slope = float(((x - x.mean()) * (y - y.mean())).sum() / spread) if spread > 1e-12 else 0.0
    return 0.5 * (min(max(slope, _POWERS[0]), _POWERS[1]) + _POWER_AFAR)


def _scales(shapes: Tensor, squares: Tensor, kinds: Tensor, n_types: int) -> Tensor:
    """The factor of ``shapes`` (n_atoms,) that fits each element's errors, (n_types,).

    An element of few atoms leans on the others.
    """

    def sums(values: Tensor) -> Tensor:
        return values.new_zeros(n_types).index_add(0, kinds, values)

    def ratio(over: Tensor, under: Tensor) -> Tensor:
        return (over / under.clamp(min=1e-24)).sqrt()

    of_all = ratio(squares.sum(), shapes.square().sum())
    share = _BINS * shapes.square().mean()
    return ratio(sums(squares) + share * of_all**2, sums(shapes.square()) + share)

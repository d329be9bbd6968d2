"""The repulsion of atoms that come closer than any data tell: ZBL, of one pair of elements each."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

import torch
from ase.data import atomic_numbers, covalent_radii
from torch import Tensor, nn

from mlff_distiller.batch import Batch
from mlff_distiller.errors import ConfigError
from mlff_distiller.kernels.nep.reference import ZBL_TERMS, screened_repulsion
from mlff_distiller.neighbors import edge_vectors, neighbor_list

if TYPE_CHECKING:
    from mlff_distiller.students.base import Student

Pairs = Sequence[Sequence[Sequence[float]]]
"""``[t][u]``: inner and outer radius (Å) and a1, b1 .. a4, b4 of the elements t and u."""
UNIVERSAL = tuple(number for term in ZBL_TERMS for number in term)
"""a1, b1 .. a4, b4 of Ziegler, Biersack and Littmark."""

ZBL_REACH = 1.1
"""Times the shortest distance seen: so messages saturate within the data."""
_RARE = 1e-3
"""Share of atoms that may feel the repulsion of a kind: its curvature jumps where it ends."""
_NEARER = 0.95
"""Times the distance within which only that share of atoms comes."""
_CONTACT = 1.75
"""Times the sum of covalent radii: about as close as molecules come to each other."""
_CONTACT_FRAMES = 4096
_ATOMS_AT_ONCE = 4096
_BIN = 1e-3  # Å


class ZBL(nn.Module):
    """Screened Coulomb repulsion, full below a pair's inner radius and gone beyond its outer one.

    Its tensors follow the student's device and type but are not weights: ``pairs`` are part of the
    student's ``config``.

    Parameters
    ----------
    reach
        Å: where the repulsion of any pair has to have ended.
    """

    charges: Tensor  # (n_types,)
    table: Tensor  # (n_types, n_types, 10), ``pairs``

    def __init__(self, elements: Sequence[str], pairs: Pairs, reach: float) -> None:
        super().__init__()
        self.pairs = tuple(tuple(tuple(pair) for pair in row) for row in pairs)
        self.reach = reach
        charges = torch.tensor([float(atomic_numbers[symbol]) for symbol in elements])
        self.register_buffer("charges", charges.double(), persistent=False)
        table = torch.tensor(self.pairs, dtype=torch.float64)
        self.register_buffer("table", table, persistent=False)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> ZBL:
        """Follow the student's device and type, with all digits that the type has."""
        super()._apply(fn, recurse)
        self.table = torch.tensor(self.pairs, dtype=torch.float64).to(self.table)
        return self

    def outer(self, types: Tensor, others: Tensor, dtype: torch.dtype) -> Tensor:
        """Å: where the repulsion of ``types`` and ``others``, which broadcast, ends."""
        return self.table[..., 1].to(dtype)[types, others].clamp(max=self.reach)

    def forward(self, r: Tensor, types: Tensor, others: Tensor) -> Tensor:
        """Half of each pair's energy in eV at ``r`` Å, with which both types broadcast."""
        charges, table = self.charges.to(r.dtype), self.table.to(r.dtype)[types, others]
        outer = self.outer(types, others, r.dtype)
        return screened_repulsion(r, charges[types], charges[others], table, outer)[0]

    def begin_at(self, t: int, u: int, outer_A: float) -> None:
        """Let atoms of types ``t`` and ``u`` repel from ``outer_A`` (Å) on, in full from half."""
        pairs = [list(row) for row in self.pairs]
        for a, b in ((t, u), (u, t)):
            pairs[a][b] = (0.5 * outer_A, outer_A, *pairs[a][b][2:])
            self.table[a, b, :2] = self.table.new_tensor([0.5 * outer_A, outer_A])
        self.pairs = tuple(tuple(row) for row in pairs)


def repulsion(
    frames: Sequence[Batch], elements: tuple[str, ...], outermost: float
) -> tuple[tuple[tuple[float, ...], ...], ...]:
    """ZBL of each pair of elements: inner and outer radius (Å), and its a and b.

    Switched off at `ZBL_REACH` of the shortest distance that ``frames`` hold, or at `_NEARER` of
    where more than `_RARE` of the atoms are; at most at `_CONTACT` of the covalent radii, or at
    ``outermost`` (Å).
    """
    numbers = torch.tensor([atomic_numbers[symbol] for symbol in elements])
    radii = torch.from_numpy(covalent_radii)[numbers]
    contact = (_CONTACT * (radii[:, None] + radii)).clamp(max=outermost)
    outer = torch.minimum(_least(frames, numbers, float(contact.max())), contact)
    return tuple(
        tuple((round(0.5 * r, 3), round(r, 3), *UNIVERSAL) for r in row) for row in outer.tolist()
    )


def set_repulsion(student: Student, outer_A: Mapping[str, float]) -> None:
    """Let ZBL of pairs of elements, such as ``H-O``, begin at other distances (Å).

    Raises
    ------
    ConfigError
        A pair that the student does not have, a distance beyond its cutoff (of a nep the angular
        one), or a student without repulsion.
    """
    for pair, outer in outer_A.items():
        kinds = [student.elements.index(s) for s in pair.split("-") if s in student.elements]
        if student.repulsion is None or len(kinds) != 2:
            raise ConfigError(
                f"the student has no repulsion of {pair} to move",
                expected=f"repulsion_A of two of {', '.join(student.elements)}, such as "
                f"{student.elements[0]}-{student.elements[-1]}, and a student with zbl",
            )
        if outer > student.repulsion.reach:
            raise ConfigError(
                f"the repulsion of {pair} cannot begin beyond the student's cutoff",
                expected=f"repulsion_A.{pair} of at most {student.repulsion.reach:g} Å",
                found=outer,
            )
        student.repulsion.begin_at(kinds[0], kinds[1], outer)


def _least(frames: Sequence[Batch], numbers: Tensor, reach: float) -> Tensor:
    """(T, T) Å: where the repulsion of every pair of elements may begin, by distances < ``reach``.

    The smaller of `ZBL_REACH` and `_NEARER` of the two distances there; infinite where no pair of
    the kind is. Distances are counted by bins of `_BIN`.
    """
    n_types, n_bins = len(numbers), math.ceil(reach / _BIN) + 1
    counts = torch.zeros(n_types**2 * n_bins, dtype=torch.int64)
    atoms = torch.zeros(n_types, dtype=torch.int64)
    some = frames[:: math.ceil(len(frames) / _CONTACT_FRAMES)]
    for batch in _batches(some):
        pairs = neighbor_list(batch, reach)
        types = torch.searchsorted(numbers, batch.atomic_numbers)
        atoms += torch.bincount(types, minlength=n_types)
        kinds = types[pairs.i] * n_types + types[pairs.j]
        bins = (edge_vectors(batch, pairs).norm(dim=1) / _BIN).long()
        index = kinds * n_bins + bins
        counts.scatter_add_(0, index, torch.ones_like(index))
    below = counts.view(n_types, n_types, n_bins).cumsum(2)  # distances up to each bin's end
    rare = _RARE * torch.minimum(atoms[:, None], atoms)[:, :, None]
    shortest, crowded = _BIN * (below == 0).sum(2), _BIN * (below <= rare).sum(2)
    least = torch.minimum(ZBL_REACH * shortest, _NEARER * torch.maximum(shortest, crowded))
    return torch.where(below[:, :, -1] > 0, least.double(), math.inf)


def _batches(frames: Sequence[Batch]) -> Iterator[Batch]:
    """All ``frames``, those of some thousand atoms at a time; a larger one alone."""
    run: list[Batch] = []
    n_atoms = 0
    for frame in frames:
        if run and n_atoms + frame.n_atoms > _ATOMS_AT_ONCE:
            yield Batch.concatenate(run)
            run, n_atoms = [], 0
        run.append(frame)
        n_atoms += frame.n_atoms
    yield Batch.concatenate(run)

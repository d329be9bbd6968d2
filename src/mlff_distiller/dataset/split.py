"""Training, validation and test parts that share no group."""

from __future__ import annotations

import math
import warnings
from dataclasses import dataclass

import numpy as np

from mlff_distiller.errors import DatasetError

FEWEST_GROUPS = 3
"""One each to train, validate and test on."""


@dataclass(frozen=True)
class Split:
    """Record numbers of each part, ascending; no record twice."""

    train: np.ndarray  # (n_train,) int64
    validation: np.ndarray  # (n_validation,) int64
    test: np.ndarray  # (n_test,) int64


def split_by_group(
    groups: np.ndarray,  # (n,) int64
    fractions: tuple[float, float, float] = (0.8, 0.1, 0.1),
    seed: int = 0,
    always_train: frozenset[int] = frozenset(),
) -> Split:
    """Divide records by whole groups; same arguments, same split.

    Groups are taken in random order and go to validation or test, whichever lacks more, if they
    fit into what it lacks; all others, the large ones among them, are for training. If what is
    still lacking is more than half the smallest of these, that one is taken too. The largest
    group and those ``always_train`` names stay in training. ``DatasetError`` unless three groups
    remain to be divided.
    """
    groups = np.asarray(groups)
    parts = _checked_fractions(fractions)
    names, sizes = np.unique(groups, return_counts=True)
    free = np.flatnonzero(~np.isin(names, list(always_train)))
    if len(free) < FEWEST_GROUPS:
        raise DatasetError(
            f"{len(groups)} records cannot be split into training, validation and test parts",
            expected=f"at least {FEWEST_GROUPS} groups of related structures",
            found=f"{len(free)}" + (", apart from those kept for training" if always_train else ""),
            remedy="sample more: more seed structures, or more labels for each of them",
        )
    largest = free[sizes[free].argmax()]
    order = np.random.default_rng(seed).permutation(free[free != largest])
    lacking = {part: parts[part] * len(groups) for part in ("validation", "test")}
    chosen: dict[str, list[int]] = {"validation": [], "test": []}
    for group in order.tolist():
        part = max(lacking, key=lambda part: lacking[part])
        if sizes[group] <= lacking[part]:
            chosen[part].append(group)
            lacking[part] -= sizes[group]
    taken = {group for part in chosen.values() for group in part}
    rest = sorted((group for group in order.tolist() if group not in taken), key=sizes.__getitem__)
    for part in sorted(lacking, key=lambda part: (len(chosen[part]) > 0, -lacking[part])):
        if rest and (not chosen[part] or sizes[rest[0]] < 2 * lacking[part]):
            chosen[part].append(rest.pop(0))
    if not chosen["validation"] or not chosen["test"]:
        _share_one(chosen)
    records = {part: np.isin(groups, names[chosen[part]]) for part in chosen}
    return Split(
        np.flatnonzero(~(records["validation"] | records["test"])),
        np.flatnonzero(records["validation"]),
        np.flatnonzero(records["test"]),
    )


def in_blocks(groups: np.ndarray, n: int = 10) -> np.ndarray:
    """(n_records,) int64: each of ``groups`` in ``n`` runs of consecutive records, or fewer.

    Warns: neighbouring blocks of a trajectory resemble each other.
    """
    names = np.unique(groups)
    warnings.warn(
        f"all {len(groups)} labels are of {len(names)} groups of kin, which were cut into blocks "
        "of consecutive structures: those tested resemble those trained on, and errors on them say "
        "nothing of other structures",
        stacklevel=3,
    )
    blocks = np.empty(len(groups), dtype=np.int64)
    for number, name in enumerate(names):
        own = np.flatnonzero(groups == name)
        blocks[own] = n * number + np.arange(len(own)) * n // len(own)
    return blocks


def _share_one(chosen: dict[str, list[int]]) -> None:
    """Give the empty part a group of the other one, which has two or more."""
    empty, full = sorted(chosen, key=lambda part: len(chosen[part]))
    chosen[empty].append(chosen[full].pop())


def _checked_fractions(fractions: tuple[float, float, float]) -> dict[str, float]:
    valid = len(fractions) == 3 and all(0 < part < 1 for part in fractions)
    if not valid or not math.isclose(sum(fractions), 1.0, abs_tol=1e-6):
        raise DatasetError(
            "the fractions of a split are wrong",
            expected="training, validation and test, all positive, with sum 1",
            found=fractions,
        )
    return dict(zip(("train", "validation", "test"), fractions, strict=True))

"""What is said before a training begins: labels that look wrong, tests that test nothing."""

from __future__ import annotations

import warnings
from collections import Counter

import numpy as np

from mlff_distiller.dataset import Dataset, Split
from mlff_distiller.labeling import check_labels
from mlff_distiller.sampling import find_similar, near_copies

_MOST_TESTED, _MOST_TRAINED = 500, 5000
"""Structures compared, evenly taken: some 2 ms each, and 1 µs per pair."""


def warn_of_labels(labels: Dataset, split: Split) -> None:
    """Warn of labels that contradict laws or each other, and of test structures seen in training.

    Reads the dataset twice.
    """
    if findings := check_labels(labels):
        counts = Counter(finding.check for finding in findings)
        told = ", ".join(f"{check}: {count}" for check, count in counts.items())
        warnings.warn(
            f"some labels look wrong ({told} of {len(labels)}); first {findings[0]}", stacklevel=2
        )
    test, train = (
        [record.atoms for record in labels.iterate(part[:: 1 + len(part) // most])]
        for part, most in ((split.test, _MOST_TESTED), (split.train, _MOST_TRAINED))
    )
    equal = find_similar(test, train)[:, 0]
    near = np.setdiff1d(near_copies(test, train), equal)
    for found, words in (
        (np.unique(equal), "are trained on too, up to rotation, order or cell"),
        (near, "are within 0.1 Å per atom of one that is trained on"),
    ):
        if len(found):
            warnings.warn(
                f"{len(found)} of {len(test)} test structures {words}: errors on them say how well "
                "the student remembers; see `data compare`, and group kin",
                stacklevel=2,
            )

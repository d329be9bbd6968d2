"""Labelling: structures in, checked labels in a dataset; resumable, on one worker or many."""

from mlff_distiller.labeling.checks import Finding, check_labels, write_findings
from mlff_distiller.labeling.job import Outcome, label
from mlff_distiller.labeling.labeler import BRANCHES_PER_SEED, Labeler, LabelStore, open_labels
from mlff_distiller.labeling.structures import (
    FilesOrAtoms,
    Structures,
    as_list,
    read_frames,
    read_structures,
)
from mlff_distiller.labeling.workers import Cluster, Request

__all__ = [
    "BRANCHES_PER_SEED",
    "Cluster",
    "FilesOrAtoms",
    "Finding",
    "LabelStore",
    "Labeler",
    "Outcome",
    "Request",
    "Structures",
    "as_list",
    "check_labels",
    "label",
    "open_labels",
    "read_frames",
    "read_structures",
    "write_findings",
]

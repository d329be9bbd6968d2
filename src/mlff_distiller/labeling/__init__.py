"""Labelling: structures in, checked labels in a dataset; resumable, on one worker or many."""

from mlff_distiller.labeling.labeler import BRANCHES_PER_SEED, Labeler, open_labels

__all__ = ["BRANCHES_PER_SEED", "Labeler", "open_labels"]

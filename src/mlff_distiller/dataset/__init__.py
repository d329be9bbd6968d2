"""The store of labelled structures: crash-safe, checked on every read, split by kinship."""

from mlff_distiller.dataset.frames import Frames
from mlff_distiller.dataset.manifest import dataset_folder
from mlff_distiller.dataset.record import Record, input_hash, label_key, structure_hash
from mlff_distiller.dataset.split import Split, split_by_group
from mlff_distiller.dataset.store import Dataset
from mlff_distiller.dataset.verify import VerifyReport, verify
from mlff_distiller.dataset.writer import DatasetWriter

__all__ = [
    "Dataset",
    "DatasetWriter",
    "Frames",
    "Record",
    "Split",
    "VerifyReport",
    "dataset_folder",
    "input_hash",
    "label_key",
    "split_by_group",
    "structure_hash",
    "verify",
]

"""Trains a small student, alone or as one of several processes that torchrun started."""

import sys
from pathlib import Path

import torch
from safetensors.torch import save_file
from test_train import SMALL, frames, molecule

from mlff_distiller.students import nep_for
from mlff_distiller.training import TrainingSettings, train, workers_of_torchrun

if __name__ == "__main__":
    torch.set_num_threads(1)
    training = [*frames(9), *molecule(3)]
    settings = TrainingSettings(updates=30, atoms_per_batch=12, checkpoint_seconds=0.0)
    student = nep_for(training, SMALL, 0).double()
    out = Path(sys.argv[1])
    with workers_of_torchrun("cpu") as workers:
        train(
            student,
            training,
            frames(4, seed=1),
            settings,
            probes=[(0, 1)],
            workers=workers,
            checkpoint=out.with_suffix(".checkpoint"),
        )
        save_file(student.state_dict(), out.with_suffix(f".{workers.rank}"))

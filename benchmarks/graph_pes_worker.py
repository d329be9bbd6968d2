"""Train one graph-pes model on the split that ``peer_graph_pes.py`` hands over.

Runs in an interpreter that has graph-pes and needs nothing of ours. What its command line
does beside training is left out, to its advantage: no copies of the best model for LAMMPS, no
logger, no cache of neighbour lists on disk; everything lies in memory. Stress is not trained.
"""

import argparse
import json
import tempfile
import time
import warnings
from importlib.metadata import version
from pathlib import Path

import numpy as np
import pytorch_lightning as pl
import torch
from ase import Atoms
from graph_pes import AtomicGraph
from graph_pes import models as architectures
from graph_pes.atomic_graph import to_batch
from graph_pes.config.training import FittingOptions
from graph_pes.data.datasets import DatasetCollection, GraphDataset
from graph_pes.training.loss import PerAtomEnergyLoss, PropertyLoss, TotalLoss
from graph_pes.training.opt import LRScheduler, Optimizer
from graph_pes.training.tasks import train_with_lightning
from pytorch_lightning.callbacks import Callback, EarlyStopping, ModelCheckpoint

# Of its repository: configs/realistic.yaml, and the quick start's configuration for forces. The
# batch of the third is the default of its command line.
RECIPES = {
    "realistic": {"rate": 3e-3, "factor": 0.8, "force_weight": 10.0, "batch": 32, "stop": 50},
    "quickstart": {"rate": 1e-2, "factor": 0.5, "force_weight": 1.0, "batch": 64, "stop": None},
    "small-batch": {"rate": 3e-3, "factor": 0.8, "force_weight": 10.0, "batch": 4, "stop": 50},
}
PLATEAU_PATIENCE = 10


def read_split(path):
    """Lists of ``Atoms`` by part; labels in ``info`` and ``arrays``, where graph-pes looks."""
    data = np.load(path)
    ends = np.cumsum(data["n_atoms"])
    frames = []
    for k, (end, size) in enumerate(zip(ends, data["n_atoms"], strict=True)):
        rows = slice(end - size, end)
        atoms = Atoms(
            data["atomic_numbers"][rows],
            data["positions"][rows],
            cell=data["cell"][k],
            pbc=data["pbc"][k],
        )
        atoms.info["energy"] = float(data["energy"][k])
        atoms.arrays["forces"] = data["forces"][rows]
        frames.append(atoms)
    parts, start = {}, 0
    for name, size in zip(("train", "validation", "test"), data["parts"], strict=True):
        parts[name] = frames[start : start + size]
        start += size
    return parts


class Curve(Callback):
    """Writes a line a validation, and ends the training when its time is up."""

    def __init__(self, started, seconds, write):
        self.started, self.limit, self.write = started, seconds, write

    def on_validation_end(self, trainer, task):
        if trainer.sanity_checking:
            return
        seconds = time.perf_counter() - self.started
        metrics = trainer.callback_metrics
        self.write(
            seconds=round(seconds, 3),
            updates=trainer.global_step,
            learning_rate=trainer.optimizers[0].param_groups[0]["lr"],
            validation_forces_mae_meV_per_A=1e3 * float(metrics["valid/metrics/forces_mae"]),
        )
        trainer.should_stop |= seconds > self.limit


def fit(parts, model, recipe, arguments, folder, write):
    started, cpu = time.perf_counter(), time.process_time()
    data = DatasetCollection(
        *(
            GraphDataset([AtomicGraph.from_ase(atoms, arguments.cutoff) for atoms in parts[name]])
            for name in ("train", "validation")
        )
    )
    write(prepared_s=round(time.perf_counter() - started, 3))
    monitor = {"monitor": "valid/loss/total", "mode": "min"}
    callbacks = [
        Curve(started, arguments.seconds, write),
        ModelCheckpoint(dirpath=folder, save_weights_only=True, **monitor),
    ]
    if recipe["stop"]:
        callbacks.append(EarlyStopping(patience=recipe["stop"], **monitor))
    workers = {"num_workers": arguments.workers, "persistent_workers": arguments.workers > 0}
    trainer = pl.Trainer(
        max_epochs=-1,
        accelerator="gpu" if arguments.device == "cuda" else "cpu",
        devices=1,
        inference_mode=False,
        callbacks=callbacks,
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    model = train_with_lightning(
        trainer,
        model,
        data,
        TotalLoss(
            [PerAtomEnergyLoss(), PropertyLoss("forces", "RMSE", weight=recipe["force_weight"])]
        ),
        FittingOptions(
            pre_fit_model=True,
            max_n_pre_fit=5_000,
            early_stopping=None,
            loader_kwargs={"batch_size": recipe["batch"], **workers},
            early_stopping_patience=None,
            auto_fit_reference_energies=False,
            keep="best",
        ),
        Optimizer("AdamW", lr=recipe["rate"]),
        scheduler=LRScheduler(
            "ReduceLROnPlateau", factor=recipe["factor"], patience=PLATEAU_PATIENCE
        ),
    )
    spent = {
        "training_s": round(time.perf_counter() - started, 1),
        "training_cpu_s": round(time.process_time() - cpu, 1),
        "updates": trainer.global_step,
    }
    return model, spent


def test(model, frames, cutoff, device):
    """Mean absolute errors of forces (meV/Å) and energy (meV/atom)."""
    model = model.to(device).eval()
    forces, energies = [], []
    for start in range(0, len(frames), 16):
        own = frames[start : start + 16]
        graph = to_batch([AtomicGraph.from_ase(atoms, cutoff) for atoms in own]).to(device)
        found = model.predict(graph, properties=["energy", "forces"])
        forces.append((found["forces"] - graph.properties["forces"]).detach().cpu().numpy())
        sizes = torch.tensor([len(atoms) for atoms in own])
        error = (found["energy"] - graph.properties["energy"]).detach().cpu()
        energies.append((error / sizes).numpy())
    return {
        "test_forces_mae_meV_per_A": 1e3 * float(np.abs(np.concatenate(forces)).mean()),
        "test_energy_mae_meV_per_atom": 1e3 * float(np.abs(np.concatenate(energies)).mean()),
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("split", type=Path)
    parser.add_argument("--out", type=Path, required=True, help="JSON lines")
    parser.add_argument("--model", default="PaiNN", help="with options: PaiNN:channels=64,layers=2")
    parser.add_argument("--recipe", choices=list(RECIPES), default="realistic")
    parser.add_argument("--cutoff", type=float, default=5.0)
    parser.add_argument("--seconds", type=float, required=True)
    parser.add_argument("--workers", type=int, default=0)
    parser.add_argument("--threads", type=int)
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    warnings.filterwarnings("ignore", module="pytorch_lightning")
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    torch.set_float32_matmul_precision("high")  # its default
    pl.seed_everything(arguments.seed)
    parts = read_split(arguments.split)
    name, _, options = arguments.model.partition(":")
    sizes = {
        key: int(value) for key, value in (own.split("=") for own in options.split(",") if own)
    }
    torch.zeros(1, device=arguments.device)  # the GPU's context is nobody's training time
    many_body = getattr(architectures, name)(cutoff=arguments.cutoff, **sizes)
    model = architectures.AdditionModel(offset=architectures.LearnableOffset(), many_body=many_body)
    with arguments.out.open("w") as lines, tempfile.TemporaryDirectory() as folder:

        def write(**row):
            lines.write(json.dumps(row) + "\n")
            lines.flush()

        recipe = RECIPES[arguments.recipe]
        model, spent = fit(parts, model, recipe, arguments, folder, write)
        write(
            **spent,
            n_parameters=sum(own.numel() for own in many_body.parameters()),
            torch=torch.__version__,
            graph_pes=version("graph-pes"),
            **test(model, parts["test"], arguments.cutoff, arguments.device),
        )


if __name__ == "__main__":
    main()

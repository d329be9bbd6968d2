"""Our training beside graph-pes's: force error at equal labels, and the seconds that it took.

    python benchmarks/peer_graph_pes.py aspirin.extxyz --peer-python PEER/bin/python \
        --out benchmarks/results/peer_graph_pes.json

Both get the same frames in the same split, cutoff, device and number of threads, one after the
other, train on energies and forces, and validate once an epoch. Time runs from labelled frames in
memory: neighbour lists, scales and validation count, imports do not. Ours is trained anew for each
number of updates, since its learning rate falls to zero over them; graph-pes, whose rate falls
when it stops improving, once for each recipe of its documentation (``graph_pes_worker.py``), until
it stops or its time is up. Energies reach both less the least-squares energies of atoms, because
graph-pes sums in float32.

``curve`` is the smallest validation error so far against seconds; ``seconds_to`` reads it. The test
error is that of the epoch that each side selects by its own rule.
"""

import argparse
import dataclasses
import json
import math
import os
import platform
import re
import subprocess
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from ase.io import read

from mlff_distiller.batch import Batch
from mlff_distiller.students import NEPSettings, PaiNNSettings, nep_for, painn_for
from mlff_distiller.training import TrainingSettings, train
from mlff_distiller.validation.accuracy import student_errors

TARGETS = (200, 150, 100, 80, 60, 50, 40, 35, 30, 25, 20, 15, 10)
"""meV/Å."""


def load(path):
    """One labelled ``Batch`` a frame, without stress."""
    if path.suffix == ".safetensors":
        from studies.label_sets import load_set

        frames = load_set(path)
    else:
        frames = [Batch.from_atoms([atoms]) for atoms in read(path, ":")]
    nothing = torch.full((1, 3, 3), math.nan, dtype=torch.float64)
    return [dataclasses.replace(b, labels={**b.labels, "stress": nothing}) for b in frames]


def without_atoms(frames, training):
    """The frames with energies less those of atoms, fitted to the training frames."""
    numbers = torch.cat([frame.atomic_numbers for frame in training]).unique()
    composition = torch.stack(
        [(f.atomic_numbers.unsqueeze(1) == numbers).sum(0).double() for f in frames]
    )
    energies = torch.cat([frame.labels["energy"] for frame in frames])
    n = len(training)
    atoms = np.linalg.lstsq(composition[:n].numpy(), energies[:n].numpy(), rcond=None)[0]
    rest = energies - composition @ torch.from_numpy(atoms)
    return [
        dataclasses.replace(frame, labels={**frame.labels, "energy": own.unsqueeze(0)})
        for frame, own in zip(frames, rest, strict=True)
    ]


def falling(points):
    """Of (seconds, error), those that are better than all before."""
    best, kept = math.inf, []
    for seconds, error in points:
        if error < best:
            best = error
            kept.append([round(seconds, 2), round(error, 3)])
    return kept


def seconds_to(curves):
    """For each target, the first moment at which one of the curves is at or below it."""
    reached = {}
    for target in TARGETS:
        times = [next((s for s, e in curve if e <= target), math.inf) for curve in curves]
        if min(times) < math.inf:
            reached[f"{target} meV/A"] = min(times)
    return reached


def ours(name, updates, parts, arguments):
    training, validation, test = parts
    points = []
    started, cpu = time.perf_counter(), time.process_time()

    def on_validation(row, _):
        error = row["validation_forces_mae_meV_per_A"]
        points.append((time.perf_counter() - started, error))

    architecture, _, preset = name.partition("-")
    if architecture == "nep":
        student = nep_for(training, NEPSettings(), arguments.seed)
    else:
        channels, layers = map(int, preset.split("x"))
        settings = PaiNNSettings(cutoff_A=arguments.cutoff, channels=channels, layers=layers)
        student = painn_for(training, settings, arguments.seed)
    student = student.to(arguments.device)
    given = {"updates": updates, **arguments.training}
    per_update = TrainingSettings(**given).atoms_in_batch(student.device.type)
    per_epoch = sum(frame.n_atoms for frame in training) / per_update
    settings = TrainingSettings(**{"validations": max(10, round(updates / per_epoch)), **given})
    train(
        student,
        training,
        validation,
        settings,
        seed=arguments.seed,
        on_validation=on_validation,
    )
    seconds, cpu = time.perf_counter() - started, time.process_time() - cpu
    errors = student_errors(student, test)
    return {
        "by": "mlff-distiller",
        "model": name,
        "recipe": f"{updates} updates",
        "n_parameters": sum(own.numel() for own in student.parameters()),
        "training_s": round(seconds, 1),
        "training_cpu_s": round(cpu, 1),
        "test_forces_mae_meV_per_A": errors["forces_mae_meV_per_A"],
        "test_energy_mae_meV_per_atom": errors["energy_mae_meV_per_atom"],
        "curve": falling(points),
    }


def peer(model, recipe, split, arguments):
    lines = split.with_suffix(".jsonl")
    command = [
        *(arguments.peer_python, Path(__file__).with_name("graph_pes_worker.py"), split),
        *("--out", lines, "--model", model, "--recipe", recipe, "--cutoff", arguments.cutoff),
        *("--seconds", arguments.peer_seconds, "--workers", arguments.peer_workers),
        *("--threads", torch.get_num_threads(), "--device", arguments.device),
        *("--seed", arguments.seed),
    ]
    log = split.with_suffix(".log")
    with log.open("w") as output:
        done = subprocess.run([str(word) for word in command], stdout=output, stderr=output)
    if done.returncode:
        raise SystemExit(f"graph-pes failed:\n{log.read_text()[-4000:]}")
    rows = [json.loads(line) for line in lines.read_text().splitlines()]
    shown = [row for row in rows if "validation_forces_mae_meV_per_A" in row]
    return {
        "by": "graph-pes",
        "model": model,
        "recipe": recipe,
        **rows[0],
        **rows[-1],
        "last_learning_rate": shown[-1]["learning_rate"],
        "curve": falling([(r["seconds"], r["validation_forces_mae_meV_per_A"]) for r in shown]),
    }


def write_split(path, parts):
    frames = [frame for part in parts for frame in part]
    whole = Batch.concatenate(frames)
    np.savez(
        path,
        parts=[len(part) for part in parts],
        n_atoms=whole.atoms_per_system.numpy(),
        **{name: getattr(whole, name).numpy() for name in ("positions", "atomic_numbers")},
        **{name: getattr(whole, name).numpy() for name in ("cell", "pbc")},
        **{name: whole.labels[name].double().numpy() for name in ("energy", "forces")},
    )


def command():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("frames", type=Path, help="extxyz, or a set of studies/training_sets.py")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--peer-python", help="interpreter that has graph-pes; none: only ours")
    parser.add_argument("--peer-models", nargs="*", default=["PaiNN", "TensorNet"])
    parser.add_argument("--peer-recipes", nargs="+", default=["realistic"])
    parser.add_argument("--peer-seconds", type=float, default=300.0, help="of each run")
    parser.add_argument("--peer-workers", type=int, default=0, help="processes that load batches")
    parser.add_argument("--students", nargs="*", default=["painn-32x2", "painn-64x2"])
    parser.add_argument("--updates", type=int, nargs="+", default=[500, 2_000])
    parser.add_argument("--training", type=json.loads, default={}, help="settings of ours, as JSON")
    parser.add_argument("--cutoff", type=float, default=5.0)
    parser.add_argument("--n-train", type=int, default=300)
    parser.add_argument("--n-validation", type=int, default=50)
    parser.add_argument("--n-test", type=int, default=1_000, help="at most")
    parser.add_argument("--threads", type=int)
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_args()


def main():
    arguments = command()
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    frames = load(arguments.frames)
    order = np.random.default_rng(arguments.seed).permutation(len(frames))
    ends = np.cumsum([arguments.n_train, arguments.n_validation, arguments.n_test])
    if ends[1] >= len(frames):
        raise SystemExit(f"{len(frames)} frames leave none for the test")
    chosen = [frames[k] for k in order[: ends[2]]]
    chosen = without_atoms(chosen, chosen[: ends[0]])
    parts = chosen[: ends[0]], chosen[ends[0] : ends[1]], chosen[ends[1] :]
    torch.zeros(1, device=arguments.device)  # the GPU's context is nobody's training time
    gpu = arguments.device == "cuda"
    commit = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False
    )
    report = {
        "about": {
            "machine": torch.cuda.get_device_name() if gpu else platform.machine(),
            "threads": torch.get_num_threads(),
            "device": arguments.device,
            "torch": torch.__version__,
            "commit": commit.stdout.strip(),
            "frames": arguments.frames.name,
            "n_atoms": chosen[0].n_atoms,
            "n_train, n_validation, n_test": [len(part) for part in parts],
            "cutoff_A": arguments.cutoff,
            "seed": arguments.seed,
            "training": arguments.training,
            "peer_workers": arguments.peer_workers,
        },
        "seconds_to": {},
        "rows": [],
    }
    with tempfile.TemporaryDirectory() as folder:
        split = Path(folder) / "split.npz"
        write_split(split, parts)
        jobs = [
            (ours, (student, updates, parts, arguments))
            for student in arguments.students
            for updates in arguments.updates
        ]
        if arguments.peer_python:
            jobs += [
                (peer, (model, recipe, split, arguments))
                for model in arguments.peer_models
                for recipe in arguments.peer_recipes
            ]
        for job, given in jobs:
            row = {**job(*given), "load_average": round(os.getloadavg()[0], 1)}
            report["rows"].append(row)
            groups = {}
            for own in report["rows"]:
                groups.setdefault(f"{own['by']} {own['model']}", []).append(own["curve"])
            report["seconds_to"] = {name: seconds_to(curves) for name, curves in groups.items()}
            print(json.dumps({k: v for k, v in row.items() if k != "curve"}), flush=True)
            arguments.out.parent.mkdir(parents=True, exist_ok=True)
            text = json.dumps(report, indent=1)
            text = re.sub(r"\[[-\d.,\s]+\]", lambda own: "".join(own[0].split()), text)
            arguments.out.write_text(text + "\n")


if __name__ == "__main__":
    main()

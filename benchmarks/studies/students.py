"""Train students on label sets and test each on the teacher's own dynamics: tables, ablations.

A run is SYSTEM,STUDENT,LABELS and any settings of the configuration, and ``probes=N`` to learn from
so many pairs of SYSTEM/probes.safetensors too, or ``seconds=N`` for as many updates as fit into
so long, as timed beside the other runs, for example

    python students.py sets --out table.json --students students --device cuda \\
        si,nep,900 si,painn-64x2,900,training.updates=10000 water,painn-64x2,1000,seed=1

``sets`` holds SYSTEM/train.safetensors and SYSTEM/test.safetensors, made by ``training_sets.py``
and ``crystal_sets.py``. Frames of some walkers, never trained on, choose the weights; LABELS others
are drawn at random. ``--at-once`` runs share the device, each in a process of its own.
"""

import argparse
import contextlib
import copy
import dataclasses
import json
import os
import platform
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import torch
from label_sets import load_extra, load_set

from mlff_distiller.students import save_student
from mlff_distiller.training import Samples, train, validate
from mlff_distiller.workflows.config import load_config

_VALIDATION_FRAMES = 40


def split(path, n, seed):
    """Training and validation frames; those of one walker are never in both."""
    frames, walkers = load_set(path), np.array([int(w) for w in load_extra(path, "walker")])
    with contextlib.suppress(KeyError):
        spreads = load_extra(path, "spread")
        frames = [
            dataclasses.replace(frame, labels={**frame.labels, "forces_spread": spread})
            for frame, spread in zip(frames, spreads, strict=True)
        ]
    rng = np.random.default_rng(seed)
    kinds = np.unique(walkers[walkers >= 0])
    held = np.isin(walkers, rng.permutation(kinds)[: max(2, len(kinds) // 10)])
    validation = rng.permutation(np.flatnonzero(held))[:_VALIDATION_FRAMES]
    rest = rng.permutation(np.flatnonzero(~held))[:n]
    return [frames[k] for k in rest], [frames[k] for k in validation]


def updates_in(seconds, student, training, validation, config):
    """How many updates take so long, by the last 150 of 300 of a copy; a fifth is left over."""
    times = []
    settings = dataclasses.replace(config.training, updates=300, validations=2, md_checks=0)
    train(
        copy.deepcopy(student),
        training,
        validation,
        settings,
        on_validation=lambda row, updates: times.append(row["seconds"]),
    )
    return int(0.8 * seconds / (times[-1] - times[0]) * 150)


def one(run, sets, students, checkpoints, device, seed):
    """Train and test one run; returns its row."""
    system, student_name, n, *settings = run.split(",")
    overrides = [own for own in settings if not own.startswith(("probes=", "seconds="))]
    config = load_config(None, overrides, student=student_name)
    training, validation = split(sets / system / "train.safetensors", int(n), seed)
    n_probes = sum(int(own.partition("=")[2]) for own in settings if own.startswith("probes="))
    n_labels = len(training)
    if n_probes:
        training += load_set(sets / system / "probes.safetensors")[: 2 * n_probes]
    student = config.new_student(training).to(device)
    for own in settings:
        if own.startswith("seconds="):
            updates = updates_in(
                float(own.partition("=")[2]), student, training, validation, config
            )
            config = load_config(
                None, [*overrides, f"training.updates={updates}"], student=student_name
            )
    checkpoint, name = None, run.replace(",", "_").replace("=", "-").replace("/", "-")
    if checkpoints is not None:
        checkpoint = checkpoints / name / "checkpoint.safetensors"
        checkpoint.parent.mkdir(parents=True, exist_ok=True)
    curve = []
    started = time.perf_counter()
    history = train(
        student,
        training,
        validation,
        config.training,
        seed=config.seed,
        checkpoint=checkpoint,
        probes=[(n_labels + 2 * k, n_labels + 2 * k + 1) for k in range(n_probes)],
        on_validation=lambda row, updates: curve.append(
            [
                row["updates"],
                round(time.perf_counter() - started, 1),
                round(row["validation_forces_mae_meV_per_A"], 2),
            ]
        ),
    )
    seconds = time.perf_counter() - started
    test = load_set(sets / system / "test.safetensors")
    errors = validate(student, Samples(test, student))
    if students is not None:
        about = {"teacher": None, "n_train": len(training), "temperature_K": [300.0]}
        save_student(student, students / name, about=about, card="# A student\n", frames=training)
    return {
        "run": run,
        "system": system,
        "student": student_name,
        "labels": n_labels,
        "probes": n_probes,
        "n_parameters": sum(p.numel() for p in student.parameters()),
        "training_s": round(seconds, 1),
        "updates": history[-1]["updates"],
        **{key.replace("validation_", ""): round(value, 5) for key, value in errors.items()},
        "validation_forces_mae_meV_per_A": min(c[2] for c in curve),
        "curve": curve[:: max(1, len(curve) // 20)],
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("sets", type=Path)
    parser.add_argument("runs", nargs="+")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--students", type=Path)
    parser.add_argument("--checkpoints", type=Path, help="where to, to go on after an interruption")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--at-once", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0, help="of the split")
    parser.add_argument("--alone", action="store_true", help="one run, its row to standard output")
    arguments = parser.parse_args()
    if arguments.alone:
        (run,) = arguments.runs
        folders = arguments.sets, arguments.students, arguments.checkpoints
        row = one(run, *folders, arguments.device, arguments.seed)
        print("ROW " + json.dumps(row), flush=True)
        return
    commit = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False
    )
    gpu = torch.cuda.get_device_name() if arguments.device.startswith("cuda") else None
    about = {
        "machine": platform.processor() or platform.machine(),
        "device": gpu or arguments.device,
        "torch": torch.__version__,
        "at_once": arguments.at_once,
        "commit": commit.stdout.strip(),
        "split_seed": arguments.seed,
    }
    rows, waiting, running = [], list(arguments.runs), []
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    while waiting or running:
        while waiting and len(running) < arguments.at_once:
            run = waiting.pop(0)
            command = [sys.executable, __file__, str(arguments.sets), run, "--alone"]
            command += ["--device", arguments.device, "--seed", str(arguments.seed)]
            command += ["--out", str(arguments.out)]
            for name in ("students", "checkpoints"):
                if getattr(arguments, name) is not None:
                    command += [f"--{name}", str(getattr(arguments, name))]
            threads = str(max(1, (os.cpu_count() or 1) // arguments.at_once))
            running.append(
                subprocess.Popen(
                    command,
                    stdout=subprocess.PIPE,
                    text=True,
                    env=os.environ | {"OMP_NUM_THREADS": threads},
                )
            )
        done = [process for process in running if process.poll() is not None]
        for process in done:
            running.remove(process)
            answer = process.stdout.read()
            row = next((own for own in answer.splitlines() if own.startswith("ROW ")), None)
            if row is None:
                print(f"FAILED {process.args[3]}\n{answer[-500:]}", flush=True)
                continue
            rows.append(json.loads(row[4:]))
            shown = {name: value for name, value in rows[-1].items() if name != "curve"}
            print(json.dumps(shown), flush=True)
            arguments.out.write_text(json.dumps({"about": about, "rows": rows}, indent=1) + "\n")
        time.sleep(0.2)


if __name__ == "__main__":
    main()

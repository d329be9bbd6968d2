"""What a label is worth: rattled trees, the teacher's dynamics and active learning on liquid water.

Three label sets of the same size are made, by a committee of eight ANI-1ccx networks, from the same
four boxes of 64 water molecules; NEP students trained on their first 75, 150 and 300 labels are
tested on frames of the teacher's dynamics, and on frames of their own dynamics that the teacher
scores. Three steps, each resumable, and a plot:

    python benchmarks/active_learning.py label TEACHERS WATER.extxyz WORK   # CPU, under an hour
    python benchmarks/active_learning.py train WORK                         # GPU or CPU
    python benchmarks/active_learning.py score TEACHERS WATER.extxyz WORK --out results.json
    python benchmarks/active_learning.py plot results.json plot.png         # needs matplotlib

TEACHERS is a folder with ``ani1ccx_model*.fnx``. To keep the cost of a label near that of one
evaluation, the teacher's dynamics is driven by the committee's first member and labelled by all.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import multiprocessing
import platform
from pathlib import Path

import numpy as np
import torch
from ase import Atoms
from ase.io import read

from mlff_distiller.dataset import Dataset, split_by_group
from mlff_distiller.durable import EventLog, write_json
from mlff_distiller.labeling import Labeler, open_labels
from mlff_distiller.sampling import DynamicsSettings, RattleSettings, walk, walkers
from mlff_distiller.sampling.dynamics import relative_error
from mlff_distiller.sampling.segments import run_segment
from mlff_distiller.students import load_student, save_student
from mlff_distiller.training import train
from mlff_distiller.workflows.config import Config

STRATEGIES = ("tree", "dynamics", "active")
SIZES = (75, 150, 300)
TEMPERATURE_K = 300.0
TRAIN_BOXES, TEST_BOXES = (0, 10, 20, 30), (5, 15, 25, 35)
STEP = DynamicsSettings(time_step_fs=1.0, longest_fs=100.0)


def teacher_specs(folder: Path) -> tuple[str, str]:
    """The committee and its first member."""
    paths = sorted(folder.glob("ani1ccx_model*.fnx"))
    return "fennol:" + ",".join(map(str, paths)), f"fennol:{paths[0]}"


def boxes(path: Path, indices: tuple[int, ...]) -> list[Atoms]:
    frames = read(path, index=":")
    return [
        Atoms(frames[k].numbers, frames[k].positions, cell=frames[k].cell, pbc=True)
        for k in indices
    ]


def settings(strategy: str) -> Config:
    config = Config(labels=SIZES[-1], seed=1)
    return dataclasses.replace(
        config,
        sampling=RattleSettings(temperature_K=(TEMPERATURE_K,)),
        dynamics=STEP,
        active=dataclasses.replace(
            config.active, share=0.8 if strategy == "active" else 0.0, least_gain=0.0
        ),
        training=dataclasses.replace(config.training, atoms_per_batch=384, updates=4_000),
    )


def label(teachers: Path, water: Path, work: Path, only: str | None) -> None:
    from mlff_distiller.teachers import TeacherCalculator
    from mlff_distiller.workflows.labels import label_stage

    committee, member = teacher_specs(teachers)

    def show(stage: str, done: int, total: int, news: str) -> None:
        print(f"{stage} {done}/{total} {news}", flush=True)

    def own_dynamics(folder: Path, seeds: list[Atoms], n: int, seed: int) -> None:
        with (
            TeacherCalculator(committee) as source,
            TeacherCalculator(member) as driver,
            open_labels(folder, source.identity) as writer,
        ):
            known = {
                (record.provenance["walker"], record.provenance["segment"]): record.atoms
                for record in Dataset(folder).records(np.arange(len(Dataset(folder))))
            }
            group = walkers(seeds, [TEMPERATURE_K], STEP)
            labeler = Labeler(writer, source)
            walk(
                group, driver, labeler, n, STEP, seed, known, lambda k: show(folder.name, k, n, "")
            )

    for strategy in STRATEGIES:
        if only not in (None, strategy):
            continue
        folder = work / strategy
        folder.mkdir(parents=True, exist_ok=True)
        seeds = boxes(water, TRAIN_BOXES)
        if strategy == "dynamics":
            own_dynamics(folder / "dataset", seeds, SIZES[-1], seed=1)
        else:
            with TeacherCalculator(committee) as source:
                config = settings(strategy)
                label_stage(folder, seeds, source, config, EventLog(folder / "log.jsonl"), show)
    if only in (None, "test"):
        own_dynamics(work / "test" / "dataset", boxes(water, TEST_BOXES), 80, seed=2)


def train_one(work: Path, strategy: str, size: int, device: str) -> None:
    torch.set_num_threads(1)
    folder = work / strategy / f"student-{size}"
    if (folder / "config.json").exists():
        return
    labels = Dataset(work / strategy / "dataset")
    groups = labels.groups[: min(size, len(labels))]
    split = split_by_group(groups, (0.8, 0.1, 0.1), seed=1)
    training = labels.read(np.sort(np.concatenate([split.train, split.test]))).systems()
    validation = labels.read(split.validation).systems()
    config = settings(strategy)
    student = config.new_student(training).to(device)
    rows = train(student, training, validation, config.training, seed=1)
    about = {"n_labels": len(groups), "seconds": rows[-1]["seconds"], "epochs": len(rows)}
    save_student(student.cpu(), folder, about=about, card="benchmark", frames=training)
    print(strategy, size, rows[-1], flush=True)


def train_all(work: Path, device: str, processes: int) -> None:
    jobs = [(work, strategy, size, device) for strategy in STRATEGIES for size in SIZES]
    jobs = [job for job in jobs if (work / job[1] / "dataset").is_dir()]
    with multiprocessing.get_context("spawn").Pool(processes) as pool:
        pool.starmap(train_one, jobs, chunksize=1)


def score(teachers: Path, water: Path, work: Path, out: Path) -> None:
    from mlff_distiller.deploy import StudentCalculator
    from mlff_distiller.teachers import TeacherCalculator

    test = Dataset(work / "test" / "dataset")
    records = [r for r in test.records(np.arange(len(test))) if r.provenance["segment"] >= 10]
    rows = []
    with TeacherCalculator(teacher_specs(teachers)[0]) as source:
        for strategy in STRATEGIES:
            for size in SIZES:
                folder = work / strategy / f"student-{size}"
                if not folder.is_dir():
                    continue
                calculator = StudentCalculator(folder, device="cpu")
                predicted, truth = [], []
                for record in records:
                    record.atoms.calc = calculator
                    predicted.append(record.atoms.get_forces())
                    truth.append(record.labels["forces"])
                own = own_frames(boxes(water, TEST_BOXES), calculator)
                answers = source.label(own)
                row = {
                    "strategy": strategy,
                    "n_labels": size,
                    "fidelity_teacher_md": 1 - relative_error(np.stack(predicted), np.stack(truth)),
                    "forces_mae_meV_per_A": 1e3
                    * float(np.abs(np.stack(predicted) - np.stack(truth)).mean()),
                    "fidelity_student_md": _own_fidelity(own, answers, calculator),
                    "n_student_md_frames": len(own),
                    "elements": list(load_student(folder).elements),
                }
                rows.append(row)
                print(row, flush=True)
    write_json(
        out,
        {
            "system": "64 H2O, 12.44 Å, 300 K",
            "teacher": "ANI-1ccx, committee of 8",
            "n_test_frames": len(records),
            "hardware": platform.processor() or platform.machine(),
            "torch": torch.__version__,
            "rows": rows,
        },
    )


def own_frames(seeds: list[Atoms], calculator: object) -> list[Atoms]:
    """20 frames of the student's dynamics, five from each box, 1 ps apart at most."""
    group = walkers(seeds, [TEMPERATURE_K], STEP)
    frames = []
    for walker in group:
        walker.reach_fs = STEP.longest_fs
        for segment in range(10):
            moved, _ = run_segment(walker, calculator, STEP, seed=9)
            walker.segment += 1
            if moved is not None:
                walker.atoms = moved
                if segment >= 5:
                    frames.append(moved)
    return frames


def _own_fidelity(own: list[Atoms], answers: list, calculator: object) -> float | None:
    predicted, truth = [], []
    for atoms, answer in zip(own, answers, strict=True):
        if answer.labels is not None:
            atoms.calc = calculator
            predicted.append(atoms.get_forces())
            truth.append(answer.labels["forces"])
    return 1 - relative_error(np.stack(predicted), np.stack(truth)) if truth else None


def plot(results: Path, out: Path) -> None:
    """Fidelity against number of labels; one panel for each kind of test frame."""
    import matplotlib.pyplot as plt

    rows = json.loads(results.read_text())["rows"]
    names = {"tree": "trees only", "dynamics": "teacher's MD only", "active": "active learning"}
    figure, panels = plt.subplots(1, 2, figsize=(8, 3.4), sharey=True, layout="constrained")
    for panel, (key, title) in zip(
        panels,
        (
            ("fidelity_teacher_md", "on frames of the teacher's MD"),
            ("fidelity_student_md", "on frames of the student's own MD"),
        ),
        strict=True,
    ):
        for (strategy, name), marker in zip(names.items(), "so^", strict=True):
            own = [row for row in rows if row["strategy"] == strategy]
            counts = [row["n_labels"] for row in own]
            panel.plot(counts, [row[key] for row in own], marker=marker, label=name)
        panel.set(xscale="log", xlabel="labels", title=title)
        panel.set_xticks(SIZES, SIZES)
        panel.minorticks_off()
        panel.grid(alpha=0.3)
    panels[0].set_ylabel("force fidelity")
    panels[0].legend()
    figure.savefig(out, dpi=150)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    steps = parser.add_subparsers(dest="step", required=True)
    for name in ("label", "score"):
        step = steps.add_parser(name)
        step.add_argument("teachers", type=Path)
        step.add_argument("water", type=Path)
        step.add_argument("work", type=Path)
        step.add_argument("--only", choices=(*STRATEGIES, "test"))
        step.add_argument("--out", type=Path)
    step = steps.add_parser("train")
    step.add_argument("work", type=Path)
    step.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    step.add_argument("--processes", type=int, default=9)
    step = steps.add_parser("plot")
    step.add_argument("results", type=Path)
    step.add_argument("out", type=Path)
    arguments = parser.parse_args()
    if arguments.step == "plot":
        plot(arguments.results, arguments.out)
    elif arguments.step == "label":
        label(arguments.teachers, arguments.water, arguments.work, arguments.only)
    elif arguments.step == "train":
        train_all(arguments.work, arguments.device, arguments.processes)
    else:
        score(arguments.teachers, arguments.water, arguments.work, arguments.out)
        print(json.dumps(json.loads(arguments.out.read_text()), indent=1))


if __name__ == "__main__":
    main()

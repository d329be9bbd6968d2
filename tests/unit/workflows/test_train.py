"""``train``: from labels, an earlier student, probes, labels of others."""

import json
import os
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.build import bulk, molecule
from ase.calculators.emt import EMT
from ase.calculators.singlepoint import SinglePointCalculator
from safetensors import safe_open
from tests.helpers import alone, command, random_nep, random_painn, rattled

from mlff_distiller.batch import Batch
from mlff_distiller.dataset import Dataset, DatasetWriter, Record, label_key
from mlff_distiller.errors import ConfigError, DatasetError, TrainingError, UnknownElementError
from mlff_distiller.neighbors import neighbor_list
from mlff_distiller.sampling import probes
from mlff_distiller.students import load_student, read_config
from mlff_distiller.students.data import reference_energies
from mlff_distiller.training.sources import Sources
from mlff_distiller.training.update import Updater
from mlff_distiller.workflows.config import load_config
from mlff_distiller.workflows.doubts import warn_of_labels
from mlff_distiller.workflows.train import rebased, split_labels, train


def frames(energy: float, names=("H2O", "OH", "H2", "H2O2")) -> list[Batch]:
    batches = []
    for seed, name in enumerate(names):
        atoms = rattled(molecule(name), 0.05, seed)
        forces = np.zeros((len(atoms), 3))
        atoms.calc = SinglePointCalculator(atoms, energy=energy * len(atoms), forces=forces)
        batches.append(Batch.from_atoms([atoms]))
    return batches


@pytest.mark.parametrize("model", [random_nep, random_painn])
def test_reference_energies_follow_the_level_of_the_labels(model):
    own = model().float()
    before = own.reference_energies.clone()
    weights = {name: value.clone() for name, value in own.named_parameters()}
    labels = frames(0.0)
    for batch in labels:
        known = own(batch, neighbor_list(batch, own.cutoff)).energy.detach()
        shift = torch.tensor([-13.0, -2040.0], dtype=torch.float64)[own.types(batch.atomic_numbers)]
        batch.labels["energy"].copy_(known + shift.sum())
    student = rebased(own, labels)
    moved = student.reference_energies - before
    assert moved.tolist() == pytest.approx([-13.0, -2040.0], abs=1e-3)
    assert all(torch.equal(value, weights[name]) for name, value in student.named_parameters())


def test_an_element_that_no_frame_holds_keeps_its_energy():
    own = random_nep(("H", "C", "O")).float()
    before = float(own.reference_energies[1])
    assert float(rebased(own, frames(-5.0)).reference_energies[1]) == pytest.approx(before)


def test_an_element_it_does_not_know():
    atoms = Atoms("N2", [[0, 0, 0], [0, 0, 1.1]])
    atoms.calc = SinglePointCalculator(atoms, energy=0.0, forces=np.zeros((2, 3)))
    with pytest.raises(UnknownElementError, match="N"):
        rebased(random_nep().float(), [Batch.from_atoms([atoms])])


# -- the whole of ``train`` -----------------------------------------------------------------------

SMALL = [
    "training.updates=60",
    "training.validations=6",
    "training.atoms_per_batch=12",
    "training.checkpoint_seconds=0",
    "training.md_steps=10",
    "nep.n_max_radial=3",
    "nep.n_max_angular=2",
    "nep.neurons=6",
    "nep.cutoff_radial_A=4",
    "device=cpu",
]


def emt(n: int, seed: int = 0) -> list[Atoms]:
    made = []
    for number in range(n):
        atoms = bulk("Cu", cubic=True)
        atoms.rattle(0.15, seed=1000 * seed + number)
        made.append(atoms)
    return made


def dataset(
    folder: Path,
    structures: list[Atoms],
    shift: float = 0.0,
    spreads: dict[int, float] | None = None,
) -> Path:
    """By EMT, energies moved by ``shift`` an atom; ``spreads`` of the last atom's force, if any."""
    for atoms in structures:
        calculator = EMT()
        energy, forces = calculator.get_potential_energy(atoms), calculator.get_forces(atoms)
        atoms.calc = SinglePointCalculator(
            atoms,
            energy=energy + shift * len(atoms),
            forces=forces,
            stress=calculator.get_stress(atoms),
        )
    metadata = {"teacher": None}
    with DatasetWriter(folder, metadata) as writer:
        for number, atoms in enumerate(structures):
            told = {"seed", "probe"} & set(atoms.info)
            origin = {name: int(atoms.info[name]) for name in told}
            labels = {
                "energy": np.array(atoms.get_potential_energy()),
                "forces": atoms.get_forces(),
                "stress": atoms.get_stress(voigt=False),
            }
            if spreads is not None:
                labels["forces_spread"] = np.array([0.1, 0.1, 0.1, spreads.get(number, 0.1)])
            bare = Atoms(atoms.numbers, atoms.positions, cell=atoms.cell, pbc=True)
            key = label_key(bare, f"EMT {shift}")
            writer.append([Record(bare, labels, key, 1 + number, origin)])
    return folder


@pytest.fixture(scope="module")
def labels(tmp_path_factory) -> Path:
    return dataset(tmp_path_factory.mktemp("fit") / "labels", emt(30))


def test_metrics_go_to_the_log_and_tensorboard_and_the_student_runs(labels, tmp_path):
    train(labels, tmp_path, load_config(None, SMALL))
    rows = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert [row["updates"] for row in rows] == [10, 20, 30, 40, 50, 60]
    assert [row.get("md_steps") for row in rows] == [None, 10.0, 10.0, None, 10.0, 10.0]
    assert {"validation_stress_rmse_GPa", "validation_forces_r2"} <= set(rows[-1])
    (events,) = (tmp_path / "tensorboard").iterdir()
    assert b"validation/forces_mae_meV_per_A" in events.read_bytes()
    assert b"md/steps" in events.read_bytes()
    assert len(list((tmp_path / "best").iterdir())) == 3
    about = read_config(tmp_path / "student")["about"]
    assert about["temperature_K"] is None  # at which these labels were sampled is not known


def test_an_interrupted_run_continues_with_less_memory(labels, tmp_path, monkeypatch):
    settings = [*SMALL, "training.md_checks=0"]
    train(labels, tmp_path / "straight", load_config(None, settings))
    update, done = Updater.update, 0

    def dying(*arguments):
        nonlocal done
        done += 1
        return update(*arguments) if done < 20 else 1 / 0

    with monkeypatch.context() as patch:
        patch.setattr(Updater, "update", dying)
        with pytest.raises(ZeroDivisionError):
            train(labels, tmp_path / "stopped", load_config(None, settings))
    less = load_config(None, [*settings, "training.memory_GB=0"])
    train(labels, tmp_path / "stopped", less)
    weights = [tmp_path / k / "student" / "weights.safetensors" for k in ("straight", "stopped")]
    assert weights[0].read_bytes() == weights[1].read_bytes()
    with pytest.raises(ConfigError, match=r"other inputs:\n +config.seed: 0 -> 1\n"):
        train(labels, tmp_path / "stopped", replace(less, seed=1))


def test_a_tracker_that_is_not_installed(labels, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(TrainingError, match="wandb, which is not installed"):
        train(labels, tmp_path, load_config(None, [*SMALL, "training.trackers=[wandb]"]))


def test_labels_of_another_level_train_along(labels, tmp_path):
    others = dataset(tmp_path / "others", emt(20, seed=1), shift=-7.0)
    student = random_nep(elements=("Cu",)).float()
    own = Dataset(labels)
    frames_ = own.read(np.arange(len(own))).systems()
    student.reference_energies.copy_(reference_energies(frames_, student))
    extra = Sources(others=((others, 0.5),)).read(student, [])
    assert extra.weights == (0.5,) * 20
    means = [np.mean([float(f.labels["energy"]) for f in some]) for some in (frames_, extra.frames)]
    assert means[0] == pytest.approx(means[1], abs=0.5)  # not 28 eV apart
    chosen = load_config(None, SMALL)
    alone = train(labels, tmp_path / "alone", chosen)
    more = train(labels, tmp_path / "more", chosen, sources=Sources(others=((others, 0.5),)))
    assert alone["n_frames"] == more["n_frames"]  # of the labels only
    assert alone["forces_mae_meV_per_A"] != more["forces_mae_meV_per_A"]
    assert read_config(tmp_path / "more" / "student")["about"]["n_other_labels"] == 20
    with pytest.raises(ConfigError, match="other inputs"):
        train(labels, tmp_path / "more", chosen)


@pytest.mark.parametrize("source", ["probes", "others"])
def test_corrected_labels_of_sources_are_other_sources(labels, tmp_path, source):
    def sources(name: str, shift: float) -> Sources:
        pairs = probes(emt(3), 3, seed=3)
        made = dataset(tmp_path / name, [atoms for pair in pairs for atoms in pair], shift)
        return Sources(probes=made) if source == "probes" else Sources(others=((made, 1.0),))

    one, other = sources("one", 0.0), sources("other", 0.0)
    assert one.inputs() == other.inputs()
    records = list(Dataset(tmp_path / "one").iterate())
    records[0] = replace(records[0], labels=dict(records[0].labels, energy=np.array(1.0)))
    with DatasetWriter(tmp_path / "corrected", {"teacher": None}) as writer:
        writer.append(records)
    path = tmp_path / "corrected"
    changed = Sources(probes=path) if source == "probes" else Sources(others=((path, 1.0),))
    differ = {name for name, value in one.inputs().items() if changed.inputs()[name] != value}
    assert differ == {"probe_values" if source == "probes" else "other_0_values"}


def test_an_element_in_one_group_only_trains(tmp_path):
    structures = emt(30)
    structures[7].symbols[0] = "Au"
    made = Dataset(dataset(tmp_path / "labels", structures))
    for seed in range(40):
        split = split_labels(made, load_config(None, [*SMALL, f"seed={seed}"]))
        assert 7 in split.train
        assert len(split.validation)
        assert len(split.test)


def test_a_single_trajectory_is_cut_into_blocks_of_time(tmp_path):
    dataset(tmp_path / "many", emt(40))
    records = [replace(own, group=0) for own in Dataset(tmp_path / "many").iterate()]
    with DatasetWriter(tmp_path / "one", {"teacher": None}) as writer:
        writer.append(records)
    made = Dataset(tmp_path / "one")
    with pytest.warns(UserWarning, match="40 labels are of 1 groups of kin, which were cut"):
        split = split_labels(made, load_config(None, SMALL))
    for part in (split.validation, split.test):
        assert len(part) == 4
        assert np.ptp(part) == 3  # in one piece
    assert len(split.train) == 32


@pytest.mark.filterwarnings("ignore:.*which were cut into blocks")
@pytest.mark.parametrize("n_systems", [2, 3])
def test_systems_of_different_elements_are_cut_into_blocks(tmp_path, n_systems):
    structures = emt(30)
    for k, atoms in enumerate(structures):
        atoms.symbols[:] = ("Cu", "Au", "Al")[k % n_systems]
    dataset(tmp_path / "many", structures)
    records = [
        replace(own, group=k % n_systems)
        for k, own in enumerate(Dataset(tmp_path / "many").iterate())
    ]
    with DatasetWriter(tmp_path / "few", {"teacher": None}) as writer:
        writer.append(records)
    split = split_labels(Dataset(tmp_path / "few"), load_config(None, SMALL))
    assert {k % n_systems for k in split.train.tolist()} == set(range(n_systems))
    assert len(split.validation)
    assert len(split.test)


def test_labels_that_look_wrong_or_are_tested_in_training_are_warned_of(tmp_path):
    structures = emt(30)
    dataset(tmp_path / "labels", structures)
    records = list(Dataset(tmp_path / "labels").iterate())
    turned = bulk("Cu", cubic=True)
    for k, record in enumerate(records[15:]):  # the same, turned, and the first with a wrong energy
        turned = records[k].atoms.copy()
        turned.rotate(90, "z", rotate_cell=True)
        labels = dict(record.labels, energy=records[k].labels["energy"] + 1e3 * (k == 0))
        labels["forces"] = records[k].labels["forces"] * 0
        records[15 + k] = replace(record, atoms=turned, labels=labels)
    with DatasetWriter(tmp_path / "twice", {"teacher": None}) as writer:
        writer.append(records)
    made = Dataset(tmp_path / "twice")
    split = split_labels(made, load_config(None, SMALL))
    with (
        pytest.warns(UserWarning, match=r"look wrong \(outlier: 1 of 30\); first record 15"),
        pytest.warns(UserWarning, match="are trained on too, up to rotation"),
    ):
        warn_of_labels(made, split)


def test_an_earlier_student_goes_on_with_repulsion_from_elsewhere(labels, tmp_path):
    train(labels, tmp_path / "first", load_config(None, SMALL))
    start = tmp_path / "first" / "student"
    chosen = load_config(None, [*SMALL, "repulsion_A.Cu-Cu=2.2"])
    train(labels, tmp_path / "more", chosen, init=start)
    before, after = (load_student(folder) for folder in (start, tmp_path / "more" / "student"))
    assert after.zbl[0][0][:2] == (1.1, 2.2)
    assert before.zbl[0][0][1] != 2.2


def test_probes_train_but_not_around_structures_that_test(labels, tmp_path):
    own = Dataset(labels)
    records = own.records(np.arange(len(own)))
    pairs = list(probes([record.atoms for record in records], 30, seed=3))
    made = dataset(tmp_path / "probes", [atoms for pair in pairs for atoms in pair])
    chosen = load_config(None, SMALL)
    split = split_labels(own, chosen)
    train(labels, tmp_path / "run", chosen, sources=Sources(probes=made))
    about = read_config(tmp_path / "run" / "student")["about"]
    assert about["n_probes"] == 30 - len(split.validation) - len(split.test)
    with pytest.raises(DatasetError, match="holds no probes"):
        train(labels, tmp_path / "none", chosen, sources=Sources(probes=labels))


def test_structures_out_of_reach_only_train(labels, tmp_path):
    records = list(Dataset(labels).iterate())
    origin = {"source": "student", "seed": 0, "temperature_K": 1e4}
    chosen = load_config(None, SMALL)
    before = split_labels(Dataset(labels), chosen)
    alone, part_of = int(before.test[0]), before.validation.tolist()

    def above(record: Record, energy: float) -> Record:
        label = record.labels | {"energy": record.labels["energy"] + energy}
        return replace(record, labels=label, provenance=origin)

    moved = [above(record, 100.0 * (k == alone)) for k, record in enumerate(records)]
    with DatasetWriter(tmp_path / "one", {"teacher": None}) as writer:
        writer.append(moved)
    split = split_labels(Dataset(tmp_path / "one"), chosen)
    assert alone in split.train  # a group of its own
    assert len(np.concatenate([split.train, split.validation, split.test])) == len(records)
    every = split_labels(Dataset(tmp_path / "one"), replace(chosen, held_out="all"))
    assert every.test.tolist() == before.test.tolist()
    kin = {k: records[part_of[0]].group for k in part_of}
    kin |= {int(k): records[before.train[0]].group for k in before.train[:5]}  # the largest trains
    joined = [
        replace(above(own, 100.0 * (k == part_of[0])), group=kin.get(k, own.group))
        for k, own in enumerate(records)
    ]
    with DatasetWriter(tmp_path / "joined", {"teacher": None}) as writer:
        writer.append(joined)
    for seed in range(20):
        split = split_labels(
            Dataset(tmp_path / "joined"), load_config(None, [*SMALL, f"seed={seed}"])
        )
        held_out = np.concatenate([split.validation, split.test])
        assert part_of[0] not in held_out
        if part_of[1] in held_out:
            break
    else:
        raise AssertionError("no seed held the group out")
    assert part_of[0] not in split.train  # its kin are held out


def test_labels_in_dispute_only_test(labels, tmp_path):
    chosen = load_config(None, [*SMALL, "max_disagreement_eV_per_A=2"])
    whole = split_labels(Dataset(labels), chosen)  # of a teacher without a committee
    parts = whole.train, whole.validation, whole.test
    assert sorted(np.concatenate(parts)) == list(range(30))
    disputed = {int(part[1]): 2.1 for part in parts}
    own = Dataset(dataset(tmp_path / "labels", emt(30), spreads=disputed | {int(parts[0][0]): 1.9}))
    assert own.disagreement.max() == pytest.approx(2.1)
    split = split_labels(own, chosen)
    assert split.train.tolist() == np.delete(parts[0], 1).tolist()
    assert split.validation.tolist() == np.delete(parts[1], 1).tolist()
    assert split.test.tolist() == parts[2].tolist()
    with pytest.raises(DatasetError, match="agrees on too few structures"):
        split_labels(own, load_config(None, [*SMALL, "max_disagreement_eV_per_A=0.05"]))


def test_killed_in_mid_epoch_the_command_ends_with_the_same_bits(labels, tmp_path, start):
    words = [*SMALL, "training.updates=200", "training.validations=5", "training.md_checks=0"]
    for name in ("straight", "killed"):
        command = ["train", labels, "--out", tmp_path / name, *words]
        if name == "killed":
            process = start(alone, *command)
            checkpoint = tmp_path / name / "checkpoint.safetensors"
            while process.is_alive() and not checkpoint.exists():
                time.sleep(0.005)
            process.kill()
            process.join()
            assert process.exitcode == -9
            assert not (tmp_path / name / "student").exists()
            with safe_open(checkpoint, framework="np") as stream:
                place = json.loads(stream.metadata()["progress"])
            assert place["batch"] > 0
        process = start(alone, *command)
        process.join(timeout=300)
        assert process.exitcode == 0
    straight, killed = (
        tmp_path / name / "student" / "weights.safetensors" for name in ("straight", "killed")
    )
    assert straight.read_bytes() == killed.read_bytes()


@pytest.mark.slow
def test_torchrun_shares_the_work(labels, tmp_path):
    words = ["train", str(labels), *SMALL, "nep.zbl=false", "--out"]
    one = command(*words, tmp_path / "one")
    assert one.returncode == 0, one.stderr
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    shared = subprocess.run(
        [*launch, "-m", "mlff_distiller", *words, tmp_path / "two"],
        check=True,
        timeout=300,
        env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"},
        capture_output=True,
        text=True,
    )
    for out in (one.stdout, shared.stdout):
        assert out.count("held-out groups") == 1
    errors = [
        json.loads((tmp_path / name / "errors.json").read_text())["forces_mae_meV_per_A"]
        for name in ("one", "two")
    ]
    assert errors[0] == pytest.approx(errors[1], rel=1e-2)  # float32

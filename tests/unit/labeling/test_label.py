"""Labelling jobs: alone, side by side, in shards, on a cluster; killed, refused, quarantined."""

import contextlib
import gc
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk, molecule
from ase.io import write
from tests.helpers import alone, command
from tests.unit.labeling.factories import die_first

from mlff_distiller.cli.options import REFUSED
from mlff_distiller.dataset import Dataset, DatasetWriter, Record, verify
from mlff_distiller.durable import write_json
from mlff_distiller.errors import ConfigError, DatasetError, StructureError
from mlff_distiller.labeling import Cluster, Request, check_labels, label, read_structures
from mlff_distiller.labeling.structures import batches, share
from mlff_distiller.labeling.workers import cluster_workers
from mlff_distiller.teachers import load_teacher

HERE = Path(__file__).parent
EMT = Request("ase:factories:emt", "cpu")


def ten_of_copper(folder):
    (folder / "factories.py").write_text((HERE / "factories.py").read_text())
    frames = []
    for number in range(10):
        atoms = bulk("Cu", cubic=True)
        atoms.rattle(0.05, seed=number)
        frames.append(atoms)
    write(folder / "copper.xyz", frames)


@pytest.fixture
def here(tmp_path, monkeypatch):
    """A folder with ten structures of copper, and the calculators of `factories.py`."""
    ten_of_copper(tmp_path)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture(scope="module")
def labelled(tmp_path_factory):
    folder = tmp_path_factory.mktemp("labelled")
    ten_of_copper(folder)
    with contextlib.chdir(folder):
        assert label(read_structures(["copper.xyz"]), EMT, folder / "plain").n_labelled == 10
    return folder / "plain"


@pytest.fixture
def wanted(here, labelled):
    """The labels of all, one by one; they are in ``plain``."""
    shutil.copytree(labelled, here / "plain")
    return Dataset(here / "plain").label_set_hash()


def test_spread_and_shares_are_stored(tmp_path):
    """What a committee says of each atom, by way of its process and a worker, reads back."""
    pytest.importorskip("torchani")
    frames = [molecule("H2O"), molecule("CH3OH"), bulk("C", cubic=True)]
    write(tmp_path / "three.xyz", frames)
    structures = read_structures([str(tmp_path / "three.xyz")])
    label(structures, Request("ani-1x", "cpu"), tmp_path / "out", workers=1)
    with load_teacher("ani-1x", device="cpu") as teacher:
        known = teacher.label([structure.atoms for structure in structures.all])
    for record, answer in zip(Dataset(tmp_path / "out").iterate(), known, strict=True):
        assert record.labels.keys() == answer.labels.keys() > {"forces_spread", "energies"}
        spread = record.labels["forces_spread"]
        np.testing.assert_allclose(spread, answer.labels["forces_spread"], rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(record.labels["energies"], answer.labels["energies"], atol=1e-8)
        assert spread.dtype == np.float32
        assert record.labels["energies"].sum() == pytest.approx(float(record.labels["energy"]))
    assert verify(tmp_path / "out").ok


def test_labels_are_the_teachers(here, wanted):
    from ase.calculators.emt import EMT as Calculator

    for record in Dataset(here / "plain").iterate():
        record.atoms.calc = Calculator()
        energy = record.atoms.get_potential_energy()
        assert float(record.labels["energy"]) == pytest.approx(energy, abs=1e-10)
        np.testing.assert_allclose(
            record.labels["forces"], record.atoms.get_forces(), rtol=0, atol=1e-6
        )
    assert Dataset(here / "plain").metadata["inputs"]["n_structures"] == 10


def test_charges_and_moments_of_atoms_reach_the_teacher_and_are_kept(here):
    frames = [bulk("Cu", cubic=True) for _ in range(4)]
    frames[1].set_initial_charges([1, 0, 0, 0])
    frames[2].set_initial_magnetic_moments([0, 2, 0, 1])
    frames[3].set_initial_charges([0, 0, 0, 0])  # which is what the first one says
    write("ions.xyz", frames)
    found = read_structures(["ions.xyz"])
    assert found.n_repeated == 1
    label(found, Request("ase:factories:Charged", "cpu"), here / "out")
    records = list(Dataset(here / "out").iterate())
    energies = np.array([float(record.labels["energy"]) for record in records])
    assert energies - energies[0] == pytest.approx([0.0, 10.0, 3.0])
    again = read_structures([here / "out"])  # and so they reach another teacher too
    assert again.digest == found.digest


def test_the_hash_of_a_label_set_sees_labels_but_not_their_order(here, wanted):
    structures = read_structures(["copper.xyz"])
    backwards = type(structures)(structures.all[::-1], structures.digest, 0)
    label(backwards, EMT, here / "backwards")
    assert Dataset(here / "backwards").keys == Dataset(here / "plain").keys[::-1]
    assert Dataset(here / "backwards").label_set_hash() == wanted
    fewer = type(structures)(structures.all[:9], structures.digest, 0)
    label(fewer, EMT, here / "fewer")
    assert Dataset(here / "fewer").label_set_hash() != wanted


def test_two_workers_give_the_same_labels(here, wanted):
    outcome = label(read_structures(["copper.xyz"]), EMT, here / "two", workers=2)
    assert outcome.n_labelled == 10
    assert Dataset(here / "two").label_set_hash() == wanted


def test_two_workers_work_side_by_side(here):
    request = Request("ase:factories:Slow", "cpu")
    label(read_structures(["copper.xyz"]), request, here / "two", workers=2)
    assert len(list(here.glob("working.*"))) == 2


def test_shards_are_collected_by_the_last(here, wanted):
    structures = read_structures(["copper.xyz"])
    for number in (2, 3):
        outcome = label(structures, EMT, here / "parts", shard=(number, 3))
        assert (outcome.collected, outcome.n_labelled) == (False, 3)
    outcome = label(structures, EMT, here / "parts", shard=(1, 3))
    assert (outcome.collected, outcome.n_labelled) == (True, 10)
    assert not (here / "parts" / "parts").exists()
    assert Dataset(here / "parts").label_set_hash() == wanted
    for shard in ((3, 3), None):  # again: nothing is left to do
        outcome = label(structures, EMT, here / "parts", shard=shard)
        assert (outcome.n_labelled, outcome.teacher_seconds) == (10, 0.0)


def test_shards_of_another_number_are_refused(here):
    structures = read_structures(["copper.xyz"])
    label(structures, EMT, here / "parts", shard=(1, 3))
    for shard in ((1, 4), None):
        with pytest.raises(ConfigError, match=r"(?s)begun in shards.*i/3"):
            label(structures, EMT, here / "parts", shard=shard)
    (here / "half").mkdir()
    label(structures, EMT, here / "half")
    (here / "half" / "outcome.json").unlink()
    with pytest.raises(ConfigError, match="begun without shards"):
        label(structures, EMT, here / "half", shard=(1, 3))


def test_collecting_goes_on_where_it_was_killed(here, wanted, monkeypatch):
    structures = read_structures(["copper.xyz"])
    label(structures, EMT, here / "parts", shard=(1, 2))

    def dying(path, content):
        if path.parent.name == "parts":
            raise SystemExit("killed")
        write_json(path, content)

    monkeypatch.setattr("mlff_distiller.labeling.job.write_json", dying)
    with pytest.raises(SystemExit, match="killed"):
        label(structures, EMT, here / "parts", shard=(2, 2))
    assert len(Dataset(here / "parts")) == 10  # copied, but not yet said to be whole
    monkeypatch.undo()
    monkeypatch.chdir(here)
    assert label(structures, EMT, here / "parts", shard=(2, 2)).n_labelled == 10
    assert Dataset(here / "parts").label_set_hash() == wanted
    assert not (here / "parts" / "parts").exists()


@pytest.mark.parametrize(
    ("change", "shown"),
    [
        ({"teacher": "ase:factories:Choosy"}, "teacher.name: 'ase:factories:Choosy' !="),
        ({"frames": 9}, "inputs.n_structures: 9 != 10"),
    ],
)
def test_other_inputs_are_refused_with_the_difference(here, wanted, change, shown):
    structures = read_structures(["copper.xyz"])
    if "frames" in change:
        write("fewer.xyz", [item.atoms for item in structures.all[: change["frames"]]])
        structures = read_structures(["fewer.xyz"])
    request = Request(change.get("teacher", EMT.spec), "cpu")
    with pytest.raises(DatasetError, match=rf"(?s){shown}.*remedy"):
        label(structures, request, here / "plain")


def test_killed_at_every_call_that_touches_the_disk(here):
    from ase.io import read

    write("copper.xyz", read("copper.xyz", ":3"))
    done = subprocess.run(
        [sys.executable, str(HERE / "killed_label.py"), str(here)],
        capture_output=True,
        text=True,
        check=False,
        timeout=280,
    )
    assert done.returncode == 0, done.stderr
    assert int(done.stdout.split()[-2]) > 10


def test_a_teacher_killed_on_the_way_costs_nothing(here):
    """Its process dies twice; the structure in work is asked for again, and is not blamed."""
    request, killed = Request("ase:factories:Slow", "cpu"), []

    def kill(done, total, news):
        for mark in here.glob("working.*"):
            pid = int(mark.suffix[1:])
            if pid not in killed and len(killed) < 2:
                killed.append(pid)
                os.kill(pid, signal.SIGKILL)

    outcome = label(read_structures(["copper.xyz"]), request, here / "k", on_progress=kill)
    assert len(killed) == 2
    assert (outcome.n_labelled, outcome.n_failed) == (10, 0)


def test_failures_are_quarantined_named_and_asked_again_on_demand(here):
    large = bulk("Cu") * (2, 2, 2)
    lost = Atoms("Cu", [[0, 0, np.nan]])
    write("mixed.xyz", [bulk("Cu"), large])
    write("lost.traj", lost)
    request = Request("ase:factories:Choosy", "cpu")
    structures = read_structures(["mixed.xyz", "lost.traj"])
    outcome = label(structures, request, here / "mixed")
    assert (outcome.n_labelled, outcome.n_failed) == (1, 2)
    lines = (here / "mixed" / "quarantine.jsonl").read_text().splitlines()
    errors = {(row["file"], row["frame"]): row["error"] for row in map(json.loads, lines)}
    assert errors.keys() == {("mixed.xyz", 1), ("lost.traj", 0)}
    assert "a crowd" in errors["mixed.xyz", 1]
    assert "not finite" in errors["lost.traj", 0]
    (here / "cured").touch()
    assert label(structures, request, here / "mixed").n_failed == 2  # remembered
    assert label(structures, request, here / "mixed", retry_failed=True).n_failed == 1


def test_an_absurd_force_is_quarantined(here):
    write("close.xyz", [Atoms("Cu2", [[0, 0, 0], [0, 0, 0.1]])])
    outcome = label(read_structures(["close.xyz"]), EMT, here / "close")
    assert outcome.n_failed == 1
    row = json.loads((here / "close" / "quarantine.jsonl").read_text())
    assert row["error"].startswith("a force of ")


def test_repeated_structures_are_labelled_once(here):
    structures = read_structures(["copper.xyz", "copper.xyz"])
    assert (len(structures.all), structures.n_repeated) == (10, 10)


def test_a_dataset_can_be_labelled_by_another_teacher(here, wanted):
    structures = read_structures([here / "plain"])
    assert structures.digest == read_structures(["copper.xyz"]).digest
    label(structures, Request("ase:factories:Choosy", "cpu"), here / "again")
    old, new = (
        Dataset(here / name).read(range(10)).labels["energy"] for name in ("plain", "again")
    )
    np.testing.assert_array_equal(old, new)


def test_kin_stay_together(tmp_path):
    frames = []
    for seed, branch in ((0, 1), (0, 1), (0, 2), (1, 1)):
        atoms = bulk("Cu") * (len(frames) + 1, 1, 1)
        atoms.info.update(seed=seed, branch=branch, charge=1)
        frames.append(atoms)
    write(tmp_path / "tree.xyz", frames)
    write(tmp_path / "plain.xyz", [bulk("Al"), bulk("Ag")])
    origins = [
        (item.origin["seed"], item.origin["branch"])
        for item in read_structures([tmp_path / "tree.xyz", tmp_path / "plain.xyz"]).all
    ]
    assert len(set(origins)) == 5
    assert origins[0] == origins[1]
    assert read_structures([tmp_path / "tree.xyz"]).all[0].atoms.info == {"charge": 1}


def test_what_cannot_be_read_is_named(tmp_path):
    (tmp_path / "a.xyz").write_text("no structure")
    with pytest.raises(StructureError, match=r"a\.xyz"):
        read_structures([tmp_path / "a.xyz"])
    with pytest.raises(StructureError, match="no structures"):
        read_structures([])


def test_batches_are_cut_from_the_list_alone(tmp_path):
    write(tmp_path / "a.xyz", [bulk("Cu") * (k, 1, 1) for k in (1, 2, 3, 9, 1)])
    structures = read_structures([tmp_path / "a.xyz"]).all
    assert [[len(s.atoms) for s in batch] for batch in batches(structures, 4)] == [
        [1, 2],
        [3],
        [9],
    ]
    assert [len(batch) for batch in batches(structures, 0)] == [1, 1, 1, 1]
    assert [s for n in (1, 2, 3) for s in share(structures, (n, 3))] == [
        structures[k] for k in (0, 3, 1, 2)
    ]


def test_shards_of_nodes_that_batch_otherwise_are_still_whole(here):
    """What a shard is asked for depends on the list alone, not on how much its node takes."""
    pytest.importorskip("torchani")
    frames = [molecule("C2H6") for _ in range(9)]
    for number, atoms in enumerate(frames):
        atoms.rattle(0.3, seed=number)
    write("ethane.xyz", frames)
    structures = read_structures(["ethane.xyz"])
    for number, batch_size in ((1, 1), (2, 100_000)):
        request = Request("ani-1x", "cpu", batch_size=batch_size)
        outcome = label(structures, request, here / "labels", shard=(number, 2))
    assert (outcome.collected, outcome.n_structures, outcome.n_labelled) == (True, 9, 9)


def test_shards_of_different_teachers_or_inputs_are_refused(here):
    structures = read_structures(["copper.xyz"])
    label(structures, EMT, here / "parts", shard=(1, 2))
    with pytest.raises(DatasetError, match=r"(?s)parts.*now != then.*Slow"):
        label(structures, Request("ase:factories:Slow", "cpu"), here / "parts", shard=(2, 2))
    fewer = type(structures)(structures.all[:9], "0" * 64, 0)
    with pytest.raises(DatasetError, match=r"(?s)now != then.*structures_sha256"):
        label(fewer, EMT, here / "parts", shard=(2, 2))
    assert label(structures, EMT, here / "parts", shard=(2, 2)).n_labelled == 10


def test_frames_of_a_trajectory_are_kin_and_checked_as_one(here):
    frames = [bulk("Cu", cubic=True)]
    for number in range(19):
        frames.append(frames[-1].copy())
        frames[-1].rattle(0.02, seed=number)
    write("walk.xyz", frames)
    outcome = label(
        read_structures(["walk.xyz"]), Request("ase:factories:Triple", "cpu"), here / "w"
    )
    assert outcome.n_labelled == 20
    labels = Dataset(here / "w")
    assert len(set(labels.groups.tolist())) == 1
    assert {finding.check for finding in check_labels(labels)} == {"energy and forces"}
    again = read_structures([here / "w"])
    assert len({structure.origin["seed"] for structure in again.all}) == 1


def test_groups_of_an_imported_dataset_are_kept(tmp_path):
    frames = []
    for number in range(4):
        atoms = bulk("Cu", cubic=True) if number % 2 else bulk("Al", cubic=True)
        atoms.rattle(0.5, seed=number)
        frames.append(Record(atoms, {"energy": 0.0, "forces": np.zeros((4, 3))}, f"{number:064x}",
                             number % 2, {"file": "a", "frame": number}))  # fmt: skip
    with DatasetWriter(tmp_path / "set", {}) as writer:
        writer.append(frames)
    seeds = [structure.origin["seed"] for structure in read_structures([tmp_path / "set"]).all]
    assert seeds[0] == seeds[2] != seeds[1] == seeds[3]


def test_a_charge_that_is_none_is_quarantined_alone(here):
    frames = [bulk("Cu"), bulk("Al")]
    frames[0].info["charge"] = "abc"
    write("two.xyz", frames)
    outcome = label(read_structures(["two.xyz"]), EMT, here / "labels")
    assert (outcome.n_labelled, outcome.n_failed) == (1, 1)
    assert "charge" in (here / "labels" / "quarantine.jsonl").read_text()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupt_keeps_what_is_in_work(here, start, number):
    words = ["label", "copper.xyz", "--out", "labels", "--teacher", "ase:factories:Slow"]
    process = start(alone, *words, "--device", "cpu")
    while len(list(here.glob("labels/*.h5"))) < 2:
        time.sleep(0.01)
        assert process.is_alive()
    os.kill(process.pid, number)
    process.join(timeout=60)
    assert process.exitcode == 128 + number
    n = len(Dataset(here / "labels"))
    assert 2 <= n < 10
    assert verify(here / "labels").ok
    done = command(*words)
    assert done.returncode == 0, done.stderr
    assert "10 of 10 labelled" in done.stdout


def _committed(folder):
    return (folder / "manifest.json").exists() and len(Dataset(folder))


@pytest.mark.parametrize("signals", [[signal.SIGTERM], [signal.SIGINT, signal.SIGINT]])
def test_a_teacher_that_hangs_keeps_nobody_from_ending(here, start, signals):
    write("mixed.xyz", [bulk("Cu"), bulk("Cu") * (2, 2, 2)])
    words = ["label", "mixed.xyz", "--out", "labels", "--teacher", "ase:factories:Hanging"]
    process = start(alone, *words, "--device", "cpu")
    while not (here / "hanging").exists() or not _committed(here / "labels"):
        time.sleep(0.05)
        assert process.is_alive()
    for number in signals:
        os.kill(process.pid, number)
        time.sleep(1.0)
    process.join(timeout=60)
    assert process.exitcode == 128 + signals[0]
    assert len(Dataset(here / "labels")) == 1
    done = command(*words, "--teacher-timeout", "5", "--max-failed", "1")
    assert done.returncode == 0, done.stderr
    assert "1 of 2 labelled" in done.stdout
    assert "1 times: teacher 'ase:factories:Hanging': no answer within 5 s" in done.stdout


def test_a_teacher_that_gives_up_leaves_what_it_had_answered(here, monkeypatch):
    monkeypatch.setattr("mlff_distiller.teachers.session._PATIENCE", 2)
    large = [bulk("Cu", a=3.5 + 0.1 * k) * (2, 2, 2) for k in range(3)]
    write("mixed.xyz", [bulk("Cu"), *large, bulk("Cu", a=4.0)])
    words = ("label", "mixed.xyz", "--teacher", "ase:factories:Choosy", "--out", "labels")
    refused = command(*words)
    assert refused.returncode == 1
    assert "failed again and again" in refused.stderr
    assert "more than four are a crowd" in refused.stderr
    assert len(Dataset(here / "labels")) == 1
    done = command(*words, "--max-failed", "1")
    assert "2 of 5 labelled" in done.stdout
    assert "3 times: " in done.stdout


def test_why_a_seed_was_refused_is_said(here):
    write("two.xyz", bulk("Cu") * (2, 2, 2))
    for _ in range(2):  # the second time its failure is known
        done = command(
            "distill", "two.xyz", "--teacher", "ase:factories:Choosy", "--out", "run", "labels=10"
        )
        assert done.returncode == 1
        assert "gave no label for seed structure 0" in done.stderr
        assert "more than four are a crowd" in done.stderr


def test_the_command(here):
    words = ("copper.xyz", "--teacher", "ase:factories:emt", "--device", "cpu")
    for number in ("1/2", "2/2"):
        done = command("label", *words, "--out", "labels", "--shard", number)
        assert done.returncode == 0, done.stderr
    assert "10 of 10 labelled in labels" in done.stdout
    assert json.loads((here / "labels" / "findings.json").read_text()) == []
    refused = command("label", *words, "--out", "x", "--shard", "3/2")
    assert (refused.returncode, "i/n with i from 1 to n" in refused.stderr) == (1, True)
    (here / "cluster.yaml").write_text("scheduler: abacus\n")
    refused = command("label", *words, "--out", "x", "--cluster", "cluster.yaml")
    assert refused.returncode == 1
    assert "abacus" in refused.stderr
    (here / "cluster.yaml").write_text("queue: fast\n")
    refused = command("label", *words, "--out", "x", "--cluster", "cluster.yaml")
    assert "does not describe a cluster" in refused.stderr


def test_too_many_failures_are_no_success(here):
    write("mixed.xyz", [bulk("Cu"), bulk("Cu") * (2, 2, 2)])
    words = ("mixed.xyz", "--teacher", "ase:factories:Choosy", "--out", "labels")
    failed = command("label", *words)
    assert (failed.returncode, "1 failed" in failed.stdout) == (REFUSED, True)
    assert command("label", *words, "--max-failed", "0.5").returncode == 0


def test_cluster_jobs_give_the_same_labels_and_lost_ones_are_replaced(here, wanted):
    pytest.importorskip("distributed")
    pytest.importorskip("cryptography")
    jobs = Cluster("local", 2)
    outcome = label(read_structures(["copper.xyz"]), EMT, here / "jobs", cluster=jobs)
    assert outcome.n_labelled == 10
    assert Dataset(here / "jobs").label_set_hash() == wanted
    with cluster_workers(Cluster("local", 1), here / "cluster") as pool:
        own = Path("own.pid")
        futures = [pool.submit(die_first, str(here / own), number) for number in range(4)]
        assert [future.result(timeout=60) for future in futures] == [0, 1, 2, 3]
        assert own.exists()


def test_a_batch_scheduler_starts_the_workers(here, wanted, monkeypatch):
    """What ``sbatch`` would run on a node runs here: all but the scheduler is the real thing."""
    pytest.importorskip("dask_jobqueue")
    pytest.importorskip("cryptography")
    tools = here / "tools"
    tools.mkdir()
    (tools / "sbatch").write_text(
        '#!/bin/bash\nid=$$\ncp "$1" job.$id.sh\n'
        "setsid bash job.$id.sh > job.$id.log 2>&1 < /dev/null &\necho $! > job.$id.pid\n"
        'echo "Submitted batch job $id"\n'
    )
    (tools / "scancel").write_text(
        '#!/bin/bash\nfor id in "$@"; do kill -- -$(cat job.$id.pid); done\n'
    )
    for tool in tools.iterdir():
        tool.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tools}:{os.environ['PATH']}")
    jobs = Cluster("slurm", 1, {"memory": "2GB", "queue": "long queue; touch hacked"})
    outcome = label(read_structures(["copper.xyz"]), EMT, here / "jobs", cluster=jobs)
    assert outcome.n_labelled == 10
    assert Dataset(here / "jobs").label_set_hash() == wanted
    [script] = here.glob("job.*.sh")
    assert "#SBATCH -p long queue; touch hacked" in script.read_text()
    assert not (here / "hacked").exists()


def test_a_cluster_must_be_described():
    with pytest.raises(ConfigError, match=r"(?s)slurm.*abacus"):
        Cluster("abacus", 1)
    with pytest.raises(ConfigError, match="needs workers"):
        Cluster("slurm", 0)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_options_the_scheduler_does_not_know_are_refused(tmp_path):
    pytest.importorskip("dask_jobqueue")
    jobs = Cluster("slurm", 1, {"memory": "2GB", "colour": "red"})
    with (
        pytest.raises(ConfigError, match=r"(?s)options are not slurm's.*SLURMCluster"),
        cluster_workers(jobs, tmp_path),
    ):
        pass
    gc.collect()  # dask cannot end what it only began, and says so here rather than in a later test

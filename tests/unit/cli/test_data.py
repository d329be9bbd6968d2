"""The commands of ``data``, as a user runs them."""

import json
from dataclasses import replace

import numpy as np
import pytest
from ase.build import bulk
from ase.calculators.emt import EMT
from ase.io import read, write
from tests.unit.reports.pages import Page, assert_safe
from typer.testing import CliRunner

from mlff_distiller.cli.main import app
from mlff_distiller.cli.options import REFUSED
from mlff_distiller.dataset import Dataset, DatasetWriter
from mlff_distiller.errors import ConfigError, DatasetError


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Thirty structures of copper and gold, imported."""
    folder = tmp_path_factory.mktemp("data")
    frames = []
    for number in range(30):
        atoms = bulk("Cu", cubic=True)
        atoms.symbols[0] = "Au" if number % 3 else "Cu"
        atoms.rattle(0.2, seed=number)
        atoms.calc = EMT()
        atoms.get_potential_energy()
        frames.append(atoms)
    write(folder / "emt.traj", frames)
    assert run("import", folder / "emt.traj", "--out", folder / "labels").exit_code == 0
    return folder


def run(*words):
    return CliRunner().invoke(app, ["data", *map(str, words)], catch_exceptions=False)


def test_info_and_verify(folder):
    facts = json.loads(run("info", folder / "labels", "--json").output)
    assert (facts["n_labels"], facts["teacher"]) == (30, "imported")
    assert facts["label_set_hash"] == Dataset(folder / "labels").label_set_hash()
    assert "30 records read, 0 problems" in run("verify", folder / "labels").output


@pytest.mark.parametrize("format", ["extxyz", "nep", "deepmd"])
def test_out_and_in_again(folder, tmp_path, format):
    out = tmp_path / ("train.xyz" if format != "deepmd" else "train")
    assert "30 frames" in run("export", folder / "labels", "--out", out, "--format", format).output
    told = {
        "extxyz": ["--stress-unit", "eV/angstrom^3", "--stress-sign", "tension"],
        "nep": ["--format", "nep"],
        "deepmd": [],
    }[format]
    done = run("import", out, "--out", tmp_path / "back", *told)
    assert "30 of 30 frames imported" in done.output, done.output
    names = ("energy", "forces", "stress", *(["energies"] if format == "extxyz" else []))
    for name in names:
        a, b = (
            np.sort(Dataset(path).read(range(30)).labels[name].double().numpy().ravel())
            for path in (folder / "labels", tmp_path / "back")
        )
        np.testing.assert_allclose(a, b, rtol=0, atol=1e-12)
    lost = Dataset(tmp_path / "back").read(range(30)).labels["energies"].isnan()
    assert lost.all() if format != "extxyz" else not lost.any()


def test_an_import_says_how_often_and_why_frames_were_rejected(tmp_path):
    atoms = bulk("Cu")
    atoms.info["U0"] = 1.0
    write(tmp_path / "a.xyz", [atoms] * 3)
    done = run("import", tmp_path / "a.xyz", "--out", tmp_path / "labels")
    assert done.exit_code == REFUSED
    assert "3 rejected: no energy; --energy-key names it if it is one of U0" in done.output


def test_split_has_no_overlap(folder, tmp_path):
    done = run("split", folder / "labels", "--out", tmp_path / "parts", "--test", "0.2")
    assert (done.exit_code, "warning" in done.output) == (0, False)
    parts = [Dataset(tmp_path / "parts" / name) for name in ("train", "validation", "test")]
    assert [len(part) for part in parts] == [21, 3, 6]
    assert sorted(key for part in parts for key in part.keys) == sorted(
        Dataset(folder / "labels").keys
    )


@pytest.mark.parametrize("name", ["--validation", "--test"])
def test_no_part_of_a_split_is_empty_and_the_help_says_so(folder, tmp_path, name):
    told = " ".join(run("split", "--help").output.replace("│", " ").split())
    assert told.count("more than 0") == 2
    assert "<=x<=" not in told
    for share in (0, 0.95, -0.1):
        with pytest.raises(DatasetError, match=r"(?s)all positive, with sum 1"):
            run("split", folder / "labels", "--out", tmp_path / "parts", name, share)
    assert not (tmp_path / "parts").exists()


def test_leakage_is_found_by_content(folder, tmp_path):
    """The same structures, turned and renumbered: other hashes, but no other physics."""
    frames = read(folder / "emt.traj", ":12")
    turned = []
    for atoms in frames:
        other = atoms.copy()[::-1]
        other.rotate(31, "x", rotate_cell=True)
        other.calc = EMT()
        other.get_potential_energy()
        turned.append(other)
    write(tmp_path / "turned.traj", turned)
    run("import", tmp_path / "turned.traj", "--out", tmp_path / "turned")
    assert not set(Dataset(tmp_path / "turned").keys) & set(Dataset(folder / "labels").keys)
    done = run("compare", folder / "labels", tmp_path / "turned", "--json")
    assert done.exit_code == REFUSED
    assert json.loads(done.output)["pairs"] == [[k, k] for k in range(12)]
    assert run("compare", folder / "labels").exit_code == 0
    both = run("merge", folder / "labels", tmp_path / "turned", "--out", tmp_path / "both")
    assert "42 labels" in both.output
    assert run("compare", tmp_path / "both").exit_code == REFUSED
    assert len(set(Dataset(tmp_path / "both").groups.tolist())) == 42
    split = run("split", tmp_path / "both", "--out", tmp_path / "s", "--test", "0.4")
    assert "warning" in split.output


def test_merging_keeps_labels_once_and_teachers_apart(folder, tmp_path):
    run("import", folder / "emt.traj", "--out", tmp_path / "pbe", "--level", "PBE")
    done = run("merge", folder / "labels", folder / "labels", "--out", tmp_path / "same")
    assert "30 labels" in done.output
    assert "30 repeated" in done.output
    with pytest.raises(ConfigError, match=r"(?s)different teachers.*--allow-mixed"):
        run("merge", folder / "labels", tmp_path / "pbe", "--out", tmp_path / "mixed")
    words = ("merge", folder / "labels", tmp_path / "pbe", "--out", tmp_path / "mixed")
    assert "60 labels" in run(*words, "--allow-mixed").output
    with pytest.raises(ConfigError, match="exists"):
        run(*words, "--allow-mixed")


def test_merging_keeps_labels_that_one_of_two_has(folder, tmp_path):
    records = list(Dataset(folder / "labels").iterate(range(4)))
    for name, part in (("with", records[:2]), ("without", records[2:])):
        with DatasetWriter(tmp_path / name, {"teacher": "one"}) as writer:
            for record in part:
                labels = dict(record.labels)
                if name == "with":
                    labels["forces_spread"] = np.arange(4.0)
                else:
                    del labels["energies"]
                writer.append([replace(record, labels=labels)])
    parts = [tmp_path / "without", tmp_path / "with"]
    assert "4 labels" in run("merge", *parts, "--out", tmp_path / "both").output
    assert "4 records read, 0 problems" in run("verify", tmp_path / "both").output
    merged = {record.key: record.labels for record in Dataset(tmp_path / "both").iterate()}
    for number, record in enumerate(records):
        labels = merged[record.key]
        assert ("energies" in labels) == ("forces_spread" in labels) == (number < 2)
        assert number > 1 or labels["forces_spread"].tolist() == [0.0, 1.0, 2.0, 3.0]
    assert run("compare", *parts).exit_code == 0


def test_select_keeps_the_extremes(folder, tmp_path):
    done = run("select", folder / "labels", "-n", 5, "--out", tmp_path / "few")
    assert "5 labels" in done.output
    few = Dataset(tmp_path / "few")
    assert len(few) == 5
    compositions = {record.atoms.get_chemical_formula() for record in few.iterate()}
    assert compositions == {"Cu4", "AuCu3"}


def test_stats(folder, tmp_path):
    page = tmp_path / "labels.html"
    done = run("stats", folder / "labels", "--html", page)
    assert "elements" in done.output
    assert "Au 20" in done.output
    facts = json.loads(run("stats", folder / "labels", "--json").output)
    assert facts["records"] == 30
    assert facts["elements"] == {"Cu": 100, "Au": 20}
    assert 1.2 < facts["shortest distance, Å"]["least"] < 2.6
    shown = Page(page.read_text("utf-8"))
    assert_safe(shown)
    for title in ("Elements", "Forces", "Shortest distances", "Coverage"):
        assert title in shown.visible
    assert "30 records with 120 atoms" in shown.text
    assert str(facts["shortest distance, Å"]["least"]) in dict(shown.data)

"""An architecture that another distribution registers is a student like ours."""

import subprocess
import sys
from importlib.metadata import entry_points
from pathlib import Path

import numpy as np
import pytest
from ase.build import bulk
from tests.helpers import command, rattled, structures
from tests.unit.students.third_party import Morse
from tests.unit.workflows.test_train import dataset, emt

from mlff_distiller.dataset import Dataset
from mlff_distiller.deploy import StudentCalculator
from mlff_distiller.errors import ConfigError, StudentError
from mlff_distiller.students import load_student, read_config
from mlff_distiller.students.registry import (
    ENTRY_POINTS,
    architecture_names,
    architecture_of,
    architectures,
)
from mlff_distiller.testing import LAWS, assert_laws, assert_smooth_at_cutoff
from mlff_distiller.validation.accuracy import student_errors
from mlff_distiller.workflows.config import Config, load_config, to_plain
from mlff_distiller.workflows.folder import fix_inputs
from mlff_distiller.workflows.train import train
from mlff_distiller.workflows.tune import TuneSettings, fastest, tune
from mlff_distiller.workflows.tune.trial import Bench

WORDS = [
    "training.updates=60",
    "training.validations=3",
    "training.md_checks=1",
    "training.md_steps=10",
    "morse.cutoff_A=4.5",
    "device=cpu",
]


def register(folder: Path, monkeypatch: pytest.MonkeyPatch, **modules: str) -> None:
    """As pip would leave them: metadata of a distribution on the path."""
    info = folder / "others-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: others\nVersion: 1.0\n")
    lines = [f"{name} = {module}\n" for name, module in modules.items()]
    (info / "entry_points.txt").write_text(f"[{ENTRY_POINTS}]\n{''.join(lines)}")
    monkeypatch.syspath_prepend(str(folder))
    assert len(entry_points(group=ENTRY_POINTS)) == len(modules)


@pytest.fixture
def morse(tmp_path_factory, monkeypatch):
    register(tmp_path_factory.mktemp("site"), monkeypatch, morse="tests.unit.students.third_party")


@pytest.fixture(scope="module")
def labels(tmp_path_factory) -> Path:
    return dataset(tmp_path_factory.mktemp("labels") / "labels", emt(20))


@pytest.mark.usefixtures("morse")
def test_it_is_listed():
    assert architecture_names() == tuple(architectures()) == ("nep", "painn", "morse")
    assert architecture_of("morse-5").read_name("morse-5") == {"terms": 5}
    done = command("students")
    assert "morse-1, morse-long" in done.stdout
    assert "pairs of atoms alone" in " ".join(done.stdout.split())


def test_help_names_it_without_torch(tmp_path, monkeypatch):
    register(tmp_path, monkeypatch, morse="a_module_that_nobody_imports")
    source = str(Path(sys.modules["mlff_distiller"].__file__).parents[1])
    code = (
        f"import sys; sys.path[:0] = [{source!r}, {str(tmp_path)!r}]; sys.argv = ['x', 'train', "
        "'--help']\nfrom mlff_distiller import cli\ntry: cli.main()\nexcept SystemExit: pass\n"
        "print(sorted({'torch', 'ase'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert "nep, painn, morse" in " ".join(done.stdout.replace("│", " ").split())
    assert done.stdout.splitlines()[-1] == "[]"


@pytest.mark.usefixtures("morse")
def test_its_settings_are_a_section_of_the_configuration(tmp_path):
    file = tmp_path / "c.yaml"
    file.write_text("student: morse-3\nmorse: {cutoff_A: 4.5}\nnep: {neurons: 20}\n")
    config = load_config(file)
    assert config.architectures["morse"].cutoff_A == 4.5
    assert to_plain(config)["morse"] == {"cutoff_A": 4.5, "terms": 2, "zbl": True}
    assert to_plain(config)["nep"]["neurons"] == 20
    for word, complaint in (
        ("morse.cutof=4", "morse.cutof: there is no such setting"),
        ("morse.cutoff_A=99", "morse.cutoff_A: .* at most 12 .found 99."),
        ("student=morse-9", "student: terms: .* at most 8"),
        ("student=morse-x", "there is no student 'morse-x'"),
    ):
        with pytest.raises(ConfigError, match=complaint):
            load_config(file, [word])


def test_without_its_distribution_there_is_no_such_setting():
    with pytest.raises(ConfigError, match="morse: there is no such setting"):
        load_config(None, ["morse.cutoff_A=4.5"])
    with pytest.raises(ConfigError, match="there is no student 'morse'"):
        load_config(None, student="morse")


@pytest.mark.usefixtures("morse")
def test_it_trains_is_saved_obeys_the_laws_and_runs(labels, tmp_path):
    config = load_config(None, WORDS, student="morse-2")
    frames = Dataset(labels).read(np.arange(20)).systems()
    before = student_errors(config.new_student(frames), frames)["forces_mae_meV_per_A"]
    errors = train(labels, tmp_path, config)
    assert errors["forces_mae_meV_per_A"] < 0.7 * before
    student = load_student(tmp_path / "student")
    assert isinstance(student, Morse)
    assert (student.terms, student.cutoff) == (2, 4.5)
    assert student.repulsion is not None
    assert read_config(tmp_path / "student")["exports"] == {}
    calculator = StudentCalculator(tmp_path / "student", device="cpu", dtype="float64")
    assert_laws(calculator, rattled(bulk("Cu", cubic=True)))
    assert_smooth_at_cutoff(student.double(), calculator, ("Cu", "Cu"))
    assert train(labels, tmp_path, config) == errors


def test_without_its_distribution_the_student_is_of_an_unknown_architecture(
    labels, tmp_path, monkeypatch
):
    with monkeypatch.context() as installed:
        register(tmp_path, installed, morse="tests.unit.students.third_party")
        train(labels, tmp_path / "run", load_config(None, WORDS, student="morse"))
    with pytest.raises(StudentError, match=r"unknown architecture(?s:.*)install the distribution"):
        load_student(tmp_path / "run" / "student")


@pytest.mark.parametrize("law", LAWS, ids=lambda law: law.__name__)
@pytest.mark.parametrize("box", structures())
def test_law(box, law):
    universal = (0.18175, 3.1998, 0.50986, 0.94229, 0.28022, 0.4029, 0.02817, 0.20162)
    zbl = [[(0.6, 1.3, *universal)] * 2] * 2
    student = Morse(("H", "O"), 4.5, 2, zbl)
    law(StudentCalculator(student, device="cpu", dtype="float64"), rattled(structures()[box]))


@pytest.mark.usefixtures("morse")
def test_it_is_tuned(labels, tmp_path, monkeypatch):
    def by_size(self, student, *, trained):
        return sum(parameter.numel() for parameter in student.parameters()) * student.cutoff

    monkeypatch.setattr(Bench, "ms_per_step", by_size)
    words = [*(word for word in WORDS if "cutoff" not in word), "training.updates=20"]
    words += ["training.validations=1", "training.md_checks=0"]
    settings = TuneSettings(trials=4, trial_fraction=0.5, architectures=("morse",))
    found = tune(labels, tmp_path / "tuned", load_config(None, words), settings)
    tried = [row["settings"] for row in found["trials"]]
    assert [own["student"] for own in tried[:2]] == ["morse-1", "morse-3"]
    assert [own["morse.cutoff_A"] for own in tried[:2]] == [5.0, 5.0]
    assert len({own["morse.cutoff_A"] for own in tried}) > 1
    assert all(own["student"].startswith("morse-") for own in tried)
    assert all(4.0 <= own["morse.cutoff_A"] <= 6.0 for own in tried)
    student = load_student(tmp_path / "tuned" / "student")
    chosen = tried[found["best"]]
    assert (f"morse-{student.terms}", student.cutoff) == (
        chosen["student"],
        chosen["morse.cutoff_A"],
    )
    assert "morse" in (tmp_path / "tuned" / "front.html").read_text(encoding="utf-8")
    among = ("morse",)
    found = fastest(labels, tmp_path / "fast", load_config(None, words), 0.01, architectures=among)
    assert [row["preset"] for row in found["presets"]] == ["morse-1", "morse-long"]
    with pytest.raises(ValueError, match="expected one of nep, painn, morse"):
        TuneSettings(architectures=("morse", "mrs"))


def test_a_run_from_before_it_was_installed_continues(tmp_path, monkeypatch):
    fix_inputs(tmp_path, Config(), {"labels": "x"})
    (tmp_path / "checkpoint.safetensors").touch()
    register(tmp_path, monkeypatch, morse="tests.unit.students.third_party")
    fix_inputs(tmp_path, Config(), {"labels": "x"})
    with pytest.raises(ConfigError, match=r"config.morse.terms: 2 -> 3"):
        fix_inputs(tmp_path, load_config(None, ["morse.terms=3"]), {"labels": "x"})


def test_corrected_labels_are_refused_and_older_folders_continue(tmp_path):
    (tmp_path / "student").mkdir()
    fix_inputs(tmp_path, Config(), {"labels": "x"})
    fix_inputs(tmp_path, Config(), {"labels": "x", "label_values": "a"})
    (tmp_path / "config.yaml").unlink()
    fix_inputs(tmp_path, Config(), {"labels": "x", "label_values": "a"})
    with pytest.raises(ConfigError, match=r"inputs.label_values: a -> b"):
        fix_inputs(tmp_path, Config(), {"labels": "x", "label_values": "b"})


@pytest.mark.parametrize(
    ("module", "complaint"),
    [
        ("a_module_that_is_missing", "No module named"),
        ("mlff_distiller.students.painn", "ARCHITECTURE"),
        ("mlff_distiller.students.painn_setup", "named 'painn'"),
    ],
)
def test_a_plug_in_that_is_broken_speaks_when_it_may_be_meant(
    tmp_path, monkeypatch, module, complaint
):
    register(tmp_path, monkeypatch, broken=module)
    assert tuple(architectures()) == ("nep", "painn")
    assert load_config(None, student="painn").student == "painn"
    with pytest.raises(ConfigError, match=rf"plug-in 'broken'.*{complaint}"):
        load_config(None, student="broken")
    with pytest.raises(StudentError, match=rf"plug-in 'broken'(?s:.*){complaint}"):
        architecture_of("broken")


def test_ours_come_first(tmp_path, monkeypatch):
    (tmp_path / "impostor.py").write_text(
        "from dataclasses import replace\n"
        "from mlff_distiller.students.nep_setup import ARCHITECTURE\n"
        "ARCHITECTURE = replace(ARCHITECTURE, description='another')\n"
    )
    register(tmp_path, monkeypatch, nep="impostor")
    assert architectures()["nep"].description != "another"


def test_a_student_is_read_by_name_in_one_way():
    for own in architectures().values():
        assert own.read_name(own.name) is not None
        assert own.read_name(f"{own.name}-") is None
        for preset, settings in own.presets.items():
            assert own.read_name(preset) == settings
            assert own.named(own.settings(), preset) == own.settings(**settings)
            assert architecture_of(preset) is own
    painn = architectures()["painn"]
    own = painn.named(painn.settings(layers=1), "painn-48x2")
    assert (own.channels, own.layers) == (48, 1)  # what is set counts
    assert painn.name_of({"channels": 48, "layers": 1}) == "painn-48x1"

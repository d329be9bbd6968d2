"""What README and docs show: commands, settings, names and links exist, and code runs."""

import importlib
import json
import re
import shlex
from importlib.util import find_spec

import pytest
import torch
import typer
from ase.build import bulk
from ase.io import read
from tests.helpers import ROOT, random_nep

from mlff_distiller.cli.main import app
from mlff_distiller.students import save_student
from mlff_distiller.workflows.config import load_config

PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
PAGES += sorted((ROOT / "docs" / "tutorials").glob("*.md"))
OURS = ("mlff-distiller", "!mlff-distiller", "torchrun")


def blocks(path, language):
    return re.findall(rf"```{language}\n(.*?)```", path.read_text(encoding="utf-8"), re.DOTALL)


def commands():
    """(page, words) of every call of our program in a block of shell or of a tutorial."""
    for path in PAGES:
        for text in [*blocks(path, "bash"), *blocks(path, r"\{code-cell\} python")]:
            for line in text.replace("\\\n", " ").splitlines():
                if line.split(" ")[0] in OURS:
                    words = shlex.split(line.replace("$", "_"), comments=True)
                    start = words.index("mlff_distiller") if words[0] == "torchrun" else 0
                    yield path.name, words[start + 1 :]


COMMANDS = list(commands())


def parse(words):
    """The command that ``words`` call, and what of them it leaves over; nothing is run."""
    command = typer.main.get_command(app)
    while hasattr(command, "commands") and words and words[0] in command.commands:
        command = command.commands[words[0]]
        words = words[1:]
    context = command.context_class(command)
    _, left, _ = command.make_parser(context).parse_args(list(words))
    return command.name, left


@pytest.mark.parametrize(("page", "words"), COMMANDS, ids=[f"{p}-{w[0]}" for p, w in COMMANDS])
def test_a_command_of_a_page_is_one_of_ours(page, words):
    """Its options exist, and so do its settings, with values that they may have."""
    name, left = parse(words)
    assert name is not None
    assert left == []
    settings = [word for word in words if re.fullmatch(r"[a-z_.A-Z-]+=[^=]*", word)]
    settings = [word for word in settings if not word.startswith("-")]
    if words[0] in ("distill", "train"):
        load_config(None, settings)


def test_the_pages_have_commands_and_a_wrong_one_is_found():
    assert len(COMMANDS) > 50
    with pytest.raises(Exception, match="No such option"):
        parse(["distill", "a.xyz", "--techer", "7net-0"])


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.name)
def test_names_imported_on_a_page_exist(path):
    text = path.read_text(encoding="utf-8")
    for module, names in re.findall(r"^from (mlff_distiller[\w.]*) import ([\w, ]+)$", text, re.M):
        if module.endswith(".torchsim") and not find_spec("torch_sim"):
            continue
        home = importlib.import_module(module)
        assert [name for name in names.split(", ") if not hasattr(home, name)] == []


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.name)
def test_links_lead_somewhere(path):
    text = re.sub(r"```.*?```", "", path.read_text(encoding="utf-8"), flags=re.DOTALL)
    links = re.findall(r"\]\(([^)#\s]+)", text)
    made = "docs/" if path.name == "contributing.md" else ""
    missing = [
        link for link in links if "://" not in link and not (path.parent / made / link).exists()
    ]
    assert missing == []


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Where the pages' code runs: a student of silicon in RUN, and a structure."""
    folder = tmp_path_factory.mktemp("pages")
    student = random_nep(("Si",))
    with torch.no_grad():
        student.w1.mul_(0.1)
    (folder / "RUN").mkdir()
    save_student(student, folder / "RUN" / "student", about={}, card="", frames=())
    bulk("Si", cubic=True).write(folder / "silicon.extxyz")
    return folder


@pytest.mark.parametrize(
    ("page", "number"),
    [("README.md", 0), ("docs/quickstart.md", 0), ("docs/quickstart.md", 1), ("docs/md.md", 0)],
)
def test_code_of_a_page_runs(page, number, folder, monkeypatch):
    monkeypatch.chdir(folder)
    code = blocks(ROOT / page, "python")[number]
    code = code.replace("time_ps=100", "time_ps=0.01").replace(".run(1000)", ".run(5)")
    names = {"atoms": bulk("Si", cubic=True).repeat(2)}
    exec(code, names)
    if "StudentCalculator" in code:
        assert names["atoms"].get_forces().shape == (len(names["atoms"]), 3)


def test_the_figure_of_the_readme_shows_the_committed_results(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    figure = importlib.import_module("accuracy_speed")
    result = json.loads((ROOT / "benchmarks/results/md_benchmark_h200.json").read_text())
    fidelity = figure.fidelities((ROOT / "benchmarks/silicon/README.md").read_text())
    shown = (ROOT / "docs/accuracy_speed.svg").read_text()
    rows = list(figure.points(result, fidelity))
    assert len(rows) == 5
    for _, _, speed, _ in rows:
        assert f"{speed:,.{1 if speed < 10 else 0}f} ns/day" in shown


def test_the_gallery_shows_the_committed_results(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    gallery = importlib.import_module("gallery")
    suite = json.loads(gallery.RESULTS.read_text())
    shown = gallery.PAGE.read_text()
    assert shown == gallery.page(suite), "run python benchmarks/gallery.py"
    approved = {row["system"] for row in suite["rows"] if row["status"] == "approved"}
    assert shown.count("mlff-distiller distill ") == len(approved) == 7


@pytest.mark.filterwarnings("ignore:Skipping unhashable information adsorbate_info")
def test_the_structures_of_the_gallery_can_be_built(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for code in blocks(ROOT / "docs" / "gallery.md", "python"):
        exec(code, {})
    sizes = {path.stem: len(read(path)) for path in tmp_path.glob("*.extxyz")}
    assert sizes == {"si": 64, "nacl": 64, "cuco": 38, "cuni": 108, "ethanol": 9}


def test_the_table_of_the_readme_shows_the_committed_results():
    rows = json.loads((ROOT / "benchmarks/results/suite_h200.json").read_text())["rows"]
    readme = (ROOT / "README.md").read_text()
    for row in rows:
        shown = f"| {row['fidelity_test']:.3f} | {row['fidelity_own']:.3f} | `{row['student']}` |"
        shown += (
            f" {row['labels']} | {row['seconds']:.0f} | {row['speedup']:.0f} × | {row['status']}"
        )
        assert shown in readme

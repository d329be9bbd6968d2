"""What ``--help`` shows: every command in its place, quickly."""

import os
import subprocess
import sys

import pytest
import typer
from typer.testing import CliRunner

from mlff_distiller.cli.main import app

ROOT = typer.main.get_command(app)


def commands(group, *words):
    for name, command in group.commands.items():
        yield (*words, name)
        if hasattr(command, "commands"):
            yield from commands(command, *words, name)


def test_commands_come_in_the_order_of_need():
    lines = CliRunner().invoke(app, ["--help"]).output.splitlines()
    shown = [line.strip("│ ").split()[0] for line in lines if line.startswith("│ ")]
    assert [name for name in shown if name in ROOT.commands] == [
        *("distill", "label", "train", "sample", "plan"),
        *("validate", "benchmark", "profile", "md", "export"),
        *("info", "data", "teachers", "students", "settings", "doctor"),
    ]


@pytest.mark.parametrize("words", [*commands(ROOT)], ids=" ".join)
def test_every_command_says_what_it_does_and_gives_an_example(words):
    command = ROOT
    for word in words:
        command = command.commands[word]
    assert command.help
    if words != ("data",):
        assert "mlff-distiller " + " ".join(words) in command.epilog
    assert all(option.help for option in command.params if option.name != "context")


@pytest.mark.parametrize("words", [(), *commands(ROOT)], ids=" ".join)
def test_nothing_is_cut_off_in_80_columns(words):
    shown = CliRunner().invoke(app, [*words, "-h"], env={"COLUMNS": "80"})
    assert shown.exit_code == 0
    assert "…" not in shown.output


def test_defaults_shown_are_those_of_the_settings():
    from mlff_distiller.workflows.config import Config

    own, shown = Config(), {p.name: p.show_default for p in ROOT.commands["distill"].params}
    assert shown["student"] == own.student
    assert shown["device"] == own.device
    assert float(shown["labels"]) == own.labels
    assert float(shown["target_fidelity"]) == own.evaluation.limits.forces_fidelity
    assert float(shown["max_labels"]) == own.goal.max_labels
    assert float(shown["max_hours"]) == own.goal.max_hours
    assert (float(shown["temperature"]),) == own.sampling.temperature_K


def test_a_shell_completes_names_of_teachers_and_students():
    def completed(words: str) -> str:
        script = "from mlff_distiller.cli.main import main; main()"
        variables = {
            "_MLFF_DISTILLER_COMPLETE": "complete_bash",
            "COMP_WORDS": words,
            "COMP_CWORD": str(len(words.split()) - 1),
        }
        code = f"import sys; sys.argv = ['mlff-distiller']; {script}"
        return subprocess.run(
            [sys.executable, "-c", code],
            capture_output=True,
            text=True,
            env={**os.environ, **variables},
        ).stdout

    assert "7net-l3i5" in completed("mlff-distiller distill a.xyz --teacher 7net-l")
    assert "painn" in completed("mlff-distiller train labels --student pa")


def test_help_loads_none_of_what_does_the_work():
    heavy = "{'ase', 'numpy', 'rich.progress', 'torch', 'warp', 'yaml'}"
    code = f"""
import sys
from typer.testing import CliRunner
from mlff_distiller.cli.main import app
assert CliRunner().invoke(app, ["distill", "--help"]).exit_code == 0
print({heavy} & set(sys.modules))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.stdout, done.stderr) == ("set()\n", "")

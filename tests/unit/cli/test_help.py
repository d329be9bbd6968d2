"""What ``--help`` shows: every command in its place, quickly."""

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
        "distill",
        "label",
        "train",
        "sample",
        "plan",
        "validate",
        "md",
        "export",
        "benchmark",
        "profile",
        "data",
        "info",
        "teachers",
        "students",
        "doctor",
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

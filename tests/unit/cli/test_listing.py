"""``teachers``, ``students``, ``settings``: whole names in any terminal, JSON for scripts."""

import json

import pytest
from typer.testing import CliRunner

from mlff_distiller.cli.main import app
from mlff_distiller.errors import ConfigError
from mlff_distiller.teachers import registered_teachers
from mlff_distiller.workflows.config import Config, leaves, load_config, sections


def run(*words: str, columns: int = 80):
    return CliRunner().invoke(app, list(words), env={"COLUMNS": str(columns)})


def test_every_teacher_can_be_copied_from_a_narrow_terminal():
    shown = run("teachers", columns=40).output
    lines = shown.splitlines()
    for row in registered_teachers():
        assert any(line.strip().startswith(row.name) for line in lines), row.name
    assert "ase  installed" in shown


def test_teachers_are_filtered_and_told_as_json():
    rows = json.loads(run("teachers", "mace", "--json").output)
    assert {row["family"] for row in rows} == {"mace"}
    assert all(isinstance(row["installed"], bool) for row in rows)
    refused = run("teachers", "no-such")
    assert isinstance(refused.exception, ConfigError)


def test_students_are_told_as_json():
    assert {row["student"] for row in json.loads(run("students", "--json").output)} >= {"nep"}


def test_every_setting_is_listed_and_every_section_explained():
    rows = json.loads(run("settings", "--json").output)
    assert rows == json.loads(json.dumps(dict(leaves())))
    assert rows["goal.max_turns"] == Config().goal.max_turns
    assert all(kind.__doc__ for kind in sections().values())
    goal = run("settings", "goal").output
    assert "max_hours" in goal
    assert "approved" in goal, "the docstring of the section"
    assert "labels" in run("settings", "lab").output


@pytest.mark.parametrize(
    ("wrong", "meant"),
    [
        ("lables", "labels"),
        ("nep.cutof_radial_A", "nep.cutoff_radial_A"),
        ("training.update", "training.updates"),
        ("max_turns", "goal.max_turns"),
    ],
)
def test_what_was_meant_by_a_wrong_key(wrong, meant):
    with pytest.raises(ConfigError, match="mlff-distiller settings") as said:
        load_config(None, [f"{wrong}=1"])
    assert f"did you mean {meant}?" in str(said.value)
    error = run("settings", wrong).exception
    assert error is None or meant in str(error)

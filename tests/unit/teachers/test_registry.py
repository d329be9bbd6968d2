"""What a SPEC means, and what is said of one that means nothing."""

import importlib.metadata
import subprocess
import sys
from pathlib import Path

import pytest

from mlff_distiller.errors import TeacherError
from mlff_distiller.teachers import FeNNolTeacherCalculator, load_teacher, registered_teachers
from mlff_distiller.teachers.ase import distribution_of
from mlff_distiller.teachers.registry import ENTRY_POINTS, parse_spec

PLUGIN = """
from mlff_distiller.teachers import ase
from mlff_distiller.teachers.family import Family

def resolve(name, argument):
    return "twice-emt", {"factory": "ase.calculators.emt:EMT"}

FAMILY = Family("twice", "ase", "twice", "ase", "MIT", "", {"twice-emt": "EMT again"}, resolve)
load = ase.load
"""


def test_names_are_listed_and_understood():
    rows = registered_teachers()
    assert {"7net-0", "7net-l3i5", "chgnet", "chgnet-r2scan", "ani-1x"} <= {r.name for r in rows}
    assert all(row.licence and row.description for row in rows)
    assert parse_spec("7net-0").arguments == {"model": "7net-0", "modal": None}
    assert parse_spec("7net-mf-0:R2SCAN").arguments["modal"] == "R2SCAN"
    assert parse_spec("chgnet").name == "chgnet-0.3.0"
    assert parse_spec("ase:a.b_c:D1").arguments == {"factory": "a.b_c:D1"}
    for row in rows:
        if not set("[:") & set(row.name) and row.name != "7net-mf-0":
            assert parse_spec(row.name).family == row.family


def test_paths_become_absolute_and_leave_the_name(tmp_path, monkeypatch):
    (tmp_path / "sub").mkdir()
    for name in ("a.fnx", "b.fnx", "c:d.pth"):
        (tmp_path / "sub" / name).write_bytes(b"")
    monkeypatch.chdir(tmp_path)
    source = parse_spec("fennol:sub/a.fnx,sub/b.fnx")
    assert source.name == "fennol:a.fnx,b.fnx"
    assert source.arguments["paths"] == [str(tmp_path / "sub" / n) for n in ("a.fnx", "b.fnx")]
    whole = parse_spec("sevennet:sub/c:d.pth")
    assert whole.arguments == {"path": str(tmp_path / "sub" / "c:d.pth"), "modal": None}
    modal = parse_spec("sevennet:sub/a.fnx:PBE")
    assert modal.arguments == {"path": str(tmp_path / "sub" / "a.fnx"), "modal": "PBE"}
    monkeypatch.setenv("HOME", str(tmp_path))
    assert parse_spec("chgnet:~/sub/a.fnx").arguments["path"] == str(tmp_path / "sub" / "a.fnx")


@pytest.mark.parametrize(
    ("spec", "complaint"),
    [
        ("", "no teacher is named"),
        ("7net0", "did you mean 7net-0"),
        ("CHGNet", "did you mean chgnet"),
        ("qqqq", "mlff-distiller teachers"),
        ("7net-0:weights.pth", "takes no argument"),
        ("7net-mf-0", "7net-mf-0:PBE or 7net-mf-0:R2SCAN"),
        ("7net-mf-0:pbe", "several surfaces"),
        ("fennol", "an empty path"),
        ("fennol:", "an empty path"),
        ("fennol:/nowhere/a.fnx", "/nowhere/a.fnx"),
        ("sevennet:https://example.org/weights.pth", "nothing at"),
        ("sevennet:/nowhere/a.pth", "existing file"),
        ("ase:EMT", "ase:package.module:factory"),
        ("ase:os:system('ls')", "ase:package.module:factory"),
        ("ase:../evil:EMT", "ase:package.module:factory"),
        ("ase", "ase:package.module:factory"),
        ("ani", "ani-1x"),
    ],
)
def test_errors_name_the_remedy(spec, complaint):
    with pytest.raises(TeacherError) as caught:
        load_teacher(spec)
    assert complaint in str(caught.value)


def test_device_and_python_are_checked():
    with pytest.raises(TeacherError, match="no device 'gpu'"):
        load_teacher("7net-0", device="gpu")
    with pytest.raises(TeacherError, match="/nowhere/python"):
        load_teacher("7net-0", python="/nowhere/python")
    with pytest.raises(TeacherError, match="comma"):
        FeNNolTeacherCalculator("a,b.fnx")


def test_third_party_family(tmp_path, monkeypatch):
    (tmp_path / "twice_plugin.py").write_text(PLUGIN)
    info = tmp_path / "twice-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: twice\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(
        f"[{ENTRY_POINTS}]\ntwice = twice_plugin\nbroken = a_module_that_is_missing\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    assert len(importlib.metadata.entry_points(group=ENTRY_POINTS)) == 2
    assert "twice-emt" in {row.name for row in registered_teachers()}
    with load_teacher("twice-emt") as calculator:
        assert calculator.identity.name == "twice-emt"
        assert calculator.identity.family == "twice"
    with pytest.raises(TeacherError, match="plug-in 'broken'"):
        load_teacher("something-else")


def test_the_distribution_of_a_package_is_the_one_that_python_tells():
    known = importlib.metadata.packages_distributions()
    for name in ("ase", "yaml", "torch", "typing_extensions"):
        assert distribution_of(name) == known[name][0]
    assert distribution_of("as") is None


def test_import_is_light():
    code = (
        "import sys, mlff_distiller.teachers as t; t.registered_teachers();"
        "print(sorted({'torch', 'pydantic', 'sevenn', 'chgnet', 'jax'} & set(sys.modules)))"
    )
    source = str(Path(sys.modules["mlff_distiller"].__file__).parents[1])
    out = subprocess.run(
        [sys.executable, "-c", f"import sys; sys.path.insert(0, {source!r}); {code}"],
        check=True,
        capture_output=True,
        text=True,
    )
    assert out.stdout.strip() == "[]"

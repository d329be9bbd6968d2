"""Learning curves: the fit, the sentences, and a teacher's noise measured on real ones."""

import numpy as np
import pytest
from ase.build import bulk, molecule
from ase.calculators.emt import EMT

from mlff_distiller.batch import Batch
from mlff_distiller.dataset import Dataset, DatasetWriter, Record, label_key, split_by_group
from mlff_distiller.errors import DatasetError
from mlff_distiller.sampling.active import Round, saturated
from mlff_distiller.teachers import TeacherCalculator
from mlff_distiller.workflows.config import Config, load_config
from mlff_distiller.workflows.plan import (
    Plan,
    Point,
    fit_power_law,
    learning_curve,
    lower_budget,
    teacher_noise,
)


@pytest.mark.parametrize(("floor", "exponent"), [(0.0, 0.5), (0.03, 0.5), (0.01, 1.0)])
def test_the_law_is_recovered(floor, exponent):
    n = np.array([100, 333, 1000])
    found = fit_power_law(n, floor + 2.0 * n**-exponent)
    predicted = found[0] + found[1] * 10_000.0 ** -found[2]
    assert predicted == pytest.approx(floor + 2.0 * 1e4**-exponent, rel=0.1)


def test_errors_that_do_not_fall_are_a_floor():
    floor, slope, _ = fit_power_law([100, 300, 1000], [0.05, 0.05, 0.05])
    assert floor + slope * 1e4**-1.5 == pytest.approx(0.05, rel=0.05)
    assert fit_power_law([100, 300, 1000], [0.04, 0.05, 0.06])[0] > 0.03


def curve(errors, noise=None):
    points = [Point(n, e, 1e3 * e) for n, e in zip((100, 333, 1000), errors, strict=True)]
    law = fit_power_law([100, 333, 1000], errors)
    return Plan(points, *law, seconds_per_label=3.6, teacher_noise=noise)


def test_advice_names_what_limits():
    falling = curve([0.2, 0.11, 0.0632])
    assert not falling.saturated
    assert "2000 are predicted" in falling.advice()
    assert "1 more hours" in falling.advice()
    flat = curve([0.08, 0.0602, 0.06])
    assert flat.saturated
    assert "student is the limit" in flat.advice()
    limited = curve([0.2, 0.11, 0.0632], noise=0.1)
    assert "teacher is the limit" in limited.advice()
    assert "10.0%" in limited.advice()
    assert not curve([0.2, 0.11, 0.0632], noise=0.01).teacher_is_the_limit


def test_a_teacher_that_turns_with_its_structure_has_no_noise():
    frames = [molecule("CH3CH2OH"), bulk("Cu", cubic=True)]
    for atoms in frames:
        atoms.rattle(0.1, seed=1)
    with TeacherCalculator("ase:ase.calculators.emt:EMT") as teacher:
        assert teacher_noise(teacher, frames) < 1e-10


def test_the_spread_of_a_committee_is_its_noise(shared):
    paths = ",".join(map(str, sorted((shared / "teachers").glob("ani1ccx_model[01].fnx"))))
    pytest.importorskip("fennol")
    atoms = molecule("CH3CH2OH")
    atoms.rattle(0.1, seed=1)
    with TeacherCalculator("fennol:" + paths) as teacher:
        noise = teacher_noise(teacher, [atoms])
        [answer] = teacher.label([atoms])
    size = np.linalg.norm(answer.labels["forces"], axis=1).sum()
    assert noise == pytest.approx(answer.extra["forces_spread"].sum() / size)
    assert 1e-3 < noise < 0.5


def labelled(folder, n):
    rng = np.random.default_rng(0)
    with DatasetWriter(folder, {"teacher": {"name": "EMT"}}) as writer:
        for k in range(n):
            atoms = bulk("Cu", cubic=True)
            atoms.positions += rng.normal(0, 0.1, (4, 3))
            atoms.calc = EMT()
            labels = {
                "energy": np.array(atoms.get_potential_energy()),
                "forces": atoms.get_forces(),
            }
            atoms.calc = None
            key = label_key(atoms, "emt")
            writer.append([Record(atoms, labels, key, k // 3, {"seconds": 0.5})])
    return Dataset(folder)


SMALL = load_config(
    None,
    [
        "nep.neurons=8",
        "nep.n_max_radial=3",
        "nep.n_max_angular=2",
        "nep.basis_size_radial=5",
        "nep.basis_size_angular=4",
    ],
)


def test_a_real_curve_falls(tmp_path):
    labels = labelled(tmp_path / "data", 90)
    split = split_by_group(labels.groups, (0.8, 0.1, 0.1), seed=0)
    seen = []
    found = learning_curve(
        labels,
        split,
        lower_budget(SMALL, 80),
        (3, 16, 10_000),
        on_progress=lambda stage, *rest: seen.append(stage),
    )
    sizes = [point.n_labels for point in found.points]
    assert sizes == [3, 16, len(split.train)]
    assert found.points[-1].error < 0.95 * found.points[0].error
    assert found.seconds_per_label == pytest.approx(0.5)
    assert set(seen) == {f"{n} labels" for n in sizes}
    frames = labels.read(split.test).systems()
    assert all(isinstance(frame, Batch) for frame in frames)


def test_a_handful_of_labels_is_no_curve(tmp_path):
    labels = labelled(tmp_path / "data", 12)
    split = split_by_group(labels.groups, (0.5, 0.25, 0.25), seed=0)
    with pytest.raises(DatasetError, match="too few labels"):
        learning_curve(labels, split, lower_budget(Config(), 10))


def rounds(*errors, reach=200.0):
    return [Round(k, [error], reach) for k, error in enumerate(errors)]


def test_rounds_end_when_the_error_stops_falling_at_full_stride():
    assert not saturated(rounds(0.2, 0.15, 0.12), 0.05, 200.0)
    assert saturated(rounds(0.2, 0.15, 0.151, 0.149), 0.05, 200.0)
    assert not saturated(rounds(0.2, 0.15, 0.151, 0.149, reach=50.0), 0.05, 200.0)
    assert not saturated(rounds(0.2, 0.2), 0.05, 200.0)

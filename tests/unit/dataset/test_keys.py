import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk

from mlff_distiller.dataset import DatasetWriter, Record, label_key, structure_hash
from mlff_distiller.errors import DatasetError


def _silicon() -> Atoms:
    atoms = bulk("Si")
    atoms.positions[0] = [0.0, 1.0, 2.0]
    return atoms


def test_memory_order_and_sign_of_zero_do_not_matter():
    atoms, other = _silicon(), _silicon()
    other.arrays["positions"] = np.asfortranarray(other.positions)
    other.positions[0, 0] = -0.0
    other.arrays["numbers"] = other.numbers.astype(np.int32)
    assert not other.positions.flags.c_contiguous
    assert structure_hash(other) == structure_hash(atoms)


def test_what_is_no_part_of_the_structure_does_not_matter():
    atoms, other = _silicon(), _silicon()
    other.info["energy"] = 5.0
    other.set_tags([1, 2])
    assert structure_hash(other) == structure_hash(atoms)


def _moved(atoms):
    atoms.positions[1, 2] = np.nextafter(atoms.positions[1, 2], 10.0)


def _strained(atoms):
    atoms.cell[0, 0] += 1e-14


def _of_another_element(atoms):
    atoms.numbers[0] = 6


def _not_periodic(atoms):
    atoms.pbc = [True, True, False]


def _charged(atoms):
    atoms.info["charge"] = 0


def _with_spin(atoms):
    atoms.info["spin"] = 1


def _reordered(atoms):
    atoms.positions = atoms.positions[::-1].copy()


@pytest.mark.parametrize(
    "change",
    [_moved, _strained, _of_another_element, _not_periodic, _charged, _with_spin, _reordered],
)
def test_what_defines_the_structure_matters(change):
    atoms, other = _silicon(), _silicon()
    change(other)
    assert structure_hash(other) != structure_hash(atoms)


def test_charge_and_spin_are_not_confused():
    atoms, other = _silicon(), _silicon()
    atoms.info["charge"], other.info["spin"] = 1, 1
    assert structure_hash(other) != structure_hash(atoms)


@pytest.mark.parametrize("value", ["much", float("nan"), float("inf"), [1, 2]])
def test_a_charge_that_is_no_number(value, tmp_path):
    """It has a hash, so that it can be named among what failed, but makes no record."""
    atoms = _silicon()
    atoms.info["charge"] = value
    assert structure_hash(atoms) == structure_hash(atoms.copy())
    assert structure_hash(atoms) != structure_hash(_silicon())
    labels = {"energy": 0.0, "forces": np.zeros((len(atoms), 3))}
    record = Record(atoms, labels, structure_hash(atoms), 0)
    with DatasetWriter(tmp_path, {}) as writer:
        with pytest.raises(DatasetError, match="charge"):
            writer.append([record])
        assert len(writer) == 0


def test_label_key_is_64_digits_and_depends_on_teacher_and_structure():
    other = _silicon()
    other.rattle(0.1)
    keys = {label_key(_silicon(), "a"), label_key(_silicon(), "b"), label_key(other, "a")}
    assert len(keys) == 3
    assert all(len(key) == 64 and set(key) <= set("0123456789abcdef") for key in keys)
    assert label_key(_silicon(), "a") in keys


def test_hashes_stay_what_they_were_in_version_1():
    """Stored keys must be found again: a change here is a change of schema."""
    atoms = Atoms("HO", [[0, 0, 0], [0, 0, 1]], cell=[2, 3, 4], pbc=[1, 0, 1])
    assert structure_hash(atoms) == (
        "bc11dcaf5ffd3727631f0c40f80ae3f99f4408ff63d2881e3e59ff47949aa0eb"
    )
    atoms.info["charge"] = -1
    assert label_key(atoms, "teacher") == (
        "e555b1425d3af3594ed830872ad76ada108b3c8c00cd7110e895fda02676d750"
    )

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mlff_distiller.dataset import Split, split_by_group
from mlff_distiller.errors import DatasetError

UNEVEN = np.repeat(np.arange(7), [1, 147, 113, 23, 8, 1, 7])


def sizes(split: Split) -> tuple[int, int, int]:
    return len(split.train), len(split.validation), len(split.test)


def assert_lawful(split: Split, groups: np.ndarray) -> None:
    parts = [split.train, split.validation, split.test]
    assert all(len(part) for part in parts)
    assert all((np.diff(part) > 0).all() for part in parts)
    assert sorted(np.concatenate(parts).tolist()) == list(range(len(groups)))
    owned = [set(groups[part].tolist()) for part in parts]
    assert not owned[0] & owned[1] | owned[0] & owned[2] | owned[1] & owned[2]


@settings(deadline=None)
@given(
    st.lists(st.integers(1, 60), min_size=3, max_size=30),
    st.integers(0, 2**31),
    st.sampled_from([(0.8, 0.1, 0.1), (0.34, 0.33, 0.33), (0.1, 0.1, 0.8), (0.79, 0.2, 0.01)]),
)
def test_every_split_is_lawful(counts, seed, fractions):
    groups = np.random.default_rng(0).permutation(np.repeat(np.arange(len(counts)) - 2, counts))
    split = split_by_group(groups, fractions, seed)
    assert_lawful(split, groups)
    again = split_by_group(groups.copy(), fractions, seed)
    assert all(np.array_equal(getattr(split, n), getattr(again, n)) for n in vars(split))


@settings(deadline=None)
@given(st.lists(st.integers(1, 60), min_size=4, max_size=30), st.integers(0, 1000))
def test_the_largest_and_the_chosen_stay_in_training(counts, seed):
    groups = np.repeat(np.arange(len(counts)), counts)
    split = split_by_group(groups, seed=seed, always_train=frozenset({0, 99}))
    train = set(groups[split.train].tolist())
    assert 0 in train
    assert {g for g in train if counts[g] == max(counts[1:])} or max(counts[1:]) not in counts[1:]
    assert_lawful(split, groups)


@pytest.mark.parametrize("seed", range(30))
def test_uneven_groups(seed):
    split = split_by_group(UNEVEN, seed=seed, always_train=frozenset({0}))
    assert_lawful(split, UNEVEN)
    assert {0, 1, 2} <= set(UNEVEN[split.train].tolist())
    _, validation, test = sizes(split)
    assert validation + test == 39
    assert min(validation, test) >= 8
    assert max(validation, test) <= 31


@pytest.mark.parametrize("seed", range(5))
def test_many_small_groups_hit_the_fractions(seed):
    groups = np.repeat(np.arange(200), np.random.default_rng(seed).integers(1, 20, 200))
    train, validation, test = np.array(sizes(split_by_group(groups, seed=seed))) / len(groups)
    assert abs(train - 0.8) < 0.01
    assert abs(validation - 0.1) < 0.005
    assert abs(test - 0.1) < 0.005


def test_groups_beyond_what_fits_are_taken_only_if_that_is_closer():
    groups = np.repeat(np.arange(17), 10)  # 17 of 170 wanted: 10 is off by 7, 20 by 3
    assert sizes(split_by_group(groups)) == (130, 20, 20)
    groups = np.repeat(np.arange(14), 10)  # 14 of 140 wanted: 10 is off by 4, 20 by 6
    assert sizes(split_by_group(groups)) == (120, 10, 10)


def test_three_groups_the_largest_for_training():
    groups = np.array([5] * 4 + [9] * 6 + [7] * 5)
    split = split_by_group(groups)
    assert set(groups[split.train].tolist()) == {9}
    assert_lawful(split, groups)


def test_the_seed_matters():
    groups = np.repeat(np.arange(50), 3)
    tests = {tuple(split_by_group(groups, seed=seed).test.tolist()) for seed in range(5)}
    assert len(tests) == 5


@pytest.mark.parametrize(
    ("groups", "always"), [([], ()), ([1], ()), ([1, 2, 2], ()), ([0, 1, 2], (0,))]
)
def test_too_few_groups(groups, always):
    with pytest.raises(DatasetError, match=r"(?s)at least 3 groups.*remedy:   sample more"):
        split_by_group(np.array(groups, dtype=int), always_train=frozenset(always))


@pytest.mark.parametrize(
    "fractions", [(0.8, 0.1, 0.2), (1.0, 0.0, 0.0), (1.2, -0.1, -0.1), (0.5, 0.5), (np.nan,) * 3]
)
def test_wrong_fractions(fractions):
    with pytest.raises(DatasetError, match="sum 1"):
        split_by_group(np.arange(10), fractions)

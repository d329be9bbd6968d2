"""Latency, growth, ratios and noise: against samples whose answer is known."""

import numpy as np
import pytest

from mlff_distiller.md import statistics
from mlff_distiller.md.statistics import growth


def test_latency_gives_a_percentile_only_where_samples_decide_it():
    found = statistics.latency(np.arange(1.0, 101.0))
    assert (found["median"], found["min"], found["max"]) == (50.5, 1.0, 100.0)
    assert found["p95"] == pytest.approx(95.05)
    assert found["p99"] == pytest.approx(99.01)
    few = statistics.latency(np.arange(1.0, 20.0))
    assert few["p95"] is few["p99"] is None


def test_a_leak_is_told_from_a_cache_that_fills_once():
    steps, rng = np.arange(0, 1001, 10), np.random.default_rng(0)
    page = 4096 * rng.integers(-2, 3, len(steps))
    leak = growth(steps, 5e8 + 1024 * steps + page)
    assert leak["growth_bytes_per_step"] == pytest.approx(1024, rel=0.05)
    assert leak["grows"]
    cache = growth(steps, 5e8 + 4e6 * (steps > 120) + page)
    assert not cache["grows"]
    assert not growth(steps, 5e8 + page)["grows"]
    jump = growth(steps, 5e8 + 300 * steps + 2e6 * (steps > 500))
    assert not jump["grows"]  # most of it came at once
    brief = growth(steps[:40], 5e8 + 1e5 * steps[:40])
    assert brief["grows"] is None
    assert growth(steps[:3], np.zeros(3))["grows"] is None


def test_a_ratio_has_an_interval_that_holds_it():
    rng = np.random.default_rng(1)

    def repeats(ms):
        return [(ms * rng.normal(1.0, 0.01, 20)).tolist() for _ in range(3)]

    a = repeats(2.0)
    slower, same = statistics.ratio(a, repeats(2.4)), statistics.ratio(a, repeats(2.0))
    assert slower["ratio"] == pytest.approx(1.2, rel=0.02)
    assert 1.17 < slower["low"] < 1.2 < slower["high"] < 1.23
    assert same["low"] < 1.0 < same["high"]


def test_noise_is_how_far_quiet_repeats_lie_apart_or_how_disturbed_they_are():
    calm = [[1.0] * 20, [1.5] * 20, [1.02] * 20]
    assert statistics.noise(calm) == pytest.approx(0.02)
    disturbed = [[1.0] * 5 + [1.4] * 15, [1.0] * 20]
    assert statistics.noise(disturbed) == pytest.approx(0.2)
    assert statistics.noise([[0.9, 1.1]]) > 0.05
    assert statistics.noise([[1.0] * 20]) == 0.0
    assert statistics.quiet([1.0] * 3 + [9.0] * 17) == pytest.approx(1.0)

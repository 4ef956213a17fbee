"""The optimizer's kernels against the update rules of the oracle."""

from __future__ import annotations

from typing import Any

import naive
import numpy as np
import pytest
from support import Guards, relative_error, same_bits

from charrnn.config import OPTIMIZERS, TrainConfig
from charrnn.kernels import rounds, update
from charrnn.optim import RULES

N, STEPS = 103, 10
RATES = naive.Rates(
    learning_rate=0.03, momentum=0.8, beta1=0.85, beta2=0.97, epsilon=1e-5, weight_decay=0.2
)
each_rule = pytest.mark.parametrize("name", OPTIMIZERS)
each_dtype = pytest.mark.parametrize(
    "dtype", (pytest.param("float32", marks=pytest.mark.portable), "float64")
)


def run(
    name: str, dtype: str, cuts: list[int], guarded: Guards, limit: float, scale: float
) -> list[np.ndarray]:
    """Weights and moments after `STEPS` steps; elements before and behind ``cuts`` stay."""
    rng = np.random.default_rng(0)
    config = TrainConfig(
        optimizer=name, momentum=RATES.momentum, beta1=RATES.beta1, beta2=RATES.beta2,
        epsilon=RATES.epsilon, weight_decay=RATES.weight_decay,
    )  # fmt: skip
    kernel, arguments = RULES[name]
    moments = {"sgd": 0, "adam": 2, "adamw": 2}.get(name, 1)
    p = guarded(rng.normal(size=N).astype(dtype))
    memory = [guarded(np.zeros(N, dtype)) for _ in range(moments)]
    for step in range(STEPS):
        g = guarded(rng.normal(size=N).astype(dtype))
        own = arguments(config, RATES.learning_rate, step + 1, RATES.weight_decay)
        numbers = np.array([limit, scale, *own], dtype)
        for i0, i1 in zip(cuts, cuts[1:], strict=False):
            kernel(p, *memory, g, numbers, i0, i1)
    return [p, *memory]


def test_every_rule_has_a_twin() -> None:
    assert set(OPTIMIZERS) == set(RULES) == set(naive.OPTIMIZERS)


@each_rule
@each_dtype
@pytest.mark.parametrize(("limit", "scale"), [(np.inf, 1.0), (0.7, 0.4)])
def test_rule(name: str, dtype: str, limit: float, scale: float, guarded: Guards) -> None:
    rng, memory = np.random.default_rng(0), dict[str, Any]()
    start = rng.normal(size=N).astype(dtype)
    want = start.astype(np.float64)
    for _ in range(STEPS):
        g = rng.normal(size=N).astype(dtype).astype(np.float64)
        g = np.clip(g, -limit, limit) * scale  # first by value, then by norm
        want = naive.OPTIMIZERS[name](want, g, memory, RATES)

    p, *moments = run(name, dtype, [0, N], guarded, limit, scale)
    tolerance = 1e-13 if dtype == "float64" else 1e-5
    assert relative_error(p, want) < tolerance
    remembered = [m for key, m in memory.items() if key != "step"]
    for got, m in zip(moments, remembered, strict=True):
        assert relative_error(got, m) < tolerance

    part = run(name, dtype, [5, N - 4], guarded, limit, scale)[0]
    middle = slice(5, N - 4)
    assert same_bits(part[middle], p[middle])
    assert same_bits(part[:5], start[:5]) and same_bits(part[N - 4 :], start[N - 4 :])


@each_rule
def test_blocks_do_not_matter(name: str, guarded: Guards) -> None:
    whole = run(name, "float32", [0, N], guarded, 1.5, 0.9)
    for cuts in ([0, 1, 64, N], [0, 17, 18, 50, N]):
        parts = run(name, "float32", cuts, guarded, 1.5, 0.9)
        assert all(same_bits(a, b) for a, b in zip(whole, parts, strict=True))


LONG = 1543


def square_sum(g: np.ndarray, limit: float, i0: int = 0, i1: int = LONG) -> float:
    sums = np.array([5.0, np.nan, 7.0])
    update.square_sum(sums, 1, g, g.dtype.type(limit), i0, i1)
    assert sums[0] == 5 and sums[2] == 7
    return float(sums[1])


@each_dtype
def test_square_sum(dtype: str, guarded: Guards) -> None:
    g = guarded(np.random.default_rng(1).normal(size=LONG).astype(dtype))
    for limit in (np.inf, 0.6):
        clipped = np.clip(g, -g.dtype.type(limit), g.dtype.type(limit)).astype(np.float64)
        for i0, i1 in ((0, LONG), (3, LONG - 90), (5, 21), (7, 9), (4, 4)):
            want = (clipped[i0:i1] ** 2).sum()
            assert square_sum(g, limit, i0, i1) == pytest.approx(want, rel=1e-14)


def test_square_sum_holds_what_float32_cannot() -> None:
    """Squares of float32 numbers are added in float64: neither overflow nor underflow."""
    for size in (1e30, 1e-30):
        g = np.full(LONG, size, np.float32)
        assert square_sum(g, np.inf) == pytest.approx(LONG * size**2, rel=1e-6)


@pytest.mark.parametrize("bound", [np.inf, 3.0, 0.5])
@pytest.mark.parametrize("which", [update.NORM, update.CLIPPED])
def test_factor_of_clipping(bound: float, which: int, guarded: Guards) -> None:
    g = np.random.default_rng(2).normal(size=5)
    g *= 1.25 / np.linalg.norm(g)
    found = guarded(np.full(3, 7.0))
    update.clip_factor(found, guarded(g**2), bound, which)
    assert found[which] == pytest.approx(1.25)
    assert found[update.SCALE] == pytest.approx(min(1.0, bound / 1.25))
    assert found[1 - which] == 7.0  # the other norm stays


@pytest.mark.parametrize("bad", (np.nan, np.inf))
def test_a_norm_that_is_not_finite_shows(bad: float) -> None:
    found, sums = np.ones(3), np.array([1.0, bad])
    update.clip_factor(found, sums, 1.0, update.NORM)
    assert not np.isfinite(found[update.NORM])


def test_rounds_take_their_rows_and_keep_what_they_find(guarded: Guards) -> None:
    rows = np.arange(12, dtype=np.int32).reshape(4, 3)
    out, round = np.zeros(3, np.int32), np.zeros(1, np.int64)
    results, numbers = guarded(np.zeros((4, 3))), guarded(np.ones((2, 5), np.float32))
    for i in range(4):
        rounds.take(out, rows, round)
        assert out.tolist() == [3 * i, 3 * i + 1, 3 * i + 2]
        found = np.array([10.0 + i, 99.0, 0.5 / (1 + i)])
        rounds.keep(results, np.array([1.0 + i]), found, numbers, round)
        assert round[0] == i + 1
        assert numbers.tolist() == [[1.0, np.float32(found[2]), 1.0, 1.0, 1.0]] * 2
    assert results[:, :2].tolist() == [[1 + i, 10 + i] for i in range(4)]
    assert results[:, 2].tolist() == [0.5 / (1 + i) for i in range(4)]


@each_dtype
def test_the_last_state_is_carried(dtype: str, guarded: Guards) -> None:
    x = guarded(np.random.default_rng(3).normal(size=(5, 4, 7)).astype(dtype))
    before = x.copy()
    rounds.carry(x, 1, 3)
    assert same_bits(x[0, 1:3], before[4, 1:3])
    assert same_bits(x[1:], before[1:]) and same_bits(x[0, [0, 3]], before[0, [0, 3]])


@pytest.mark.parametrize("bad", (np.nan, np.inf, -np.inf))
def test_square_sum_shows_what_is_not_finite(bad: float) -> None:
    for place in (0, 20, LONG - 1):
        g = np.ones(LONG, np.float32)
        g[place] = bad
        assert not np.isfinite(square_sum(g, np.inf))

"""The learning rate as a function of the step."""

from __future__ import annotations

from typing import Any

import pytest

from charrnn.config import LEARNING_RATES, TrainConfig
from charrnn.schedules import learning_rate

TOTAL, PER_EPOCH = 1000, 60


def rates(total: int = TOTAL, **options: Any) -> list[float]:
    config = TrainConfig(**{"learning_rate": 2.0, **options})
    return [learning_rate(config, step, total, step // PER_EPOCH) for step in range(total)]


@pytest.mark.parametrize("schedule", ["constant", "step", "cosine", "linear"])
def test_warm_up_rises_linearly_to_the_peak(schedule: str) -> None:
    found = rates(lr_schedule=schedule, warmup_steps=50, lr_decay_after=100)
    assert found[:50] == pytest.approx([2.0 * (step + 1) / 50 for step in range(50)])
    assert found[50] == 2.0
    assert max(found) == 2.0 and min(found) > 0


def test_warm_up_takes_at_most_a_tenth_of_the_run() -> None:
    found = rates(lr_schedule="constant", warmup_steps=10**6)
    assert found[98] < 2.0 and found[99:] == [2.0] * 901
    for total in range(10):  # too short for any
        assert rates(total, lr_schedule="constant") == [2.0] * total


def test_without_warm_up_the_first_step_has_the_peak() -> None:
    for schedule in ("constant", "step", "cosine", "linear"):
        assert rates(lr_schedule=schedule, warmup_steps=0)[0] == 2.0


@pytest.mark.parametrize("schedule, halfway", [("cosine", 0.5), ("linear", 0.5)])
@pytest.mark.parametrize("final", [0.0, 0.25, 1.0])
def test_falling_to_the_final_share(schedule: str, halfway: float, final: float) -> None:
    found = rates(lr_schedule=schedule, warmup_steps=0, lr_final=final)
    assert all(a >= b for a, b in zip(found, found[1:], strict=False))
    assert found[500] == pytest.approx(2.0 * (final + (1 - final) * halfway))
    assert found[-1] == pytest.approx(2.0 * final, abs=2.0 * 1.1 / TOTAL)
    assert final > 0 or found[-1] > 0  # the last step is not wasted


def test_cosine_and_linear_at_a_quarter_after_the_warm_up() -> None:
    step = 100 + 225  # a quarter of the 900 steps that follow the warm-up
    assert rates(lr_schedule="cosine")[step] == pytest.approx(2.0 * (1 + 0.5**0.5) / 2)
    assert rates(lr_schedule="linear")[step] == pytest.approx(2.0 * 0.75)


@pytest.mark.parametrize("after", [0, 1, 2, 5])
def test_step_decays_as_char_rnn_does(after: int) -> None:
    rate, expected = 2.0, []
    for i in range(1, TOTAL + 1):  # char-rnn's loop: train, then perhaps decay
        expected.append(rate)
        if i % PER_EPOCH == 0 and i / PER_EPOCH >= after:
            rate *= 0.9
    found = rates(lr_schedule="step", warmup_steps=0, lr_decay_after=after, lr_decay=0.9)
    assert found == pytest.approx(expected)


@pytest.mark.parametrize("optimizer", LEARNING_RATES)
def test_the_peak_without_an_option_is_the_optimizer_s(optimizer: str) -> None:
    found = rates(optimizer=optimizer, learning_rate=None, lr_schedule="constant")
    assert max(found) == found[-1] == LEARNING_RATES[optimizer]


def test_every_run_length_has_positive_rates() -> None:
    for schedule in ("constant", "step", "cosine", "linear"):
        for total in (1, 2, 3, 10, 11, 99):
            assert all(0 < rate <= 2.0 for rate in rates(total, lr_schedule=schedule))

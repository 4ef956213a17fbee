"""The choice of threads, by made-up times of steps."""

from __future__ import annotations

import random
from collections.abc import Callable

import pytest

from charrnn.threads import Team
from charrnn.tuner import PAUSE, Tuner, sizes

Time = Callable[[int], float]


class Steps:
    """Training steps whose times are made up: a function of the threads."""

    def __init__(self, most: int, time: Time) -> None:
        self.time, self.made, self.notes = time, list[int](), list[str]()
        self.tuner = Tuner(Team(most), sizes(most), lambda n: None)
        self.tuner.begin()

    def step(self) -> None:
        size = self.tuner.team.size
        self.made.append(size)
        note = self.tuner.took(self.time(size))
        self.notes += [note] if note else []

    def search(self) -> int:
        while self.tuner.searching:
            self.step()
        return self.tuner.team.size

    @property
    def lost(self) -> float:
        """Seconds beyond those of the size that was chosen, without the two steps before a turn."""
        best = self.time(self.tuner.team.size)
        return sum(self.time(n) - best for n in self.made[2:])


CURVES: dict[str, tuple[int, Time, int]] = {
    "two are faster": (2, lambda n: 0.01 / n, 2),
    "one is faster": (2, lambda n: 0.01 * n, 1),
    "one by a little": (2, lambda n: 0.01 + 0.0006 * n, 1),
    "no difference": (2, lambda n: 0.01, 2),
    "in the middle": (8, lambda n: 0.02 / n + 0.002 * n, 4),
    "of many, few": (64, lambda n: 1e-3 / n + 1e-4 * n, 4),
    "of many, all": (64, lambda n: 5.0 / n, 64),
    "not twice as many": (12, lambda n: 5.0 / n if n <= 8 else 0.8, 8),
}


@pytest.mark.parametrize("scale", (0.01, 1.0, 500.0), ids=("small", "middle", "large"))
@pytest.mark.parametrize("name", CURVES)
def test_the_fastest_is_chosen(name: str, scale: float) -> None:
    most, time, best = CURVES[name]
    steps = Steps(most, lambda n: scale * time(n))
    assert steps.search() == best
    assert len(steps.notes) == (best < most)
    assert steps.tuner.seconds[best] == pytest.approx(scale * time(best))


@pytest.mark.parametrize("seed", range(40))
@pytest.mark.parametrize("step", (1e-4, 0.01, 0.2, 5.0))
def test_noise_does_not_flip(step: float, seed: int) -> None:
    """Every tenth step takes up to five times as long, all others up to a tenth more."""
    generator = random.Random(seed)

    def noise() -> float:
        return generator.uniform(1, 5) if generator.random() < 0.1 else generator.uniform(1, 1.1)

    assert Steps(2, lambda n: noise() * step * (1, 0.75)[n - 1]).search() == 2
    assert Steps(4, lambda n: noise() * step * (0.8, 0.75, 1, 1.2)[n - 1]).search() in (1, 2)


def test_a_machine_that_slows_down_meanwhile_misleads_nobody() -> None:
    for step in (1e-3, 0.2):
        clock = [0]

        def time(n: int, step: float = step, clock: list[int] = clock) -> float:
            clock[0] += 1
            return step * (1 + clock[0] / 50) * (1.0, 0.8)[n - 1]

        assert Steps(2, time).search() == 2


def test_every_other_round_goes_the_other_way() -> None:
    """Each step takes 4 % more than the one before, and one thread 5 % less than two."""
    found = Steps(2, lambda n: 0.2 * 1.04 ** len(found.made) * (0.95, 1.0)[n - 1])
    assert found.search() == 1


@pytest.mark.parametrize("bad", (1.3, 1.6, 4.0))
def test_one_bad_turn_does_not_decide(bad: float) -> None:
    for unlucky in (1, 2):
        turns = {1: 0, 2: 0}

        def time(n: int, turns: dict[int, int] = turns, unlucky: int = unlucky) -> float:
            turns[n] += 1
            first = {1: 1, 2: 3}[n]  # the first two of all are not counted
            return (0.9, 1.0)[n - 1] * (bad if n == unlucky and turns[n] == first else 1.0)

        assert Steps(2, time).search() == 1


@pytest.mark.parametrize(("most", "steps", "seconds"), [(2, 6, 10), (4, 9, 14), (64, 6, 10)])
def test_long_steps_are_not_wasted(most: int, steps: int, seconds: float) -> None:
    """Of a step that takes all threads 5 seconds, and fewer as many times longer."""
    found = Steps(most, lambda n: 5.0 * most / n)
    assert found.search() == most
    assert len(found.made) <= steps and found.lost <= seconds


def test_short_steps_need_milliseconds() -> None:
    found = Steps(2, lambda n: 1e-4)
    found.search()
    assert sum(map(found.time, found.made)) < 0.05


def test_it_searches_again_now_and_then() -> None:
    busy = True
    found = Steps(2, lambda n: 0.01 * n if busy else 0.02 / n)
    assert found.search() == 1
    busy, pauses = False, list[int]()
    for _ in range(5):
        begun = len(found.made)
        while not found.tuner.searching:
            found.step()
        pauses.append(len(found.made) - begun)
        assert found.search() == 2
        found.time = lambda n: 0.02
    assert 0.02 * pauses[0] >= PAUSE  # a step takes 0.02 s
    assert all(1.9 * a < b < 2.5 * a for a, b in zip(pauses[1:], pauses[2:], strict=False))
    assert [n[:13] for n in found.notes] == ["trains with 1", "trains with 2"]
    assert found.lost < 0.01 * sum(map(found.time, found.made))
    found.tuner.stop()
    for _ in range(100_000):
        found.step()
    assert not found.tuner.searching


@pytest.mark.parametrize("most", (1, 2, 8))
@pytest.mark.parametrize("rule", (False, True), ids=("rows", "units"))
@pytest.mark.parametrize("factor", (0.5, 0.97, 0.995, 1.0, 1.2, 5.0))
def test_the_other_way_of_sharing(factor: float, rule: bool, most: int) -> None:
    """A step the other way takes ``factor`` times as long; numbers of threads are fixed or not."""
    for counts in ([most], sizes(most)):
        team = Team(most)
        tuner = Tuner(team, counts, lambda n: rule if n > 1 else None)
        notes: list[str | None] = []
        for again in range(2):
            tuner.begin()
            while tuner.searching:
                threads, contrary = team.way
                notes.append(tuner.took(0.1 / threads * (factor if contrary else 1)))
            assert team.way == (most, most > 1 and factor < 0.98), again
        shared = "the batch, not a layer's units" if rule else "a layer's units, not the batch"
        wanted = f"its threads share {shared}: faster here"
        assert [note for note in notes if note] == ([wanted] if team.contrary else [])


@pytest.mark.parametrize("lucky", (0, 2, 4, 6))
def test_neighbours_do_not_change_the_way(lucky: int) -> None:
    """All turns of the usual way but one or two are slow: the other seems faster, and is not.

    ``lucky``: how many turns the other way had before that.
    """
    team = Team(2)
    tuner = Tuner(team, [2], lambda n: False)
    tuner.begin()
    others = 0
    while tuner.searching:
        others += team.way.contrary
        usual = 0.1 if others == lucky else 0.13
        tuner.took(0.105 if team.way.contrary else usual)
    assert team.way == (2, False) and others == 7


def test_the_usual_way_comes_back() -> None:
    team = Team(2)
    tuner = Tuner(team, [2], lambda n: False)
    notes: list[str | None] = []
    for factor in (0.5, 2.0):
        tuner.begin()
        while tuner.searching:
            notes.append(tuner.took(0.1 * (factor if team.way[1] else 1)))
    words = [note.split(", not")[0].removeprefix("its threads share ") for note in notes if note]
    assert words == ["a layer's units", "the batch"] and team.way == (2, False)


def test_nothing_to_choose_from() -> None:
    tuner = Tuner(Team(1), [1], lambda n: None)
    tuner.begin()
    assert not tuner.searching and tuner.took(1.0) is None
    tuner = Tuner(Team(3), sizes(3), lambda n: None)  # never asked to begin
    assert [tuner.took(100.0) for _ in range(10)] == [None] * 10
    assert tuner.team.size == 3 and not tuner.searching


def test_sizes() -> None:
    assert sizes(1) == [1]
    assert sizes(6) == [1, 2, 3, 4, 5, 6]
    assert sizes(48) == [1, 2, 3, 4, 5, 6, 7, 8, 16, 32, 48]
    assert sizes(64) == [1, 2, 3, 4, 5, 6, 7, 8, 16, 32, 64]

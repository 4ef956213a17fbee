"""The team of threads: every item once, errors arrive, and it works again afterwards."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest

from charrnn.threads import Team, available, share


@pytest.fixture(params=(1, 2, 7))
def team(request: pytest.FixtureRequest) -> Iterator[Team]:
    team = Team(request.param)
    yield team
    team.close()


def notes(team: Team, count: int) -> list[Any]:
    """What is noted if each of ``count`` items notes its number and then that it is done."""
    noted: list[Any] = []
    team.run([[(noted.append, (i,)), (noted.append, (f"{i} done",))] for i in range(count)])
    return noted


def test_every_item_is_done_once(team: Team) -> None:
    for count in (0, 1, 2, 3, 7, 8, 500):
        noted = notes(team, count)
        assert sorted(map(str, noted)) == sorted(
            [str(i) for i in range(count)] + [f"{i} done" for i in range(count)]
        )
        for i in range(count):
            assert noted.index(i) < noted.index(f"{i} done")


def test_an_item_may_be_empty(team: Team) -> None:
    team.run([[], [], []])


def test_threads_work_side_by_side() -> None:
    """Three items that wait for each other: fewer than three threads would never finish."""
    team, barrier = Team(3), threading.Barrier(3)
    team.run([[(barrier.wait, (10,))] for _ in range(3)])
    team.close()


def test_nothing_runs_on_after_the_return(team: Team) -> None:
    done: list[float] = []

    def slow() -> None:
        time.sleep(0.02)
        done.append(0)

    team.run([[(slow, ())] for _ in range(7)])
    assert len(done) == 7


@pytest.mark.parametrize("bad", (0, 3, 9))
def test_an_error_reaches_the_caller(team: Team, bad: int) -> None:
    def work(i: int) -> None:
        time.sleep(0.001)  # so that every thread gets an item
        if i == bad:
            raise ZeroDivisionError(i)

    for _ in range(3):
        with pytest.raises(ZeroDivisionError, match=str(bad)):
            team.run([[(work, (i,))] for i in range(10)])
        assert len(notes(team, 20)) == 40  # and the team still works


def test_an_error_in_every_thread_is_one_error(team: Team) -> None:
    def fail() -> None:
        time.sleep(0.001)
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        team.run([[(fail, ())] for _ in range(20)])
    assert len(notes(team, 20)) == 40


def test_threads_start_late_and_end(monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[threading.Thread] = []
    start = threading.Thread.start
    monkeypatch.setattr(
        threading.Thread, "start", lambda self: (started.append(self), start(self))[1]
    )
    team = Team(3)
    notes(team, 1)
    assert not started  # one item needs no help
    notes(team, 50)
    notes(team, 50)
    assert len(started) == 2
    team.close()
    for thread in started:
        thread.join(10)
        assert not thread.is_alive()
    assert len(notes(team, 5)) == 10  # a closed team starts again
    team.close()


def test_at_least_one_processor_is_available() -> None:
    assert available() >= 1


@pytest.mark.parametrize("total", (0, 1, 5, 16, 17, 100))
@pytest.mark.parametrize("parts", (1, 2, 3, 7, 40))
@pytest.mark.parametrize("multiple", (1, 16))
def test_shares_cover_everything_once(total: int, parts: int, multiple: int) -> None:
    bounds = [share(total, i, parts, multiple) for i in range(parts)]
    assert [i for a, b in bounds for i in range(a, b)] == list(range(total))
    for a, b in bounds:
        assert all(x % multiple == 0 or x == total for x in (a, b))
    units = [-(-(b - a) // multiple) for a, b in bounds]
    assert max(units) - min(units) <= 1

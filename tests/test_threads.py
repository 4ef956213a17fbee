"""The team of threads: every call once, phases in order, and it works again after an interrupt."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from charrnn import threads
from charrnn.kernels import program
from charrnn.kernels.jit import kernel
from charrnn.kernels.seat import NOWHERE
from charrnn.threads import Phase, Team, available, share


@pytest.fixture(params=(1, 2, 7))
def team(request: pytest.FixtureRequest) -> Iterator[Team]:
    team = Team(request.param)
    yield team
    team.close()


@kernel
def put(out, i, value):
    out[i] += value


@kernel
def add_up(out, i, x):
    """Item i of a phase: what all items of the phase before wrote, and one more."""
    total = 1
    for j in range(x.size):
        total += x[j]
    out[i] = total


def chain(x: np.ndarray) -> list[Phase]:
    """Phases of which each needs all of the one before: row n of ``x`` (n, items) from row n-1."""
    return [
        [[(add_up, (after, i, before))] for i in range(x.shape[1])]
        for before, after in zip(x, x[1:], strict=False)
    ]


def want(x: np.ndarray) -> np.ndarray:
    rows = [0]
    while len(rows) < len(x):
        rows.append(rows[-1] * x.shape[1] + 1)
    return np.repeat(np.array(rows)[:, None], x.shape[1], axis=1)


def test_every_call_is_made_once(team: Team) -> None:
    for count in (0, 1, 2, 3, 7, 8, 500):
        out = np.zeros(count, np.int64)
        work = team.program([[(put, (out, i, 1)), (put, (out, i, 10))] for i in range(count)])
        for n in range(1, 4):
            work.run()
            assert (out == 11 * n).all()
        work.run(5)
        assert (out == 88).all()


def test_numbers_and_arrays_arrive_as_they_are(team: Team) -> None:
    for real in (np.float32, np.float64):
        out = np.zeros((2, 3, 4), real)
        part = out[1, :, 1]  # not contiguous
        team.program([[(put, (part, 2, real(-1.1)))]]).run()
        assert part[2] == real(-1.1) and np.count_nonzero(out) == 1
    out = np.zeros(1, np.int64)
    team.program([[(put, (out, 0, np.uint32(2**32 - 1))), (put, (out, 0, -(2**40)))]]).run()
    assert out[0] == 2**32 - 1 - 2**40


@kernel
def scale(out, i, factor):
    out[i] *= factor


@pytest.mark.skipif(not (program.X86 and program.COMPILED), reason="not for this processor")
@pytest.mark.parametrize("real", [np.float32, np.float64])
def test_no_thread_calculates_with_subnormal_numbers(team: Team, real: type) -> None:
    """They take a hundred times as long. Outside of tables they are what they were."""
    tiny, half = np.finfo(real).tiny, real(0.5)
    subnormal = tiny * half
    for start, factor in ((tiny, half), (subnormal, real(1))):  # as a result, and as an operand
        out = np.full(8, start, real)
        team.program([[(scale, (out, i, factor))] for i in range(8)]).run()
        assert (out == 0).all()
        out[:] = start
        scale(out, 0, factor)
        assert out[0] == subnormal > 0 and tiny * half == subnormal


def test_a_phase_sees_all_of_the_one_before(team: Team) -> None:
    for items in (1, 2, 5, 7):
        x = np.zeros((9, items), np.int64)
        work = team.program(*chain(x))
        for _ in range(200):
            x[1:] = 0
            work.run()
            assert (x == want(x)).all()


def test_programs_of_different_width_take_turns(team: Team) -> None:
    arrays = [np.zeros((5, items), np.int64) for items in (7, 2, 1, 3)]
    programs = [team.program(*chain(x)) for x in arrays]
    for _ in range(50):
        for x, work in zip(arrays, programs, strict=True):
            x[1:] = 0
            work.run()
            assert (x == want(x)).all()


def test_an_item_may_be_empty(team: Team) -> None:
    team.program([[], [], []]).run()
    team.program().run()


def test_an_interrupt_on_the_way_in_stops_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    team, x = Team(3), np.zeros((4, 3), np.int64)
    work = team.program(*chain(x))
    work.run()

    def interrupted(self: program.Table, rounds: int) -> None:
        if threading.current_thread() is threading.main_thread():
            raise KeyboardInterrupt
        walk(self, rounds)

    walk = program.Table.walk
    with monkeypatch.context() as patch:
        patch.setattr(program.Table, "walk", interrupted)
        with pytest.raises(KeyboardInterrupt):
            work.run()
    for _ in range(20):
        x[1:] = 0
        work.run()
        assert (x == want(x)).all()
    team.close()


def test_threads_start_late_and_end(monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[threading.Thread] = []
    start = threading.Thread.start
    monkeypatch.setattr(
        threading.Thread, "start", lambda self: (started.append(self), start(self))[1]
    )
    team, x = Team(3), np.zeros((2, 9), np.int64)
    narrow, wide = team.program(*chain(x[:, :1])), team.program(*chain(x))
    narrow.run()
    assert not started  # one item needs no help
    wide.run()
    wide.run()
    assert len(started) == 2
    team.close()
    for thread in started:
        thread.join(10)
        assert not thread.is_alive()
    x[1:] = 0
    wide.run()  # a closed team starts again
    assert (x == want(x)).all()
    team.close()


def test_a_team_changes_its_size(monkeypatch: pytest.MonkeyPatch) -> None:
    team, x = Team(7), np.zeros((5, 7), np.int64)
    programs = {}
    for size in (7, 1, 3, 7, 2, 3):
        team.resize(size)
        assert team.size == len(team.seats) == size
        programs.setdefault(size, team.program(*chain(x)))
        for work in programs.values():  # those of other sizes, too
            x[1:] = 0
            work.run()
            assert (x == want(x)).all()
    for size in (0, 8):
        with pytest.raises(ValueError):
            team.resize(size)
    team.close()


def test_counters_share_no_cache_line_with_anything() -> None:
    """Threads that meet would take it from each other at every look."""
    team = Team(3)
    (helper,) = team.helpers(1)
    counters = [team.arrivals, NOWHERE, helper._box, *team.seats]
    assert {x.ctypes.data % 64 for x in counters} == {0}
    assert {x.nbytes for x in counters} == {64}
    team.close()


def test_only_threads_that_are_needed_are_started() -> None:
    team = Team(64)
    team.resize(2)
    team.program(*chain(np.zeros((2, 9), np.int64))).run()
    assert len(team.helpers(0)) == 0 and len(team._helpers) == 1
    team.close()


def test_at_least_one_processor_is_available() -> None:
    assert available() >= 1


@pytest.mark.parametrize(
    ("lines", "files", "processors"),
    [
        ("0::/", {"cpu.max": "150000 100000"}, 2),
        ("0::/", {"cpu.max": "max 100000"}, 6),
        ("0::/", {"cpu.max": "1000 100000"}, 1),
        ("0::/a/b", {"a/b/cpu.max": "max 100000", "a/cpu.max": "300000 100000"}, 3),
        ("0::/not/here", {"cpu.max": "400000 100000"}, 4),
        ("0::/", {"cpu.max": "nonsense"}, 6),
        ("0::/", {"cpu.max": "9 0"}, 6),
        ("0::/", {}, 6),
        (
            "3:cpuset:/a\n2:cpu,cpuacct:/a\n1:name=systemd:/\n0::/",
            {
                "cpu,cpuacct/a/cpu.cfs_quota_us": "250000",
                "cpu,cpuacct/a/cpu.cfs_period_us": "50000",
                "cpu,cpuacct/cpu.cfs_quota_us": "-1",
                "cpu,cpuacct/cpu.cfs_period_us": "100000",
            },
            5,
        ),
    ],
)
def test_processors_of_a_container(
    lines: str, files: dict[str, str], processors: int, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    membership, root = tmp_path / "cgroup", tmp_path / "groups"
    membership.write_text(lines + "\n")
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text + "\n")
    monkeypatch.setattr(threads, "MEMBERSHIP", membership)
    monkeypatch.setattr(threads, "CGROUPS", root)
    monkeypatch.setattr("os.sched_getaffinity", lambda pid: set(range(6)), raising=False)
    assert available() == processors
    monkeypatch.setattr(threads, "MEMBERSHIP", tmp_path / "not here")
    assert available() == 6


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

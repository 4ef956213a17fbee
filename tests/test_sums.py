"""Who adds which rows to which of a gradient's sums."""

from __future__ import annotations

import numpy as np
import pytest

from charrnn.kernels import jit
from charrnn.kernels.gemm import DEPTH
from charrnn.sums import FEWEST, MOST, SPAN, Portion, are_halved, portions

COLUMNS = 70


def of_all(rows: int, sums: int, threads: int, again: bool = False) -> list[list[Portion]]:
    return [list(portions(rows, sums, thread, threads, again)) for thread in range(threads)]


@pytest.mark.parametrize("threads", [1, 2, 3, 4, 6, 7])
@pytest.mark.parametrize("sums", [1, 2])
@pytest.mark.parametrize("rows", [1, 16, 17, 33, 100, 511, 512, 513, 1120, 2500])
def test_every_element_is_added_once(rows: int, sums: int, threads: int) -> None:
    count = np.zeros((rows, COLUMNS), int)
    for thread, found in enumerate(of_all(rows, sums, threads)):
        for portion in found:
            assert portion.thread == thread and portion.half < sums
            c0, c1 = portion.share(COLUMNS)
            count[portion.rows, c0:c1] += 1
    assert (count == 1).all()


@pytest.mark.parametrize("threads", [1, 2, 3, 4, 7])
@pytest.mark.parametrize("rows", [16, 100, 513, 1120, 2500])
def test_sums_are_the_same_for_any_threads(rows: int, threads: int) -> None:
    (alone,) = of_all(rows, 2, 1)
    want = {half: [p.rows for p in alone if p.half == half] for half in (0, 1)}
    assert all(want.values())
    for found in of_all(rows, 2, threads):
        for half in {p.half for p in found}:
            mine = [p for p in found if p.half == half]
            assert [p.rows for p in mine] == want[half]
            assert [p.again for p in mine] == [False] + [True] * (len(mine) - 1)
            assert [p.last for p in mine] == [False] * (len(mine) - 1) + [True]


@pytest.mark.parametrize("sums", [1, 2])
def test_the_last_rows_come_first_and_pieces_are_small(sums: int) -> None:
    (found,) = of_all(2500, sums, 1)
    begins = [p.rows.start for p in found]
    assert begins == sorted(begins, reverse=True)
    assert all(p.rows.stop - p.rows.start <= DEPTH for p in found)


@pytest.mark.parametrize("rows", [1120, 1600, 2048, 2500, 6400])
def test_two_threads_have_equal_parts(rows: int) -> None:
    counts = [sum(p.rows.stop - p.rows.start for p in found) for found in of_all(rows, 2, 2)]
    assert max(counts) <= 1.03 * rows / 2


@pytest.mark.parametrize("sums", [1, 2])
def test_segments_are_cut_as_the_whole(sums: int) -> None:
    rows, begin = 5 * SPAN + 100, 2 * SPAN
    (whole,) = of_all(rows, sums, 1)
    (late,), (early,) = of_all(rows - begin, sums, 1), of_all(begin, sums, 1, again=True)
    shifted = [(begin + p.rows.start, begin + p.rows.stop, p.half) for p in late]
    cut = shifted + [(p.rows.start, p.rows.stop, p.half) for p in early]
    assert cut == [(p.rows.start, p.rows.stop, p.half) for p in whole]
    assert all(p.again for p in early)


def test_few_rows_and_many_weights_have_one_sum(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jit, "VECTOR_BITS", 512)
    assert are_halved(MOST * FEWEST, FEWEST)
    assert not are_halved(MOST * FEWEST + 1, FEWEST)
    assert not are_halved(1, FEWEST - 1)
    monkeypatch.setattr(jit, "VECTOR_BITS", 256)
    assert not are_halved(1, FEWEST)

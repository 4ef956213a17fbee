"""Where the time of a training step goes, from timers inside the process.

The kernels of a step are called in the trainer's order, each by all threads before the next. The
cells' time loops are products and elementwise work in one: the same products alone, through
`project` and `back_project` on arrays of the same shapes, are timed beside them, and the rest is
"elementwise". "Python" is what the trainer's own step takes beyond all of this; it can be negative
by a little, since a step meets its threads less often than these timers do.
"""

from __future__ import annotations

import statistics
import time
from collections import Counter, deque
from collections.abc import Callable
from typing import Any

import numpy as np

from charrnn.kernels.softmax import back_project, project

KINDS = {
    "project": "products", "back_project": "products", "weight_product": "weight products",
    "pack": "packing", "pack_t": "packing", "cross_entropy": "softmax",
}  # fmt: skip
"""Kernel -> its column; the cells' own are "loops", all others "gather, sums"."""

COLUMNS = ("products", "weight products", "elementwise", "softmax", "gather, sums", "packing",
           "update", "Python")  # fmt: skip


def kind(kernel: Any) -> str:
    function = getattr(kernel, "py_func", kernel)
    if function.__module__.startswith("charrnn.cells"):
        return "loops"
    return KINDS.get(function.__name__, "gather, sums")


def phases(run: Any, step: Callable[[], int], steps: int) -> dict[str, float]:
    """Milliseconds of a training step by column, medians.

    ``step`` is the trainer's own; it returns how many steps it has made in one go.
    """
    parts = _parts(run)
    inside = run.model.team.program(_loop_products(run))
    found, loops, whole = [], [], []
    for _ in range(steps + 1):
        found.append(Counter[str]())
        for name, work in parts:
            found[-1][name] += _seconds(work)
        loops.append(_seconds(inside.run))
        began = time.perf_counter()
        count = step()
        whole.append((time.perf_counter() - began) / count)
    median = {name: statistics.median(c[name] for c in found[1:]) for name in found[0]}
    products = statistics.median(loops[1:])
    median["elementwise"] = median.pop("loops") - products
    median["products"] += products
    taken = statistics.median(whole[1:])
    median["Python"] = taken - sum(median.values())
    return {name: 1e3 * median[name] for name in COLUMNS} | {"step": 1e3 * taken}


def _parts(run: Any) -> list[tuple[str, Callable[[], object]]]:
    """A training step cut into its kernels: the column of each, and what runs it."""
    parts: list[tuple[str, Callable[[], object]]] = []
    for phase in run.learner.window.phases():
        queues = [deque(item) for item in phase]
        while any(queues):  # the same kernel on all threads, in the order of each
            kernel = max(queues, key=len)[0][0]
            calls = [[q.popleft()] for q in queues if q and q[0][0] is kernel]
            parts.append((kind(kernel), run.model.team.program(calls).run))
    clipping = run.learner.optimizer.clip()
    parts.append(("update", run.learner.optimizer.clip))
    parts.append(("update", lambda: run.learner.optimizer.step(1e-3, 1, clipping)))
    return parts


def _loop_products(run: Any) -> list[Any]:
    """Calls of the recurrent products of all layers alone, on the window's own arrays."""
    items: list[Any] = [[] for _ in run.learner.window.shares]
    for k, w in zip(run.learner.window.stack.k, run.learner.window.window.w, strict=True):
        h, dh, gates = w["h"][:-1], w["dh"], w["gates"]
        for name in (n for n in k if n.startswith("Wh") and n + "T" in k):
            back = k[name + "T"]
            N = back.shape[1] * (1 if back.dtype == h.dtype else 2)  # pairs of bfloat16
            bias = np.zeros(N, h.dtype)
            for item, part in zip(items, run.learner.window.shares, strict=True):
                item.append((project, (gates, h, k[name], bias, *part.rows, part.seat, part.code)))
                item.append((back_project, (dh, gates, back, N, *part.rows, part.seat, part.code)))
    return items


def _seconds(work: Callable[[], object]) -> float:
    began = time.perf_counter()
    work()
    return time.perf_counter() - began

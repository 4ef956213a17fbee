"""Where the time of a training step goes, from timers inside the process.

The calls of a burst's first thread get a call that reads the processor's clock behind each of them,
while the trainer goes on as ever. The cells' time loops are products and elementwise work in one:
the same products alone, through `project` and `back_project` on arrays of the same shapes, are
timed beside them, and the rest is "elementwise". "waiting" is what the first thread waits for
others, and "Python" what the trainer's own step takes beyond all of this.
"""

from __future__ import annotations

import platform
import statistics
import time
from collections import Counter
from collections.abc import Callable
from typing import Any

import numpy as np
from llvmlite import ir
from numba.core import types
from numba.extending import intrinsic

from charrnn.kernels.jit import kernel
from charrnn.kernels.program import Table
from charrnn.kernels.softmax import back_project, project
from charrnn.kernels.tile import tile_of

KINDS = {
    "project": "products", "back_project": "products", "weight_product": "weight products",
    "pack": "packing", "pack_t": "packing", "cross_entropy": "softmax", "meet": "waiting",
}  # fmt: skip
"""Kernel -> its column; the cells' own are "loops", all others "gather, sums"."""

COLUMNS = ("products", "weight products", "elementwise", "softmax", "gather, sums", "packing",
           "update", "waiting", "Python")  # fmt: skip


@intrinsic
def _clock(typingctx):
    """A count that goes on evenly, whatever the processor does."""
    name = "readcyclecounter" if platform.machine() in ("x86_64", "AMD64") else "readsteadycounter"

    def codegen(context, builder, signature, args):
        kind = ir.FunctionType(ir.IntType(64), [])
        return builder.call(builder.module.declare_intrinsic(f"llvm.{name}", fnty=kind), [])

    return types.int64(), codegen


@kernel
def stamp(counts, last, column):
    """All since ``last[0]``, when this was called before, is counted in a column."""
    now = _clock()
    counts[column] += now - last[0]
    last[0] = now


def kind(kernel: Any) -> str:
    function = getattr(kernel, "py_func", kernel)
    module = function.__module__
    if module.startswith("charrnn.cells"):
        return "loops"
    if module in ("charrnn.kernels.update", "charrnn.kernels.rounds"):
        return "update"
    return KINDS.get(function.__name__, "gather, sums")


class Stamps:
    """Counts what the first thread of a program does, by kind."""

    def __init__(self, program: Any) -> None:
        calls = program.tables[0].calls
        self.kinds = ["begin", *dict.fromkeys(kind(kernel) for kernel, _ in calls)]
        self.counts, last = np.zeros(len(self.kinds), np.int64), np.zeros(1, np.int64)
        stamped = [(stamp, (self.counts, last, 0))]
        for call in calls:
            column = self.kinds.index(kind(call[0]))
            stamped += [call, (stamp, (self.counts, last, column))]
        program.tables[0] = Table(stamped)

    def shares(self) -> dict[str, float]:
        """Kind -> its share of a round; and count anew."""
        counts = dict(zip(self.kinds, self.counts.tolist(), strict=True))
        del counts["begin"]  # what was between two programs
        self.counts[:] = 0
        return {name: count / sum(counts.values()) for name, count in counts.items()}


def phases(run: Any, step: Callable[[], int], turns: int) -> dict[str, float]:
    """Milliseconds of a training step by column, medians.

    ``step`` is the trainer's own; it returns how many steps it has made in one go.
    """
    while run.tuner.searching:
        step()
    longest = run.learner.window
    window = longest.of_length(len(longest.ids))  # that is divided as the tuner has found best
    program = run.learner.burst(window).program
    stamps, inside = Stamps(program), run.model.team.program(_loop_products(window))
    seconds: list[float] = []  # of a round, of each burst
    walk = program.run

    def timed(rounds: int) -> None:
        began = time.perf_counter()
        walk(rounds)
        seconds.append((time.perf_counter() - began) / rounds)

    program.run = timed
    found, loops, whole = [], [], []
    while len(found) < turns + 1:
        began = time.perf_counter()
        count = step()
        taken = (time.perf_counter() - began) / count
        if count == 1:
            continue
        whole.append(taken)
        round = seconds[-1]
        found.append(Counter({name: share * round for name, share in stamps.shares().items()}))
        began = time.perf_counter()
        inside.run(count)
        loops.append((time.perf_counter() - began) / count)
    median = {name: statistics.median(c[name] for c in found[1:]) for name in found[0]}
    products = statistics.median(loops[1:])
    median["elementwise"] = median.pop("loops") - products
    median["products"] += products
    taken = statistics.median(whole[1:])
    median["Python"] = taken - sum(median.values())
    return {name: 1e3 * median.get(name, 0.0) for name in COLUMNS} | {"step": 1e3 * taken}


def _loop_products(train: Any) -> list[Any]:
    """Calls of the recurrent products of all layers alone, on the window's own arrays."""
    items: list[Any] = [[] for _ in train.shares]
    for k, w in zip(train.stack.k, train.window.w, strict=True):
        h, dh, gates = w["h"][:-1], w["dh"], w["gates"]
        for name in (n for n in k if n.startswith("Wh") and n + "T" in k):
            back = k[name + "T"]
            # Pairs of bfloat16, or of three parts; padded, but no row of the scripts' needs it.
            packed = {np.dtype(np.uint32): 2.0, np.dtype(np.int32): 2 / 3}.get(back.dtype, 1.0)
            N = round(back.shape[1] * packed)
            bias = np.zeros(N, h.dtype)
            for item, part in zip(items, train.shares, strict=True):
                tiles = tile_of(k[name]), tile_of(back)
                item.append((project, (gates, h, k[name], bias, *part.rows, part.seat, tiles[0])))
                item.append((back_project, (dh, gates, back, N, *part.rows, part.seat, tiles[1])))
    return items

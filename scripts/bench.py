"""Times whole training steps against PyTorch, in turn, and prints a table in Markdown.

All sides get the same weights and the same text. A child process first checks that they compute the
same loss, the same gradients, element by element, and the same training steps; then each trains in
a child of its own that sleeps while the others work: forward, BPTT, clipping by norm, Adam and all
else that a trainer does in a step. PyTorch runs on its own recurrent modules with fused Adam, with
the better of one and all threads; beside it `torch.compile` of a hand-written cell in a loop over
time, where there is a C++ compiler. The share of the limit is useful multiply-adds (no padding) per
second over the float32 rate that this same run measures on all threads. Our memory is that of
`charrnn train`, as a process, with validation and checkpoint; PyTorch's is that of its steps alone.
Needs the extra `torch`; without it, our own side alone is timed.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import sys
import tempfile
import time
from importlib.util import find_spec
from typing import Any

from memory import measured
from rows import ROWS, Row, machine, markdown, versions
from sides import PAUSE, Child

COMPILE_TURNS = 2
"""Turns of `torch.compile`, whose steps take up to some seconds each."""


PHASE_STEPS = 15
"""Steps whose phases are timed."""


class Bench:
    """The options of a run of this script, and its measurements."""

    def __init__(self, args: argparse.Namespace) -> None:
        self.args = args
        self.torch = find_spec("torch") is not None
        self.compiled = self.torch and args.compile
        self.compiler_cache = tempfile.TemporaryDirectory()

    def row(self, row: Row) -> dict[str, Any]:
        """Check and time one row."""
        threads, precision, seconds = self.args.threads, self.args.precision, self.args.seconds
        result: dict[str, Any] = {"row": row.title}
        if self.torch:
            check = Child("check", row, threads, precision)
            result |= check.ask("check")
            check.close()
        children = [Child("ours", row, threads, precision)]
        children[0].ask(f"time {seconds / 2}")  # warm up
        if self.torch:
            chosen, peer = self._best_peer(row)
            children.append(peer)
            result["torch_threads"] = chosen
        turns = [[c.ask(f"time {seconds}") for c in children] for _ in range(self.args.rounds)]
        for child in children:
            child.close()
        rates = [[side["chars_per_second"] for side in turn] for turn in turns]
        limit = max(turn[0]["limit"] for turn in turns)
        result["ours"] = summary([r[0] for r in rates])
        result["limit_gflops"] = limit / 1e9
        result["share"] = result["ours"]["median"] * row.flop / limit
        result["memory_mb"] = measured(row, threads, precision)
        if self.torch:
            result["torch"] = summary([r[1] for r in rates])
            result["ratio"] = statistics.median(r[0] / r[1] for r in rates)
            result["torch_memory_mb"] = turns[-1][1]["memory"] / 1e6
        if self.compiled:
            result["torch_compile"] = self._compiled(row, result["torch_threads"])
        return result

    def _best_peer(self, row: Row) -> tuple[int, Child]:
        """PyTorch with the better of one and all threads, warm."""
        args = self.args
        peers = {n: Child("torch", row, n, args.precision) for n in sorted({1, args.threads})}
        speeds = {}
        for threads, child in peers.items():
            child.ask(f"time {args.seconds / 2}")
            speeds[threads] = child.ask(f"time {args.seconds}")["chars_per_second"]
        best = max(speeds, key=speeds.__getitem__)
        for threads, child in peers.items():
            if threads != best:
                child.close()
        return best, peers[best]

    def _compiled(self, row: Row, threads: int) -> dict[str, float]:
        cache = self.compiler_cache.name  # else each row would compile the same headers
        child = Child("compile", row, threads, self.args.precision, TORCHINDUCTOR_CACHE_DIR=cache)
        warm = child.ask("time 0")
        turns = [child.ask(f"time {self.args.seconds}") for _ in range(COMPILE_TURNS)]
        child.close()
        found = summary([turn["chars_per_second"] for turn in turns])
        return found | {"compile_seconds": warm["compile_seconds"]}

    def cold_start(self, row: Row) -> float:
        """Seconds of a process until its first step has ended, with no kernel cache."""
        began = time.perf_counter()
        with tempfile.TemporaryDirectory() as cache:
            child = Child(
                "ours", row, self.args.threads, self.args.precision, CHARRNN_CACHE_DIR=cache
            )
            child.ask("step")
            seconds = time.perf_counter() - began - PAUSE
            child.close()
        return seconds


def phase_table(args: argparse.Namespace) -> str:
    """Where a step's time goes, row by row."""
    lines: list[list[str]] = []
    for row in args.rows:
        child = Child("ours", row, args.threads, args.precision)
        found = child.ask(f"phases {PHASE_STEPS}")
        child.close()
        ideal = 1e3 * row.B * row.T * row.flop / found.pop("limit")
        head = ["ms of a step", *found, "at the limit"]
        lines.append([row.title, *(f"{ms:.2f}" for ms in found.values()), f"{ideal:.2f}"])
    note = f"{machine()}; {args.threads} threads; {args.precision}; {versions()}."
    return f"{markdown(head, lines)}\n\n{note}"


def summary(values: list[float]) -> dict[str, float]:
    median = statistics.median(values)
    return {"median": median, "spread": (max(values) - min(values)) / median}


def table(found: dict[str, Any]) -> str:
    """The measurements as Markdown."""
    head = ["configuration", "charrnn, chars/s", "share of the limit", "PyTorch, chars/s",
            "times PyTorch", "`torch.compile`, chars/s (compiling)",
            "memory, MB", "PyTorch, MB", "share"]  # fmt: skip
    lines = []
    for r in found["rows"]:
        line = [r["row"], speed(r["ours"]), f"{r['share']:.0%}", "", "", "left out"]
        if "torch" in r:
            line[3:5] = f"{speed(r['torch'])}, {r['torch_threads']} thr.", f"{r['ratio']:.2f}"
        if "torch_compile" in r:
            compiled = r["torch_compile"]
            line[5] = f"{compiled['median']:,.0f} ({compiled['compile_seconds']:.0f} s)"
        line += [f"{r['memory_mb']:.0f}", "", ""]
        if "torch" in r:
            share = r["memory_mb"] / r["torch_memory_mb"]
            line[7:] = f"{r['torch_memory_mb']:.0f}", f"{share:.0%}"
        lines.append(line)
    limit = statistics.median(r["limit_gflops"] for r in found["rows"])
    starts = ", ".join(f"{name} {s:.1f} s" for name, s in found["compile_seconds"].items())
    notes = [
        f"{found['machine']}; {found['threads']} threads; {found['precision']}; "
        f"limit {limit:.0f} GFLOP/s (float32); {found['versions']}.",
        f"Medians of {found['rounds']} turns of {found['seconds']:g} s, in parentheses the "
        "spread, (largest - smallest) / median.",
        f"First step with no kernel cache, all compiling included, once an installation: {starts}.",
    ]
    differences = [r["gradient_difference"] for r in found["rows"] if "gradient_difference" in r]
    if differences:
        notes.append(
            "Largest difference from PyTorch's gradients, as a share of the tensor's largest "
            f"element: {max(differences):.0e}."
        )
    if not found["compile"]:
        notes.append(f"`torch.compile` is left out: {found['why']}.")
    return "\n".join([markdown(head, lines), "", *notes])


def speed(values: dict[str, float]) -> str:
    return f"{values['median']:,.0f} ({values['spread']:.0%})"


def compiler() -> str | None:
    """The C++ compiler that `torch.compile` would use."""
    return shutil.which(os.environ.get("CXX") or ("cl" if os.name == "nt" else "g++"))


def arguments() -> argparse.Namespace:
    names = "\n".join(f"  {i}  {row.title}" for i, row in enumerate(ROWS, 1))
    parser = argparse.ArgumentParser(
        description=__doc__, epilog="rows:\n" + names,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    add = parser.add_argument
    add("--rows", help="numbers of the rows, such as 1,5  (default: all)")
    add("--threads", type=int, default=os.cpu_count(), help="default: all cores")
    add("--rounds", type=int, default=5, help="turns of each side (default 5)")
    add("--seconds", type=float, default=1.5, help="of a turn (default 1.5)")
    add("--precision", choices=["float32", "bf16"], default="float32", help="default float32; "
        "bf16 is against PyTorch's autocast")  # fmt: skip
    add("--compile", action=argparse.BooleanOptionalAction, default=compiler() is not None,
        help="torch.compile too (default: if there is a C++ compiler)")  # fmt: skip
    add("--phases", action="store_true", help="instead: where the time of our steps goes")
    add("--json", action="store_true", help="print JSON instead of the table")
    args = parser.parse_args()
    args.rows = [ROWS[int(n) - 1] for n in args.rows.split(",")] if args.rows else ROWS
    return args


def main() -> None:
    args = arguments()
    if args.phases:
        print(phase_table(args))
        return
    bench = Bench(args)
    found: dict[str, Any] = {
        "machine": machine(), "versions": versions(), "threads": args.threads,
        "precision": args.precision, "rounds": args.rounds, "seconds": args.seconds,
        "compile": bench.compiled, "rows": [],
    }  # fmt: skip
    if not bench.compiled:
        no_compiler = compiler() is None
        found["why"] = "there is no C++ compiler" if no_compiler else "it was not asked for"
    # Rows of one cell share their kernels, but an embedding has some more.
    cells = {row.model + (" with embedding" if row.E else ""): row for row in reversed(args.rows)}
    found["compile_seconds"] = {name: bench.cold_start(row) for name, row in cells.items()}
    for row in args.rows:
        found["rows"].append(bench.row(row))
        print(json.dumps(found["rows"][-1]), file=sys.stderr, flush=True)
    print(json.dumps(found, indent=2) if args.json else table(found))


if __name__ == "__main__":
    main()

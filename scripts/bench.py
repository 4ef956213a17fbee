"""Times whole training steps against PyTorch, in turn, and prints a table in Markdown.

All sides get the same weights and the same text. A child process first checks that they compute the
same loss, the same gradients, element by element, and the same training steps; then each trains in
a child of its own that sleeps while the others work: forward, BPTT, clipping by norm, Adam and all
else that a trainer does in a step. PyTorch runs on its own recurrent modules with fused Adam, with
the better of one and all threads and in the fastest of three processes; beside it `torch.compile`
of a hand-written cell in a loop over time, where there is a C++ compiler. The share of the limit is
useful multiply-adds (no padding) per second over the float32 rate that this same run measures on
all threads. Our memory is that of `charrnn train`, as a process, with validation and checkpoint;
PyTorch's is that of its steps alone.
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
from operator import itemgetter
from typing import TYPE_CHECKING, Any

from memory import measured
from rows import ROWS, Row, environment, machine, markdown, versions

from charrnn.child import Child
from charrnn.peer import PAUSE

if TYPE_CHECKING:
    from charrnn.peer import Task

PEERS = 3
"""Processes of PyTorch, whose luck with memory makes up to a third of their speed at lstm 2x128."""
COMPILE_TURNS = 2
"""Turns of `torch.compile`, whose steps take up to some seconds each."""


PHASE_TURNS, LONG = 9, 2.0
"""Bursts of steps whose phases are timed, and their pace: long steps come in bursts, too."""


class Bench:
    """The options of a run of this script, and its measurements."""

    def __init__(self, args: argparse.Namespace) -> None:
        self.args = args
        self.torch = find_spec("torch") is not None
        self.compiled = self.torch and args.compile
        self.compiler_cache = tempfile.TemporaryDirectory()

    def row(self, row: Row) -> dict[str, Any]:
        """Check and time one row."""
        from sides import Ours

        threads, precision, seconds = self.args.threads, self.args.precision, self.args.seconds
        result: dict[str, Any] = {"row": row.title}
        task = row.task(threads, precision)
        if self.torch:
            result["gradient_difference"] = checked(task)
        ours = Child(Ours, task)
        children = [ours]
        ours.ask("train", seconds / 2)  # warm up
        if self.torch:
            peer, result["torch_threads"] = self._best_peer(task)
            children.append(peer)
        rates, limit = [], 0.0
        for _ in range(self.args.rounds):
            rates.append([rested(child, "train", seconds) for child in children])
            limit = max(limit, rested(ours, "limit"))
        if self.torch:
            result["torch_memory_mb"] = peer.ask("memory") / 1e6
        for child in children:
            child.close()
        result["ours"] = summary([r[0] for r in rates])
        result["limit_gflops"] = limit / 1e9
        result["share"] = result["ours"]["median"] * row.flop / limit
        result["memory_mb"] = measured(row, threads, precision)
        if self.torch:
            result["torch"] = summary([r[1] for r in rates])
            result["ratio"] = statistics.median(r[0] / r[1] for r in rates)
        if self.compiled:
            result["torch_compile"] = self._compiled(row, result["torch_threads"])
        return result

    def _best_peer(self, task: Task) -> tuple[Child, int]:
        """The fastest of `PEERS` processes of PyTorch, and of one and all threads, left warm."""
        from peers import Peer

        seconds, found = self.args.seconds, []
        for _ in range(PEERS):
            peer = Child(Peer, task)
            for threads in sorted({1, self.args.threads}):
                peer.ask("use", threads)
                rested(peer, "train", seconds / 2)
                found.append((peer.ask("train", seconds), peer, threads))
        _, best, threads = max(found, key=itemgetter(0))
        for peer in {peer for _, peer, _ in found} - {best}:
            peer.close()
        best.ask("use", threads)
        rested(best, "train", seconds / 2)
        return best, threads

    def _compiled(self, row: Row, threads: int) -> dict[str, float]:
        from peers import Compiled

        cache = self.compiler_cache.name  # else each row would compile the same headers
        with environment(TORCHINDUCTOR_CACHE_DIR=cache):
            child = Child(Compiled, row.task(threads, self.args.precision))
        child.ask("use", threads)
        seconds = child.ask("compile")
        turns = [rested(child, "train", self.args.seconds) for _ in range(COMPILE_TURNS)]
        child.close()
        return summary(turns) | {"compile_seconds": seconds}

    def cold_start(self, row: Row) -> float:
        """Seconds of a process until its first step has ended, with no kernel cache."""
        from sides import Ours

        with tempfile.TemporaryDirectory() as cache, environment(CHARRNN_CACHE_DIR=cache):
            began = time.perf_counter()
            child = Child(Ours, row.task(self.args.threads, self.args.precision))
            child.ask("step")
            seconds = time.perf_counter() - began
            child.close()
        return seconds


def checked(task: Task) -> float:
    """The largest difference of a gradient from PyTorch's, as a share of its tensor's largest one.

    In one of 28 processes PyTorch's rnn gave another gradient than in the others and than its own
    unrolled loop, with which ours agreed (1.8e-5; ours had the same bits in all). Then, and only
    then, it is asked once more. A gradient that agrees with neither ends the benchmark at once.
    """
    from sides import BOUNDS

    bound = BOUNDS[task.config.model.precision].gradient
    for _ in range(2):
        found = _check(task)
        if found <= bound:
            return found
        print(f"{task.title}: PyTorch's gradients differ by {found:.1e}", file=sys.stderr)
    raise ValueError(f"{task.title}: a gradient differs by {found:.1e} from one of PyTorch's two")


def _check(task: Task) -> float:
    from sides import Check

    child = Child(Check, task)
    try:
        return float(child.ask("check"))
    finally:
        child.close()


def rested(child: Child, method: str, *arguments: float) -> Any:
    """Ask when the threads of whoever was asked before have come to rest."""
    time.sleep(PAUSE)
    return child.ask(method, *arguments)


def phase_table(args: argparse.Namespace) -> str:
    """Where a step's time goes, row by row."""
    from sides import Ours

    lines: list[list[str]] = []
    for row in args.rows:
        child = Child(Ours, row.task(args.threads, args.precision), LONG)
        found, limit = child.ask("phases", PHASE_TURNS), child.ask("limit")
        child.close()
        ideal = 1e3 * row.B * row.T * row.flop / limit
        head = ["ms of a step", *found, "at the limit"]
        lines.append([row.title, *(f"{ms:.3g}" for ms in found.values()), f"{ideal:.3g}"])
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

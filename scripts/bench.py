"""Times whole training steps against PyTorch, side by side, and prints a table in Markdown.

Both sides get the same weights and the same text, are first checked to give the same loss and the
same gradients, then train in turn, each in a child process that sleeps while the other one works:
forward, BPTT, clipping by norm, Adam and all else that a trainer does in a step. PyTorch runs
with the better of one and all threads, on its own recurrent modules, with fused Adam. The share of
the limit is useful multiply-adds (no padding) per second over the rate that this same run measures
for this processor. Needs the extra `torch`; without it, our own side alone is timed.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))


class Row(NamedTuple):
    """A configuration: cell, layers, hidden, batch, window, vocabulary, embedding."""

    model: str
    L: int
    H: int
    B: int
    T: int
    V: int = 65
    E: int = 0

    @property
    def title(self) -> str:
        more = f", V {self.V}, embedding {self.E}" if self.E else ""
        return f"{self.model} {self.L}x{self.H}, B {self.B}, T {self.T}{more}"

    @property
    def flop_per_char(self) -> float:
        """Useful operations of a training step for each character: three products a weight."""
        G = {"lstm": 4, "gru": 3}.get(self.model, 1)
        weights = G * self.H * self.H * (2 * self.L - 1) + self.H * self.V + G * self.H * self.E
        return 3 * 2 * weights


ROWS = [
    Row("rnn", 1, 100, 1, 25),
    Row("lstm", 1, 100, 1, 25),
    Row("rnn", 1, 256, 32, 35),
    Row("lstm", 2, 128, 50, 50),
    Row("lstm", 1, 256, 32, 64),
    Row("gru", 1, 256, 32, 64),
    Row("lstm", 1, 512, 32, 35),
    Row("lstm", 2, 512, 64, 100),
    Row("gru", 2, 512, 64, 100),
    Row("lstm", 1, 256, 32, 64, V=4500, E=256),
]
RATE, CLIP = 1e-3, 5.0
PAUSE = 0.5
"""Seconds between turns: OpenMP's threads spin for some 0.2 s after their last work."""


# -- child processes ----------------------------------------------------------------------------


def serve(side: Any) -> None:
    """Answer the parent's lines: ``check`` or ``time <seconds>``, one JSON line each."""
    for line in sys.stdin:
        word, *rest = line.split()
        answer = side.check() if word == "check" else side.time(float(rest[0]))
        print(json.dumps(answer), flush=True)


def peak_memory() -> int:
    """Most resident memory of this process so far, in bytes."""
    import resource

    used = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return used if sys.platform == "darwin" else used * 1024


def timed(step: Any, chars: int, seconds: float) -> dict[str, float]:
    began, steps = time.perf_counter(), 0
    while time.perf_counter() - began < seconds or steps == 0:
        step()
        steps += 1
    return {
        "chars_per_second": steps * chars / (time.perf_counter() - began),
        "memory": peak_memory(),
    }


class Ours:
    """The trainer itself, event by event."""

    def __init__(self, row: Row, folder: Path, threads: int) -> None:
        import numpy as np
        from safetensors.numpy import save_file

        from charrnn.config import Config
        from charrnn.kernels.peak import peak_flops
        from charrnn.trainer import Run, Text
        from charrnn.vocab import Vocabulary

        self.row, self.folder = row, folder
        rng = np.random.default_rng(1)
        self.window = rng.integers(row.V, size=(row.T + 1, row.B))
        ids = rng.integers(row.V, size=row.B * row.T * 20 + 1)
        np.save(folder / "ids.npy", ids)
        np.save(folder / "window.npy", self.window)
        options = dict(
            model=row.model, hidden_size=row.H, num_layers=row.L, embedding_size=row.E,
            batch_size=row.B, seq_length=row.T, dropout=0.0, threads=threads,
            optimizer="adam", learning_rate=RATE, lr_schedule="constant", warmup_steps=0,
            beta1=0.9, beta2=0.999, grad_clip=CLIP,
            max_steps=10**9, eval_every=0, checkpoint_every=0,
        )  # fmt: skip
        vocabulary = Vocabulary("char", tuple(chr(0x4E00 + i) for i in range(row.V)))
        text = Text(vocabulary, ids, ids[:0], ids[:0], row.B, row.T, {}, [])
        self.run = Run(folder, Config.from_options(options), text)
        self.run.model.initialize(1)
        began = time.perf_counter()
        self.gradients = self.run.model.gradients(self.window[:-1], self.window[1:])
        self.compile_seconds = time.perf_counter() - began
        weights = self.run.model.to_torch(self.run.model.params)
        save_file({k: np.ascontiguousarray(v) for k, v in weights.items()}, folder / "w.st")
        self.peak = peak_flops(self.run.model.team)
        self.events = self.run.events()

    def check(self) -> dict[str, Any]:
        import numpy as np

        norms = {k: float(np.linalg.norm(v)) for k, v in self.gradients.weights.items()}
        return {"loss": self.gradients.loss, "norms": norms, "peak": self.peak,
                "compile_seconds": self.compile_seconds}  # fmt: skip

    def step(self) -> None:
        while next(self.events)["event"] != "step":
            pass

    def time(self, seconds: float) -> dict[str, float]:
        from charrnn.kernels.peak import peak_flops

        answer = timed(self.step, self.row.B * self.row.T, seconds)
        return answer | {"peak": peak_flops(self.run.model.team, seconds=0.1)}


class Torch:
    """A careful PyTorch trainer of the same network."""

    def __init__(self, row: Row, folder: Path, threads: int) -> None:
        import numpy as np
        import torch
        from safetensors.torch import load_file

        torch.set_num_threads(threads)
        self.torch, self.row = torch, row
        window = torch.tensor(np.load(folder / "window.npy"))
        self.check_ids, self.check_targets = window[:-1], window[1:]
        ids = torch.tensor(np.load(folder / "ids.npy"))
        n = (len(ids) - 1) // row.B
        self.ids = ids[: n * row.B].view(row.B, n).t().contiguous()
        self.targets = ids[1 : n * row.B + 1].view(row.B, n).t().contiguous()
        module = {"lstm": torch.nn.LSTM, "gru": torch.nn.GRU, "rnn": torch.nn.RNN}[row.model]
        parts = {"rnn": module(row.E or row.V, row.H, row.L), "head": torch.nn.Linear(row.H, row.V)}
        if row.E:
            parts["embedding"] = torch.nn.Embedding(row.V, row.E)
        self.net = torch.nn.ModuleDict(parts)
        self.net.load_state_dict(load_file(folder / "w.st"))
        self.optimizer = torch.optim.Adam(self.net.parameters(), lr=RATE, fused=True)
        self.state, self.position = None, 0

    def loss(self, ids: Any, targets: Any, state: Any) -> tuple[Any, Any]:
        F, row = self.torch.nn.functional, self.row
        x = self.net["embedding"](ids) if row.E else F.one_hot(ids, row.V).float()
        output, state = self.net["rnn"](x, state)
        logits = self.net["head"](output)
        return F.cross_entropy(logits.view(-1, row.V), targets.reshape(-1)), state

    def check(self) -> dict[str, Any]:
        loss, _ = self.loss(self.check_ids, self.check_targets, None)
        loss.backward()
        norms = {k: float(p.grad.norm()) for k, p in self.net.named_parameters()}
        return {"loss": float(loss.detach()), "norms": norms}

    def step(self) -> None:
        T, t = self.row.T, self.position
        if t == 0:
            self.state = None
        ids, targets = self.ids[t : t + T], self.targets[t : t + T]
        self.position = t + T if t + 2 * T <= len(self.ids) else 0
        self.optimizer.zero_grad(set_to_none=True)
        loss, state = self.loss(ids, targets, self.state)
        loss.backward()
        self.torch.nn.utils.clip_grad_norm_(self.net.parameters(), CLIP)
        self.optimizer.step()
        self.state = (
            tuple(s.detach() for s in state) if isinstance(state, tuple) else state.detach()
        )
        loss.item()

    def time(self, seconds: float) -> dict[str, float]:
        return timed(self.step, self.row.B * self.row.T, seconds)


# -- the parent ---------------------------------------------------------------------------------


class Child:
    """One side in a process of its own; it sleeps on its pipe until asked."""

    def __init__(self, side: str, index: int, folder: str, threads: int) -> None:
        command = [sys.executable, __file__, "--side", side, "--folder", folder]
        self.process = subprocess.Popen(
            [*command, "--rows", str(index + 1), "--threads", str(threads)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )  # fmt: skip

    def ask(self, line: str) -> Any:
        assert self.process.stdin and self.process.stdout
        time.sleep(PAUSE)
        self.process.stdin.write(line + "\n")
        self.process.stdin.flush()
        answer = self.process.stdout.readline()
        if not answer:
            raise SystemExit(f"a child process ended: status {self.process.wait()}")
        return json.loads(answer)

    def close(self) -> None:
        assert self.process.stdin
        self.process.stdin.close()
        self.process.wait()


def compare(index: int, threads: int, rounds: int, seconds: float, torch: bool) -> dict[str, Any]:
    """Check and time one row."""
    row = ROWS[index]
    with tempfile.TemporaryDirectory() as folder:
        ours = Child("ours", index, folder, threads)
        mine = ours.ask("check")
        theirs = [Child("torch", index, folder, n) for n in sorted({1, threads})] if torch else []
        for child in theirs:
            check(row, mine, child.ask("check"))
        for child in [ours, *theirs]:
            child.ask(f"time {seconds / 2}")  # warm up
        if len(theirs) == 2:
            speeds = [child.ask(f"time {seconds}")["chars_per_second"] for child in theirs]
            theirs.pop(speeds.index(min(speeds))).close()
        pairs = [[child.ask(f"time {seconds}") for child in [ours, *theirs]] for _ in range(rounds)]
        for child in [ours, *theirs]:
            child.close()
    rates = [[side["chars_per_second"] for side in pair] for pair in pairs]
    limit = max(pair[0]["peak"] for pair in pairs)
    result = {
        "row": row.title,
        "chars_per_second": statistics.median(r[0] for r in rates),
        "spread": (max(r[0] for r in rates) - min(r[0] for r in rates)) / min(r[0] for r in rates),
        "limit_gflops": limit / 1e9,
        "memory_mb": pairs[-1][0]["memory"] / 1e6,
        "start_seconds": mine["compile_seconds"],
    }
    result["share"] = result["chars_per_second"] * row.flop_per_char / limit
    if torch:
        result["torch_chars_per_second"] = statistics.median(r[1] for r in rates)
        result["torch_memory_mb"] = pairs[-1][1]["memory"] / 1e6
        result["ratio"] = statistics.median(r[0] / r[1] for r in rates)
    return result


def check(row: Row, ours: dict[str, Any], theirs: dict[str, Any]) -> None:
    """Stop unless both sides compute the same thing."""
    if abs(ours["loss"] - theirs["loss"]) > 1e-4 * theirs["loss"]:
        raise SystemExit(f"{row.title}: loss {ours['loss']} against PyTorch's {theirs['loss']}")
    for name, norm in theirs["norms"].items():
        if abs(ours["norms"][name] - norm) > 1e-3 * norm:
            raise SystemExit(
                f"{row.title}: gradient of {name} {ours['norms'][name]} against {norm}"
            )


def markdown(results: list[dict[str, Any]], threads: int) -> str:
    lines = [
        "| configuration | charrnn, chars/s | share of the limit | PyTorch, chars/s "
        "| times PyTorch | memory, MB | PyTorch, MB |",
        "|---|---|---|---|---|---|---|",
    ]
    for r in results:
        peer = ("", "", "")
        if "ratio" in r:
            peer = (
                f"{r['torch_chars_per_second']:,.0f}",
                f"{r['ratio']:.2f}",
                f"{r['torch_memory_mb']:.0f}",
            )
        lines.append(
            f"| {r['row']} | {r['chars_per_second']:,.0f} (spread {r['spread']:.0%}) "
            f"| {r['share']:.0%} | {peer[0]} | {peer[1]} | {r['memory_mb']:.0f} | {peer[2]} |"
        )
    limit = statistics.median(r["limit_gflops"] for r in results)
    return "\n".join(
        [*lines, "", f"{machine()}; {threads} threads; limit {limit:.0f} GFLOP/s; {versions()}."]
    )


def machine() -> str:
    cpu = Path("/proc/cpuinfo")
    if cpu.exists():
        for line in cpu.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def versions() -> str:
    from importlib.metadata import PackageNotFoundError, version

    found = [f"Python {platform.python_version()}"]
    for name in ("numba", "numpy", "torch"):
        try:
            found.append(f"{name} {version(name)}")
        except PackageNotFoundError:
            continue
    commit = subprocess.run(
        ["git", "-C", str(ROOT), "rev-parse", "--short", "HEAD"], capture_output=True, text=True
    )
    return ", ".join(found) + (f", commit {commit.stdout.strip()}" if commit.stdout else "")


def main() -> None:
    names = "\n".join(f"  {i}  {row.title}" for i, row in enumerate(ROWS, 1))
    parser = argparse.ArgumentParser(
        description=__doc__, epilog="rows:\n" + names,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    parser.add_argument("--rows", help="numbers of the rows, such as 1,5  (default: all)")
    parser.add_argument("--threads", type=int, default=os.cpu_count(), help="default: all cores")
    parser.add_argument("--rounds", type=int, default=5, help="turns of each side (default 5)")
    parser.add_argument("--seconds", type=float, default=2.0, help="of a turn (default 2)")
    parser.add_argument("--json", action="store_true", help="print JSON instead of the table")
    parser.add_argument("--side", choices=["ours", "torch"], help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    rows = [int(n) - 1 for n in args.rows.split(",")] if args.rows else range(len(ROWS))
    if args.side:
        side = {"ours": Ours, "torch": Torch}[args.side]
        serve(side(ROWS[next(iter(rows))], args.folder, args.threads))
        return
    from importlib.util import find_spec

    torch = find_spec("torch") is not None
    results = []
    for index in rows:
        results.append(compare(index, args.threads, args.rounds, args.seconds, torch))
        print(json.dumps(results[-1]), file=sys.stderr, flush=True)
    print(json.dumps(results, indent=2) if args.json else markdown(results, args.threads))


if __name__ == "__main__":
    main()

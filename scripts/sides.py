"""The child processes of the benchmark: our trainer, PyTorch's, and the check that they agree.

A child sleeps on its standard input and answers each line with a line of JSON:

    time SECONDS    train for that long: characters per second and peak memory in bytes
    step            one training step: its loss
    sample SECONDS, evaluate SECONDS
                    (of the side "ours") characters per second
    phases STEPS    (of the side "ours") milliseconds of a training step by kind of work
    check           (of the side "check") losses and gradients of all sides, compared

Data and weights are the same on all sides: a function of the row alone.
"""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
import time
from abc import ABC, abstractmethod
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from rows import CLIP, RATE, ROOT, Row

sys.path.insert(0, str(ROOT))

PAUSE = 0.5
"""Seconds between turns: OpenMP's threads spin for some 0.2 s after their last work."""

EVAL_TEXT = 200_000
"""Characters that are scored; evaluation warms every stream up on a thousand more."""

STEPS = 3
"""Training steps that are compared: the first has no carried state and no moments."""


class Bounds(NamedTuple):
    """How far the sides may be apart."""

    gradient: float
    """Largest difference of an element, as a share of the tensor's largest element."""
    loss: float
    """Relative, of one window."""
    movement: float
    """Of a matrix over the steps, as a share of its length (L2). PyTorch has two biases, each with
    its own Adam, whose sum moves twice as fast as our one: that is most of this difference."""


BOUNDS = {
    # Up to T*B = 6,400 products are added in different orders, each sum rounded by 2^-24: some
    # sqrt(6400) * 2^-24 = 5e-6. Measured: 4e-7 to 4e-6.
    "float32": Bounds(gradient=1e-5, loss=1e-5, movement=3e-2),
    # An operand of 8 bits is off by up to 2^-9, and autocast rounds gates and states as well, again
    # at every time step: PyTorch's own distance from float32 is 5e-3 to 2.3e-2 in the gradients
    # and up to 4e-5 in the loss. The other half is ours.
    "bf16": Bounds(gradient=4e-2, loss=1e-4, movement=1e-1),
}


class Child:
    """One side in a process of its own; it sleeps on its pipe until asked."""

    def __init__(
        self, side: str, row: Row, threads: int, precision: str = "float32", **environment: str
    ) -> None:
        arguments = [side, json.dumps(row), str(threads), precision]
        self.process = subprocess.Popen(
            [sys.executable, __file__, *arguments], env=os.environ | environment,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )  # fmt: skip

    def ask(self, line: str) -> Any:
        """The answer to a line; exits if the child has ended."""
        assert self.process.stdin and self.process.stdout
        time.sleep(PAUSE)
        self.process.stdin.write(line + "\n")
        self.process.stdin.flush()
        answer = self.process.stdout.readline()
        if not answer:
            raise SystemExit(f"a child process ended: status {self.process.wait()}")
        return json.loads(answer)

    def close(self) -> None:
        """Let it end."""
        assert self.process.stdin
        self.process.stdin.close()
        self.process.wait()


def text_ids(row: Row) -> Any:
    """The text: 20 windows of random characters."""
    import numpy as np

    return np.random.default_rng(1).integers(row.V, size=row.B * row.T * 20 + 1)


def peak_memory() -> int:
    """Most resident memory of this process so far, in bytes."""
    import resource

    used = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return used if sys.platform == "darwin" else used * 1024


def speed(work: Callable[[], object], chars: int, seconds: float) -> float:
    """Characters per second of ``work``, which does ``chars`` of them, repeated so long."""
    began, times = time.perf_counter(), 0
    while time.perf_counter() - began < seconds or times == 0:
        work()
        times += 1
    return times * chars / (time.perf_counter() - began)


class Side(ABC):
    """A trainer of one row."""

    row: Row

    @abstractmethod
    def step(self) -> float:
        """One training step; its loss."""

    def time(self, seconds: float) -> dict[str, float]:
        rate = speed(self.step, self.row.B * self.row.T, seconds)
        return {"chars_per_second": rate, "memory": peak_memory()}


class Ours(Side):
    """The trainer itself, event by event."""

    def __init__(self, row: Row, threads: int, precision: str) -> None:
        import tempfile

        from charrnn.config import Config
        from charrnn.trainer import Run, Text
        from charrnn.vocab import Vocabulary

        self.row = row
        options = row.options(threads, precision) | dict(
            max_steps=10**9, eval_every=0, checkpoint_every=0
        )
        vocabulary = Vocabulary("char", tuple(chr(0x4E00 + i) for i in range(row.V)))
        ids = text_ids(row)
        text = Text(vocabulary, ids, ids[:0], ids[:0], row.B, row.T, {}, [])
        self.folder = tempfile.TemporaryDirectory()
        self.run = Run(Path(self.folder.name), Config.from_options(options), text)
        self.run.model.initialize(1)
        self.events = self.run.events()

    def weights(self) -> dict[str, Any]:
        return self.run.model.to_torch(self.run.model.params)

    def gradients(self) -> tuple[float, dict[str, Any]]:
        T, B = self.row.T, self.row.B
        ids = text_ids(self.row)[: T * B + 1]
        found = self.run.model.gradients(ids[:-1].reshape(T, B), ids[1:].reshape(T, B))
        return found.loss, found.weights

    def step(self) -> float:
        while (event := next(self.events))["event"] != "step":
            pass
        return event["nats_per_char"]

    def time(self, seconds: float) -> dict[str, float]:
        return super().time(seconds) | {"limit": self.limit()}

    def limit(self) -> float:
        from charrnn.kernels.peak import peak_flops

        return peak_flops(self.run.model.team, seconds=0.1)

    def sample(self, seconds: float) -> dict[str, float]:
        """Stream B samples side by side, as `charrnn sample` does."""
        from charrnn.config import SampleConfig
        from charrnn.sampling import generate

        config = SampleConfig(length=10**9, temperature=0.8, num_samples=self.row.B)
        steps = generate(self.run.model, self.run.text.vocabulary, config, seed=1)
        next(steps)
        rate = speed(lambda: next(steps), self.row.B, seconds)
        return {"chars_per_second": rate, "limit": self.limit()}

    def evaluate(self, seconds: float) -> dict[str, float]:
        """Score a text in streams, as `charrnn eval` does."""
        import numpy as np

        from charrnn.evaluate import evaluate

        ids = np.random.default_rng(2).integers(self.row.V, size=EVAL_TEXT)
        rate = speed(lambda: evaluate(self.run.model, ids), EVAL_TEXT - 1, seconds)
        return {"chars_per_second": rate}

    def phases(self, steps: float) -> dict[str, float]:
        from phases import phases

        self.step()
        return phases(self.run, self.step, int(steps)) | {"limit": self.limit()}


class Torch(Side):
    """A careful PyTorch trainer of the same network, on PyTorch's own recurrent modules."""

    def __init__(
        self, row: Row, threads: int, precision: str, weights: dict[str, Any] | None = None
    ) -> None:
        import torch

        torch.manual_seed(1)
        torch.set_num_threads(threads)
        self.torch, self.row, self.precision = torch, row, precision
        ids = torch.from_numpy(text_ids(row))
        n = (len(ids) - 1) // row.B
        self.ids = ids[: n * row.B].view(row.B, n).t().contiguous()
        self.targets = ids[1 : n * row.B + 1].view(row.B, n).t().contiguous()
        module = {"lstm": torch.nn.LSTM, "gru": torch.nn.GRU, "rnn": torch.nn.RNN}[row.model]
        parts = {"rnn": module(row.E or row.V, row.H, row.L), "head": torch.nn.Linear(row.H, row.V)}
        if row.E:
            parts["embedding"] = torch.nn.Embedding(row.V, row.E)
        self.net = torch.nn.ModuleDict(parts)
        if weights is not None:
            self.net.load_state_dict({k: torch.tensor(v) for k, v in weights.items()})
        self.optimizer = torch.optim.Adam(self.net.parameters(), lr=RATE, fused=True)
        self.state, self.position = self.zero_state(), 0

    def zero_state(self) -> tuple[Any, ...]:
        shape = self.row.L, self.row.B, self.row.H
        return tuple(self.torch.zeros(shape) for _ in range(2 if self.row.model == "lstm" else 1))

    def recurrent(self, ids: Any, state: tuple[Any, ...]) -> tuple[Any, tuple[Any, ...]]:
        """Output (T, B, H) of the top layer and the state after the window."""
        F, row = self.torch.nn.functional, self.row
        x = self.net["embedding"](ids) if row.E else F.one_hot(ids, row.V).float()
        output, state = self.net["rnn"](x, state if len(state) > 1 else state[0])
        return output, state if isinstance(state, tuple) else (state,)

    def loss(self, ids: Any, targets: Any, state: Any) -> tuple[Any, Any]:
        bf16 = self.precision == "bf16"
        with self.torch.autocast("cpu", dtype=self.torch.bfloat16, enabled=bf16):
            output, state = self.recurrent(ids, state)
            logits = self.net["head"](output).view(-1, self.row.V)
            return self.torch.nn.functional.cross_entropy(logits, targets.reshape(-1)), state

    def gradients(self) -> tuple[float, dict[str, Any]]:
        T, B = self.row.T, self.row.B
        ids = self.torch.from_numpy(text_ids(self.row))[: T * B + 1]
        self.optimizer.zero_grad(set_to_none=True)
        loss, _ = self.loss(ids[:-1].view(T, B), ids[1:].view(T, B), self.zero_state())
        loss.backward()
        return loss.item(), {k: p.grad.numpy() for k, p in self.net.named_parameters()}

    def step(self) -> float:
        T, t = self.row.T, self.position
        if t == 0:
            self.state = self.zero_state()
        ids, targets = self.ids[t : t + T], self.targets[t : t + T]
        self.position = t + T if t + 2 * T <= len(self.ids) else 0
        self.optimizer.zero_grad(set_to_none=True)
        loss, state = self.loss(ids, targets, self.state)
        loss.backward()
        self.torch.nn.utils.clip_grad_norm_(self.net.parameters(), CLIP)
        self.optimizer.step()
        self.state = tuple(s.detach().float() for s in state)
        return loss.item()


class Unrolled(Torch):
    """The same network with hand-written cells in a loop over time; `Compiled` compiles it."""

    def recurrent(self, ids: Any, state: tuple[Any, ...]) -> tuple[Any, tuple[Any, ...]]:
        F, ends = self.torch.nn.functional, []
        x = self.net["embedding"](ids) if self.row.E else F.one_hot(ids, self.row.V).float()
        for layer in range(self.row.L):
            Wx, Wh, bx, bh = (
                getattr(self.net["rnn"], f"{name}_l{layer}")
                for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
            )
            b = bx if self.row.model == "gru" else bx + bh
            s, outputs = tuple(part[layer] for part in state), []
            for projected in F.linear(x, Wx, b).unbind(0):  # x[t] would cost T gradients of all x
                s = self.cell(projected, s, Wh, bh)
                outputs.append(s[0])
            x = self.torch.stack(outputs)
            ends.append(s)
        return x, tuple(self.torch.stack(part) for part in zip(*ends, strict=True))

    def cell(self, x: Any, state: tuple[Any, ...], Wh: Any, bh: Any) -> tuple[Any, ...]:
        """The state after one character; x has its projection and, but for gru, both biases."""
        addmm, h = self.torch.addmm, state[0]
        if self.row.model == "rnn":
            return (addmm(x, h, Wh.t()).tanh(),)
        if self.row.model == "lstm":
            i, f, g, o = addmm(x, h, Wh.t()).chunk(4, 1)
            c = f.sigmoid() * state[1] + i.sigmoid() * g.tanh()
            return o.sigmoid() * c.tanh(), c
        (xr, xz, xn), (hr, hz, hn) = x.chunk(3, 1), addmm(bh, h, Wh.t()).chunk(3, 1)
        z = (xz + hz).sigmoid()
        n = (xn + (xr + hr).sigmoid() * hn).tanh()
        return (n + z * (h - n),)


class Compiled(Unrolled):
    """`Unrolled` under `torch.compile`; its first turn tells how long compiling took."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.loss = self.torch.compile(self.loss, dynamic=False)  # type: ignore[method-assign]
        self.compile_seconds = 0.0

    def time(self, seconds: float) -> dict[str, float]:
        if not self.compile_seconds:
            began = time.perf_counter()
            self.step()
            self.compile_seconds = time.perf_counter() - began
        return super().time(seconds) | {"compile_seconds": self.compile_seconds}


class Check:
    """All sides in one process: the same loss, the same gradients, the same training steps."""

    def __init__(self, row: Row, threads: int, precision: str) -> None:
        self.row, self.precision = row, precision
        self.ours = Ours(row, threads, precision)
        weights = self.ours.weights()
        self.others = [side(row, threads, precision, weights) for side in (Torch, Unrolled)]

    def check(self) -> dict[str, Any]:
        import numpy as np

        bounds, worst = BOUNDS[self.precision], 0.0
        loss, gradients = self.ours.gradients()
        gradients = {k: np.array(v) for k, v in gradients.items()}
        for other in self.others:
            their_loss, theirs = other.gradients()
            self._agree("loss", loss, their_loss, bounds.loss)
            if gradients.keys() != theirs.keys():
                raise SystemExit(f"{self.row.title}: tensors {gradients.keys() ^ theirs.keys()}")
            for name, b in theirs.items():
                error = float(abs(gradients[name] - b).max() / abs(b).max())
                worst = max(worst, error)
                if not error <= bounds.gradient:  # NaN too
                    raise SystemExit(f"{self.row.title}: gradient of {name} differs by {error:.1e}")
        self._compare_steps(bounds.movement)
        return {"gradient_difference": worst}

    def _compare_steps(self, bound: float) -> None:
        """Train on both sides and compare where the matrices have gone."""
        import numpy as np

        start = {k: np.array(v) for k, v in self.ours.weights().items()}
        for _ in range(STEPS):
            self.ours.step()
            self.others[0].step()
        end = self.ours.weights()
        for name, theirs in self.others[0].net.state_dict().items():
            if name.endswith("bias") or ".bias_" in name:
                continue
            mine, their = end[name] - start[name], theirs.numpy() - start[name]
            error = float(np.linalg.norm(mine - their) / np.linalg.norm(their))
            if not error <= bound:
                raise SystemExit(f"{self.row.title}: {STEPS} steps move {name} {error:.1e} apart")

    def _agree(self, what: str, a: float, b: float, bound: float) -> None:
        if not math.isclose(a, b, rel_tol=bound):
            raise SystemExit(f"{self.row.title}: {what} {a} against PyTorch's {b}")


SIDES = {"ours": Ours, "torch": Torch, "compile": Compiled, "check": Check}


def main() -> None:
    side, row, threads, precision = sys.argv[1:]
    served = SIDES[side](Row(*json.loads(row)), int(threads), precision)
    for line in sys.stdin:
        word, *rest = line.split()
        answer = getattr(served, word)(*map(float, rest))
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()

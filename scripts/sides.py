"""The sides of the benchmark: what of ours `charrnn bench` does not time, and the check.

Each is made of a task and lives in a process of its own, a `charrnn.child.Child`. Data and weights
are the same on all sides: a function of the task alone.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from peers import Peer, Unrolled

from charrnn import bench
from charrnn.config import SampleConfig
from charrnn.evaluate import evaluate
from charrnn.peer import Task
from charrnn.sampling import generate

EVAL_TEXT = 200_000
"""Characters that are scored, beside those that every stream is warmed up on."""

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


def speed(work: Callable[[], object], chars: int, seconds: float) -> float:
    """Characters per second of ``work``, which does ``chars`` of them, repeated so long."""
    began, times = time.perf_counter(), 0
    while time.perf_counter() - began < seconds or times == 0:
        work()
        times += 1
    return times * chars / (time.perf_counter() - began)


class Ours(bench.Ours):
    """The trainer itself."""

    def gradients(self) -> tuple[float, dict[str, Any]]:
        """Loss and gradients of the task's window from a zero state."""
        found = self.model.gradients(*self.task.window())
        return found.loss, found.weights

    def sample(self, seconds: float) -> float:
        """Characters per second of B samples side by side, as `charrnn sample` draws them."""
        batch = self.task.batch_size
        config = SampleConfig(length=10**9, temperature=0.8, num_samples=batch)
        steps = generate(self.model, self.run.text.vocabulary, config, seed=1)
        next(steps)
        return speed(lambda: next(steps), batch, seconds)

    def evaluate(self, seconds: float) -> float:
        """Characters per second of scoring a text in streams, as `charrnn eval` does."""
        ids = np.random.default_rng(2).integers(self.task.vocab_size, size=EVAL_TEXT)
        return speed(lambda: evaluate(self.model, ids), EVAL_TEXT - 1, seconds)

    def phases(self, turns: int) -> dict[str, float]:
        """Milliseconds of a training step by kind of work."""
        from phases import phases

        self.step()
        return phases(self.run, self.step, turns)


class Check:
    """All sides in one process: the same loss, the same gradients, the same training steps."""

    def __init__(self, task: Task) -> None:
        self.ours = Ours(task, pace=0.0)
        self.title, self.precision = task.title, task.config.model.precision
        self.others = [side(task, self.ours.weights()) for side in (Peer, Unrolled)]

    def check(self) -> float:
        """The largest difference of a gradient, as a share of its tensor's largest element.

        More than the bound allows is an error of ours only if both of PyTorch's sides say so: it
        may be PyTorch that differs from itself.
        """
        bounds = BOUNDS[self.precision]
        errors: list[tuple[float, str]] = []
        loss, gradients = self.ours.gradients()
        gradients = {k: np.array(v) for k, v in gradients.items()}
        for other in self.others:
            their_loss, theirs = other.gradients()
            self._agree("loss", loss, their_loss, bounds.loss)
            if gradients.keys() != theirs.keys():
                raise ValueError(f"{self.title}: tensors {gradients.keys() ^ theirs.keys()}")
            each = [
                (
                    float(np.nan_to_num(abs(gradients[name] - b).max() / abs(b).max(), nan=np.inf)),
                    name,
                )
                for name, b in theirs.items()
            ]
            errors.append(max(each))
        error, name = min(errors)
        if error > bounds.gradient:
            raise ValueError(f"{self.title}: gradient of {name} differs by {error:.1e}")
        self._compare_steps(bounds.movement)
        return max(errors)[0]

    def _compare_steps(self, bound: float) -> None:
        """Train on both sides and compare where the matrices have gone."""
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
                raise ValueError(f"{self.title}: {STEPS} steps move {name} {error:.1e} apart")

    def _agree(self, what: str, a: float, b: float, bound: float) -> None:
        if not math.isclose(a, b, rel_tol=bound):
            raise ValueError(f"{self.title}: {what} {a} against PyTorch's {b}")

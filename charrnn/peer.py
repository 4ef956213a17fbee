"""The work that is timed, and PyTorch at the same work. Only `Torch` imports PyTorch."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from charrnn.config import Config

WINDOWS, CHARS = 20, 100_000
"""Windows of the text, and characters, at the least."""

PAUSE = 0.3
"""Seconds before and after PyTorch: OpenMP's threads spin for some 0.2 s after their last work."""

MODULES = {"lstm": "LSTM", "gru": "GRU", "rnn": "RNN"}
OPTIMIZERS = {
    "sgd": "SGD", "momentum": "SGD", "adagrad": "Adagrad", "rmsprop": "RMSprop", "adam": "Adam",
    "adamw": "AdamW",
}  # fmt: skip

State = tuple[Any, ...]


class Task(NamedTuple):
    """A configuration to train, and how many symbols its random text has."""

    config: Config
    vocab_size: int

    @property
    def batch_size(self) -> int:
        return self.config.data.batch_size

    @property
    def seq_length(self) -> int:
        return self.config.data.window_length or self.config.data.LENGTH

    @property
    def title(self) -> str:
        c = self.config.model
        more = f", embedding {c.embedding_size}" if c.embedding_size else ""
        return (
            f"{c.model} {c.num_layers}x{c.hidden_size}, B {self.batch_size}, "
            f"T {self.seq_length}, V {self.vocab_size}{more}"
        )

    def ids(self) -> np.ndarray:
        """The text."""
        window = self.batch_size * self.seq_length
        size = window * max(WINDOWS, CHARS // window) + 1
        return np.random.default_rng(1).integers(self.vocab_size, size=size)

    def window(self) -> tuple[np.ndarray, np.ndarray]:
        """Characters and targets (T, B) to compare a loss on."""
        T, B = self.seq_length, self.batch_size
        ids = self.ids()[: T * B + 1]
        return ids[:-1].reshape(T, B), ids[1:].reshape(T, B)

    def rate(self, work: Callable[[], int], seconds: float) -> float:
        """Characters per second of ``work`` that goes on so long and counts its training steps."""
        began, steps = time.perf_counter(), 0
        while time.perf_counter() - began < seconds or steps == 0:
            steps += work()
        chars = steps * self.batch_size * self.seq_length
        return chars / (time.perf_counter() - began)


def lacking(config: Config) -> str | None:
    """The option that PyTorch's own modules do not have; None if they have all."""
    c = config.model
    if c.model not in MODULES:
        return f"--model {c.model}"
    if c.activation not in ("tanh", "relu"):
        return f"--activation {c.activation}"
    return "--residual" if c.residual else None


class Torch:
    """A careful PyTorch trainer of the same network, on PyTorch's own recurrent modules.

    ``weights`` are under PyTorch's names; None are those that PyTorch draws.
    """

    def __init__(self, task: Task, weights: dict[str, np.ndarray] | None = None) -> None:
        import torch

        torch.manual_seed(1)
        self.torch, self.task, self.config = torch, task, task.config
        c, V, B = task.config.model, task.vocab_size, task.batch_size
        self.dtype = getattr(torch, c.dtype)
        ids = torch.from_numpy(task.ids())
        n = (len(ids) - 1) // B
        self.ids = ids[: n * B].view(B, n).t().contiguous()
        self.targets = ids[1 : n * B + 1].view(B, n).t().contiguous()
        module = getattr(torch.nn, MODULES[c.model])
        more: dict[str, Any] = {}
        if module is torch.nn.RNN:
            more["nonlinearity"] = c.activation
        if c.num_layers > 1:  # else it warns that there is nothing to drop
            more["dropout"] = c.dropout
        H, L, E = c.hidden_size, c.num_layers, c.embedding_size
        parts = {"rnn": module(E or V, H, L, **more), "head": torch.nn.Linear(H, V)}
        if E:
            parts["embedding"] = torch.nn.Embedding(V, E)
        self.net = torch.nn.ModuleDict(parts).to(self.dtype)
        if weights is not None:
            self.net.load_state_dict({k: torch.tensor(v) for k, v in weights.items()})
        self.states = 2 if isinstance(parts["rnn"], torch.nn.LSTM) else 1
        self.optimizer = self._optimizer()
        self.state, self.position = self.zero_state(), 0

    def _optimizer(self) -> Any:
        c = self.config.train
        options: dict[str, Any] = {"lr": c.peak_learning_rate, "weight_decay": c.decay}
        if c.optimizer in ("adam", "adamw"):
            options["betas"] = c.beta1, c.beta2
        if c.optimizer == "momentum":
            options["momentum"] = c.momentum
        kind = getattr(self.torch.optim, OPTIMIZERS[c.optimizer])
        try:
            return kind(self.net.parameters(), **options, fused=True)
        except (RuntimeError, TypeError):  # not this one, or not in this version
            return kind(self.net.parameters(), **options)

    def zero_state(self) -> State:
        c = self.config.model
        shape = c.num_layers, self.task.batch_size, c.hidden_size
        return tuple(self.torch.zeros(shape, dtype=self.dtype) for _ in range(self.states))

    def recurrent(self, ids: Any, state: State) -> tuple[Any, State]:
        """Output (T, B, H) of the top layer and the state after the window."""
        output, state = self.net["rnn"](self.inputs(ids), state if len(state) > 1 else state[0])
        return output, state if isinstance(state, tuple) else (state,)

    def inputs(self, ids: Any) -> Any:
        """What the first layer reads, (T, B, E or V)."""
        if self.config.model.embedding_size:
            return self.net["embedding"](ids)
        return self.torch.nn.functional.one_hot(ids, self.task.vocab_size).to(self.dtype)

    def loss(self, ids: Any, targets: Any, state: State) -> tuple[Any, State]:
        """Mean nats of the targets, and the state after the window."""
        F, c = self.torch.nn.functional, self.config.model
        bf16 = c.precision == "bf16"
        with self.torch.autocast("cpu", dtype=self.torch.bfloat16, enabled=bf16):
            output, state = self.recurrent(ids, state)
            output = F.dropout(output, c.dropout, self.net.training)
            logits = self.net["head"](output).view(-1, self.task.vocab_size)
            return F.cross_entropy(logits, targets.reshape(-1)), state

    def window_loss(self) -> float:
        """Mean nats of the task's window from a zero state, without dropout."""
        self.net.eval()
        with self.torch.no_grad():
            ids, targets = map(self.torch.from_numpy, self.task.window())
            loss, _ = self.loss(ids, targets, self.zero_state())
        self.net.train()
        return loss.item()

    def step(self) -> int:
        """One training step."""
        T, t = self.task.seq_length, self.position
        if t == 0:
            self.state = self.zero_state()
        ids, targets = self.ids[t : t + T], self.targets[t : t + T]
        self.position = t + T if t + 2 * T <= len(self.ids) else 0
        self.optimizer.zero_grad(set_to_none=True)
        loss, state = self.loss(ids, targets, self.state)
        loss.backward()
        if self.config.train.grad_clip:
            clip = self.torch.nn.utils.clip_grad_norm_
            clip(self.net.parameters(), self.config.train.grad_clip)
        self.optimizer.step()
        self.state = tuple(s.detach().to(self.dtype) for s in state)
        loss.item()  # a trainer shows it
        return 1

    def use(self, threads: int) -> None:
        """Calculate with so many threads from now on."""
        self.torch.set_num_threads(threads)

    def train(self, seconds: float) -> float:
        """Characters per second."""
        return self.task.rate(self.step, seconds)

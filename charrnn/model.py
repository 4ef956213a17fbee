"""The network: characters -> stack of recurrent layers -> softmax, forward and backward."""

from __future__ import annotations

import math
import weakref
import zlib
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np

from charrnn import cells
from charrnn.cells.base import Arrays
from charrnn.config import ModelConfig, SampleConfig
from charrnn.errors import InputError
from charrnn.kernels import jit
from charrnn.kernels.gemm import WIDEST, scratch_size
from charrnn.kernels.pack import aligned_zeros, operand
from charrnn.kernels.tile import most_rows
from charrnn.operands import of_batch
from charrnn.params import Params
from charrnn.passes import Pass, State
from charrnn.stack import Stack
from charrnn.stepper import Stepper
from charrnn.threads import Team, memory

ONE_HOT_BOUND = 3**0.5
"""Bound of uniform weights of variance 1."""

NO_BF16 = (
    "this processor does not multiply bfloat16 (AVX512-BF16): --precision bf16 is float32 here"
)


class Gradients(NamedTuple):
    """What `Model.gradients` returns."""

    loss: float
    """Mean nats per character."""
    weights: Arrays
    """Gradient of the loss by every weight, under PyTorch's names."""
    state: State
    """Gradient by the initial state, (L, B, H)."""
    final_state: State


class Model:
    """A character model and its weights. Not for use by several threads at a time.

    Parameters
    ----------
    config : what to build
    vocab_size : V
    threads : how many take part; the results do not depend on it

    Attributes
    ----------
    operands : type that the factors of products are rounded to
    notes : what a person should know of how this machine runs the model
    """

    def __init__(self, config: ModelConfig, vocab_size: int, threads: int = 1) -> None:
        self.config, self.vocab_size = config, vocab_size
        self.cell = cells.get(config.model, config.activation)
        if config.activation not in self.cell.activations:
            raise InputError(
                f"--activation {config.activation} with --model {config.model}: "
                f"this cell has {' or '.join(self.cell.activations)}; "
                "other activations go with --model rnn"
            )
        if config.precision == "bf16" and config.dtype != "float32":
            raise InputError(
                f"--precision bf16 is for float32, and this is {config.dtype}: leave it out"
            )
        self.operands = config.dtype
        self.notes: list[str] = []
        if config.precision == "bf16" and jit.HAS_BF16:
            self.operands = "bfloat16"
        elif config.precision == "bf16":
            self.notes.append(NO_BF16)
        self.team = Team(threads)
        weakref.finalize(self, self.team.close)
        check_room(config, vocab_size)
        self.params = Params(self.shapes(), config.dtype)
        self.version = 0
        self._scratch: dict[str, np.ndarray] = {}
        self._passes: dict[Any, Pass] = {}
        self._stacks: dict[tuple[bool, tuple[str, ...]], Stack] = {}

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Weight name -> shape."""
        return shapes_of(self.config, self.vocab_size)

    def initialize(self, seed: int) -> None:
        """Draw the weights. Each is a function of the seed and its name alone.

        Uniform within 1/sqrt(H), as PyTorch's; recurrent matrices as ``init`` says; a one-hot
        input's rows and the embedding within sqrt(3) (variance 1), since each is read alone.
        """
        bound = self.config.hidden_size**-0.5
        for name, view in self.params.views.items():
            generator = np.random.Generator(np.random.Philox([seed, zlib.crc32(name.encode())]))
            leaf = name.rpartition(".")[2]
            if leaf == "Wh" and self.config.init != "uniform":
                view[:] = _square_blocks(view.shape, self.config.init, generator)
            else:
                reads_ids = name == "embedding" or (
                    name == "layers.0.Wx" and not self.config.embedding_size
                )
                limit = ONE_HOT_BOUND if reads_ids else bound
                view[:] = generator.uniform(-limit, limit, view.shape)
        for i in range(self.config.num_layers):
            self.cell.initialize(self.params.part(f"layers.{i}."))
        self.changed()

    def zero_state(self, B: int) -> State:
        """The state before any text."""
        c = self.config
        shape = (c.num_layers, B, c.hidden_size)
        return {name: np.zeros(shape, c.dtype) for name in self.cell.states}

    @property
    def work_per_char(self) -> int:
        """Numbers that a pass without gradients keeps for every character of its window."""
        c = self.config
        shapes = self.cell.work_shapes(1, 1, c.hidden_size)
        layer = shapes["gates"][2] + len(self.cell.states) * c.hidden_size
        return c.num_layers * layer + self.vocab_size

    @property
    def train_work_per_char(self) -> int:
        """Numbers that a training pass keeps for every character, but for logits."""
        c, H = self.config, self.config.hidden_size
        shapes = self.cell.work_shapes(1, 1, H)
        layer = sum(shapes[n][2] for n in (*self.cell.leaves, *self.cell.states))
        between = c.num_layers * H if c.dropout or c.residual else 0
        return c.num_layers * layer + H + between + 2 * c.embedding_size

    @cached_property
    def grads(self) -> Params:
        """The gradient: one flat array, made when it is first needed."""
        return Params(self.shapes(), self.config.dtype)

    @cached_property
    def second_grads(self) -> Params:
        """The second of the gradient's two sums until it is added: see `charrnn.sums`."""
        return Params(self.shapes(), self.config.dtype)

    def scratch(self, operands: str) -> np.ndarray:
        """(threads, n): each thread's own room for products that give weights' gradients."""
        if operands not in self._scratch:
            widest = max(self.vocab_size, *(shape[0] for shape in self.shapes().values()))
            size = scratch_size(min(widest, WIDEST + 2 * most_rows(operands)), operands)
            self._scratch[operands] = aligned_zeros((self.team.most, size), operand(operands))
        return self._scratch[operands]

    def stack(self, training: bool, rows: int) -> Stack:
        """The packed weights for batches of ``rows`` rows; those of equal operands share them."""
        operands = of_batch(self.operands, rows)
        matrices = [shape for shape in self.shapes().values() if len(shape) == 2]
        kinds = tuple(f(*shape) for shape in matrices for f in (operands.of, operands.of_layer))
        for key in ((True, kinds), (training, kinds)):  # who trains can do all
            if key in self._stacks:
                return self._stacks[key]
        memory = next((other.memory for other in self._stacks.values() if other.gradient), ())
        self._stacks[key] = Stack(self.config, self.cell, self.params, training, operands, memory)
        return self._stacks[key]

    def pack(self, stack: Stack) -> None:
        """Bring packed weights up to date."""
        if stack.version != self.version:
            threads = self.team.size
            if threads not in stack.packing:
                stack.packing[threads] = self.team.program(stack.pack(threads))
            stack.packing[threads].run()
            self.unpacked()
            stack.version = self.version

    def unpacked(self) -> None:
        """No stack's weights are packed for the way there any more: they may share memory."""
        for stack in self._stacks.values():
            stack.version = -1

    # -- running --------------------------------------------------------------------------------

    def train_pass(self, T: int, B: int, dropout: float = 0.0) -> Pass:
        """A pass with gradients; ``T`` is its longest window."""
        return self._pass("train", T, B, dropout)

    def forward(self, ids: np.ndarray, state: State | None = None) -> tuple[Arrays, State]:
        """Run characters through the network.

        Parameters
        ----------
        ids : (T, B) integers in 0 .. V-1
        state : the state before the window, (L, B, H) each; None is zero

        Returns
        -------
        arrays : ``output`` (T, B, H), the top layer, and ``logits`` (T, B, V)
        state : the state after the window
        """
        run = self._load("forward", ids, state)
        run.run_forward()
        logits = np.empty((*run.ids.shape, self.vocab_size), self.config.dtype)
        for block in run.blocks:
            self.team.program(block.logits).run()
            logits[block.t0 : block.t1] = block.array
        return {"output": run.window.w[-1]["h"][1:].copy(), "logits": logits}, run.state()

    def losses(
        self, ids: np.ndarray, targets: np.ndarray, state: State | None = None
    ) -> tuple[np.ndarray, State]:
        """Nats of every target given the characters before it: (T, B), and the state after."""
        run = self._load("forward", ids, state, targets)
        run.run_losses()
        return run.losses.copy(), run.state()

    def advance(self, ids: np.ndarray, state: State | None = None) -> State:
        """The state after the window."""
        run = self._load("forward", ids, state)
        run.run_forward()
        return run.state()

    def stepper(
        self,
        batch: int,
        config: SampleConfig,
        unknown: int | None = None,
        surprise: bool = False,
    ) -> Stepper:
        """What draws ``batch`` samples side by side; with ``surprise`` it keeps theirs."""
        return Stepper(self, batch, config, unknown, surprise)

    def gradients(
        self, ids: np.ndarray, targets: np.ndarray, state: State | None = None
    ) -> Gradients:
        """The loss of a window and its exact gradient by weights and initial state.

        The loss is the mean nats per character over ids, targets (T, B); no dropout.
        """
        run = self._load("gradient", ids, state, targets)
        loss = run.run_gradients()
        return Gradients(
            loss,
            {
                name: array.copy()
                for name, array in self.to_torch(self.grads, gradients=True).items()
            },
            {s: np.stack([w[f"d{s}0"] for w in run.window.w]) for s in self.cell.states},
            run.state(),
        )

    def _load(
        self, kind: str, ids: np.ndarray, state: State | None, targets: np.ndarray | None = None
    ) -> Pass:
        ids = self.checked(ids)
        run = self._pass(kind, *ids.shape)
        if targets is not None:
            targets = self.checked(targets)
            if targets.shape != ids.shape:
                raise InputError(f"targets of shape {targets.shape} for ids of shape {ids.shape}")
        run.load(ids, targets)
        run.set_state(state)
        return run

    def checked(self, ids: np.ndarray) -> np.ndarray:
        """Characters (T, B), if they are such of this model."""
        ids = np.asarray(ids)
        if ids.ndim != 2 or ids.size == 0 or ids.dtype.kind not in "iu":
            raise InputError(
                f"ids of shape {ids.shape} and type {ids.dtype}: (T, B) integers are needed"
            )
        if ids.min() < 0 or ids.max() >= self.vocab_size:  # a kernel would read foreign memory
            raise InputError(
                f"ids from {ids.min()} to {ids.max()}: this model's are 0 to {self.vocab_size - 1}"
            )
        return ids

    def _pass(self, kind: str, T: int, B: int, dropout: float = 0.0) -> Pass:
        """A pass of this shape: made anew, or a part of one that is long enough."""
        key = (kind, B, dropout)
        if key not in self._passes or len(self._passes[key].ids) < T:
            self._passes.pop(key, None)
            while len(self._passes) > 3:  # the oldest
                del self._passes[next(iter(self._passes))]
            self._passes[key] = Pass(self, T, B, kind, dropout)
        return self._passes[key].of_length(T)

    def changed(self) -> None:
        """Say that the weights are others now."""
        self.version += 1

    # -- PyTorch's names ------------------------------------------------------------------------

    def to_torch(self, params: Params, gradients: bool = False) -> Arrays:
        """Weights or gradients under PyTorch's names and in its layout."""
        out: Arrays = {}
        if "embedding" in params.views:
            out["embedding.weight"] = params.views["embedding"]
        for i in range(self.config.num_layers):
            for name, array in self.cell.to_torch(params.part(f"layers.{i}."), gradients).items():
                out[f"rnn.{name}_l{i}"] = array
        out["head.weight"] = params.views["head.Wy"].T
        out["head.bias"] = params.views["head.by"]
        return out

    def from_torch(self, tensors: Arrays, into: Params | None = None) -> None:
        """Take weights under PyTorch's names, of any float type; two biases are summed.

        Raises
        ------
        InputError : a tensor is missing, left over or of the wrong shape
        """
        into = into or self.params
        expected = {n: a.shape for n, a in self.to_torch(into).items()}
        for name, shape in expected.items():
            if name not in tensors:
                raise InputError(f"the weights lack the tensor {name} {shape}")
            if tensors[name].shape != shape:
                raise InputError(
                    f"tensor {name} has shape {tensors[name].shape}: this model needs {shape}"
                )
        for name in tensors.keys() - expected.keys():
            raise InputError(f"tensor {name} is no part of this model")
        views = into.views
        dtype = into.flat.dtype
        tensors = {name: array.astype(dtype, copy=False) for name, array in tensors.items()}
        if "embedding" in views:
            views["embedding"][:] = tensors["embedding.weight"]
        for i in range(self.config.num_layers):
            end = f"_l{i}"
            layer = {
                n[len("rnn.") : -len(end)]: tensors[n]
                for n in expected
                if n.startswith("rnn.") and n.endswith(end)
            }
            for name, array in self.cell.from_torch(layer).items():
                views[f"layers.{i}.{name}"][:] = array
        views["head.Wy"][:] = tensors["head.weight"].T
        views["head.by"][:] = tensors["head.bias"]
        self.changed()


def shapes_of(c: ModelConfig, V: int) -> dict[str, tuple[int, ...]]:
    """Weight name -> shape of the model that a config describes."""
    cell = cells.get(c.model, c.activation)
    shapes: dict[str, tuple[int, ...]] = {}
    if c.embedding_size:
        shapes["embedding"] = (V, c.embedding_size)
    width = c.embedding_size or V
    for i in range(c.num_layers):
        for name, shape in cell.shapes(width, c.hidden_size).items():
            shapes[f"layers.{i}.{name}"] = shape
        width = c.hidden_size
    return shapes | {"head.Wy": (width, V), "head.by": (V,)}


def weights_of(c: ModelConfig, V: int) -> int:
    """How many numbers are trained in the model that a config describes."""
    return sum(map(math.prod, shapes_of(c, V).values()))


def check_room(c: ModelConfig, V: int) -> None:
    """InputError for a model that does not fit into the machine's memory."""
    size, room = weights_of(c, V) * np.dtype(c.dtype).itemsize, memory()
    if size > room:
        raise InputError(
            f"--hidden-size {c.hidden_size:,} with --num-layers {c.num_layers:,} needs "
            f"{size / 2**30:,.0f} GiB for its weights alone, there are {room / 2**30:,.0f}: choose "
            "smaller ones"
        )


def _square_blocks(shape: tuple[int, ...], init: str, generator: np.random.Generator) -> np.ndarray:
    """A (H, G*H) matrix of G identity or random orthogonal blocks."""
    H = shape[0]
    blocks = []
    for _ in range(shape[1] // H):
        if init == "identity":
            blocks.append(np.eye(H))
        else:
            q, r = np.linalg.qr(generator.normal(size=(H, H)))
            blocks.append(q * np.sign(np.diag(r)))  # uniform over all rotations (Mezzadri 2007)
    return np.hstack(blocks)

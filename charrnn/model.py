"""The network: characters -> stack of recurrent layers -> softmax, forward and backward.

A `Model` owns the weights. A `_Pass` owns the work arrays of one window shape and the lists of
kernel calls over them, made once; running a window is walking through the lists. The phases of a
training pass, each shared by the team's threads:

    pack      weights into the layout that the products read
    forward   every thread takes a share of the batch through all layers and time steps
    output    in blocks of time steps: logits, loss and their gradient (shares of the batch), then
              the output weights' gradient (shares of the columns)
    backward  shares of the batch, back through layers and time
    weights   shares of the columns of every weight's gradient

No sum crosses a share, so that the bits do not depend on how many there are.
"""

from __future__ import annotations

import zlib
from typing import Any, NamedTuple

import numpy as np

from charrnn import cells
from charrnn.cells.base import Arrays, Product, packed_pair, rows, whole
from charrnn.config import ModelConfig
from charrnn.errors import InputError
from charrnn.kernels.gemm import panel, scratch_size, weight_product
from charrnn.kernels.softmax import back_project, column_sums, cross_entropy, project
from charrnn.params import Params
from charrnn.stack import LINE, Stack, Window
from charrnn.threads import Item, Team, share

BLOCK = 1 << 20
"""Logits that exist at a time, about; a whole window of a small vocabulary is less than that."""

State = Arrays
"""``h`` and for some cells ``c``, each (L, B, H)."""


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
    """A character model and its weights.

    Parameters
    ----------
    config : what to build
    vocab_size : V
    threads : how many take part; the results do not depend on it
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
        self.team = Team(threads)
        self.params = Params(self.shapes(), config.dtype)
        self.version = 0
        self._passes: dict[Any, _Pass] = {}

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Weight name -> shape."""
        c, V = self.config, self.vocab_size
        shapes: dict[str, tuple[int, ...]] = {}
        if c.embedding_size:
            shapes["embedding"] = (V, c.embedding_size)
        width = c.embedding_size or V
        for i in range(c.num_layers):
            for name, shape in self.cell.shapes(width, c.hidden_size).items():
                shapes[f"layers.{i}.{name}"] = shape
            width = c.hidden_size
        return shapes | {"head.Wy": (width, V), "head.by": (V,)}

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
                limit = EMBEDDING_BOUND if reads_ids else bound
                view[:] = generator.uniform(-limit, limit, view.shape)
        for i in range(self.config.num_layers):
            self.cell.initialize(self.params.part(f"layers.{i}."))
        self.changed()

    def zero_state(self, B: int) -> State:
        """The state before any text."""
        c = self.config
        shape = (c.num_layers, B, c.hidden_size)
        return {name: np.zeros(shape, c.dtype) for name in self.cell.states}

    # -- running --------------------------------------------------------------------------------

    def train_pass(self, T: int, B: int, dropout: float = 0.0) -> _Pass:
        """The pass that the trainer runs: ``T`` is its longest window."""
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
            self.team.run(block.logits)
            logits[block.t0 : block.t1] = block.array
        return {"output": run.window.w[-1]["h"][1:].copy(), "logits": logits}, run.state()

    def losses(
        self, ids: np.ndarray, targets: np.ndarray, state: State | None = None
    ) -> tuple[np.ndarray, State]:
        """Nats of every target given the characters before it: (T, B), and the state after."""
        run = self._load("forward", ids, state)
        run.targets[:] = self._checked(targets)
        run.run_forward()
        for block in run.blocks:
            self.team.run(block.losses)
        return run.losses.copy(), run.state()

    def next_logits(
        self, ids: np.ndarray, state: State | None = None
    ) -> tuple[np.ndarray, State]:
        """Logits (B, V) of the character after the last of ``ids`` (T, B), and the state."""
        run = self._load("next", ids, state)
        run.run_forward()
        self.team.run(run.blocks[-1].logits)
        return run.blocks[-1].array[-1].copy(), run.state()

    def gradients(
        self, ids: np.ndarray, targets: np.ndarray, state: State | None = None
    ) -> Gradients:
        """The loss of a window and its exact gradient by weights and initial state.

        The loss is the mean nats per character over ids, targets (T, B); no dropout.
        """
        run = self._load("gradient", ids, state)
        run.targets[:] = self._checked(targets)
        loss = run.run_gradients()
        return Gradients(
            loss,
            {name: array.copy() for name, array in self.to_torch(run.grads).items()},
            {s: np.stack([w[f"d{s}0"] for w in run.window.w]) for s in self.cell.states},
            run.state(),
        )

    def _load(self, kind: str, ids: np.ndarray, state: State | None) -> _Pass:
        ids = self._checked(ids)
        run = self._pass(kind, *ids.shape)
        run.ids[:] = ids
        run.set_state(state)
        return run

    def _checked(self, ids: np.ndarray) -> np.ndarray:
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

    def _pass(self, kind: str, T: int, B: int, dropout: float = 0.0) -> _Pass:
        """A pass of this shape: made anew, or a part of one that is long enough."""
        key = (kind, B, dropout)
        if key not in self._passes or len(self._passes[key].ids) < T:
            self._passes.pop(key, None)
            while len(self._passes) > 3:  # the oldest
                del self._passes[next(iter(self._passes))]
            self._passes[key] = _Pass(self, T, B, kind, dropout)
        return self._passes[key].of_length(T)

    def changed(self) -> None:
        """Say that the weights are others now."""
        self.version += 1

    # -- PyTorch's names ------------------------------------------------------------------------

    def to_torch(self, params: Params) -> Arrays:
        """Weights or gradients under PyTorch's names and in its layout."""
        out: Arrays = {}
        if "embedding" in params.views:
            out["embedding.weight"] = params.views["embedding"]
        for i in range(self.config.num_layers):
            for name, array in self.cell.to_torch(params.part(f"layers.{i}.")).items():
                out[f"rnn.{name}_l{i}"] = array
        out["head.weight"] = params.views["head.Wy"].T
        out["head.bias"] = params.views["head.by"]
        return out

    def from_torch(self, tensors: Arrays, into: Params | None = None) -> None:
        """Take weights under PyTorch's names; two biases are summed.

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
        views = into.views
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


EMBEDDING_BOUND = 3**0.5


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


class _Block:
    """A run of time steps whose logits exist at the same time."""

    def __init__(self, t0: int, t1: int, array: np.ndarray) -> None:
        self.t0, self.t1 = t0, t1
        self.array = array
        self.logits: list[Item] = []
        self.losses: list[Item] = []
        self.gradients: list[Item] = []
        self.weights: list[Item] = []


class _Pass:
    """Work arrays and call lists for windows of T steps and B rows."""

    def __init__(
        self, model: Model, T: int, B: int, kind: str, dropout: float, like: _Pass | None = None
    ) -> None:
        self.model, self.team, self.kind, self.dropout = model, model.team, kind, dropout
        self.training = kind in ("train", "gradient")
        self.packed_version = -1
        self.like = like
        self.shorter: dict[int, _Pass] = {}
        dtype = model.config.dtype
        self.ids = np.zeros((T, B), np.int32)
        self.targets = np.zeros((T, B), np.int32)
        self.losses = np.zeros((T, B), dtype)
        if like is None:
            self.grads = Params(model.shapes(), dtype) if self.training else None
            self.stack = Stack(model.config, model.cell, model.params, self.grads)
            self.head, calls = packed_pair("Wy", model.params.views["head.Wy"], self.training)
            self.pack: list[Item] = [(call,) for call in self.stack.pack_calls + calls]
        else:
            self.grads, self.stack, self.head, self.pack = (
                like.grads, like.stack, like.head, like.pack,
            )  # fmt: skip
        self.window = Window(
            self.stack, self.ids, training=self.training, dropout=dropout,
            like=like.window if like else None,
        )  # fmt: skip
        parts = min(self.team.size, B)
        self.shares = [share(B, i, parts) for i in range(parts)]
        self.forward: list[Item] = [self.window.forward_calls(*s) for s in self.shares]
        self._make_blocks()
        if self.training:
            self.backward: list[Item] = [self.window.backward_calls(*s) for s in self.shares]
            self._make_weights()

    # -- call lists -----------------------------------------------------------------------------

    def _make_blocks(self) -> None:
        T, B = self.ids.shape
        V, dtype = self.model.vocab_size, np.dtype(self.model.config.dtype)
        steps = max(1, min(T, BLOCK // (B * V)))
        if self.like is None:
            self.logits = np.zeros((steps if self.kind != "next" else 1, B, V), dtype)
        else:
            self.logits = self.like.logits
        starts = range(0, T, steps) if self.kind != "next" else [T - 1]
        self.blocks = [self._block(t0, min(t0 + steps, T)) for t0 in starts]

    def _block(self, t0: int, t1: int) -> _Block:
        T, B = self.ids.shape
        dtype = np.dtype(self.model.config.dtype).type
        block = _Block(t0, t1, self.logits[: t1 - t0])
        x, losses, targets = self.window.x[-1][t0:t1], self.losses[t0:t1], self.targets[t0:t1]
        by, scale = self.model.params.views["head.by"], dtype(1 / (T * B))
        for s in self.shares:
            logits = (project, (block.array, x, self.head["Wy"], by, *s))
            block.logits.append([logits])
            loss = (cross_entropy, (losses, block.array, targets, scale, self.training, *s))
            block.losses.append([logits, loss])
            if self.training:
                dx = self.window.dx[-1][t0:t1]
                back = (back_project, (dx, block.array, self.head["WyT"], *s))
                block.gradients.append([logits, loss, back])
        if self.training:
            g = self.grads.views
            product = whole(g["head.Wy"], rows(x), rows(block.array))
            again = t0 > 0
            for part in range(self.team.size):
                c0, c1 = share(self.model.vocab_size, part, self.team.size, LINE)
                bias = (column_sums, (g["head.by"], rows(block.array), c0, c1, 0, again))
                calls = self._product_calls(product, part, again)
                block.weights.append([*calls, bias])
        return block

    def _make_weights(self) -> None:
        self.weights: list[Item] = []
        for part in range(self.team.size):
            calls = self.window.reductions(part, self.team.size)
            for product in self.window.products():
                calls += self._product_calls(product, part, False)
            self.weights.append(calls)

    def _product_calls(self, product: Product, part: int, again: bool) -> list[Any]:
        gradient, inputs, dgates, first, last, shift = product
        width = panel(gradient.dtype)
        c0, c1 = share(last - first, part, self.team.size, width)
        if c0 == c1:
            return []
        scratch = self._scratch(part)
        args = (gradient, inputs, dgates, first + c0, first + c1, shift, scratch, again)
        return [(weight_product, args)]

    def _scratch(self, part: int) -> np.ndarray:
        """Each part's own room for `weight_product`, enough for the widest input."""
        owner = self.like or self
        if not hasattr(owner, "scratch"):
            shapes = self.model.shapes().values()
            widest = max(s[0] for s in shapes if len(s) > 1)
            size = scratch_size(widest, self.model.config.dtype)
            owner.scratch = np.zeros((self.team.size, size), self.model.config.dtype)
        return owner.scratch[part]

    # -- running --------------------------------------------------------------------------------

    def of_length(self, T: int) -> _Pass:
        """This pass, or a shorter one on the same arrays."""
        if len(self.ids) == T:
            return self
        if T not in self.shorter:
            B = self.ids.shape[1]
            self.shorter[T] = _Pass(self.model, T, B, self.kind, self.dropout, like=self)
        return self.shorter[T]

    def items(self) -> list[Item]:
        """All kernel calls of a pass."""
        items = [*self.pack, *self.forward]
        for block in self.blocks:
            items += [*block.logits, *block.losses, *block.gradients, *block.weights]
        return [*items, *self.backward, *self.weights] if self.training else items

    def set_state(self, state: State | None) -> None:
        """Put the state (L, B, H) before the window; None is zero."""
        for i, w in enumerate(self.window.w):
            for name in self.model.cell.states:
                if state is None:
                    w[name][0] = 0
                    continue
                given = np.asarray(state[name])
                shape = (len(self.window.w), *w[name].shape[1:])
                if given.shape != shape:
                    raise InputError(f"state {name} has shape {given.shape}: needed is {shape}")
                w[name][0] = given[i]

    def state(self) -> State:
        """The state after the window, (L, B, H) each."""
        return {s: np.stack([w[s][-1] for w in self.window.w]) for s in self.model.cell.states}

    def carry(self, before: _Pass) -> None:
        """Begin where the window ``before``, which may share the arrays, ended."""
        for w, other in zip(self.window.w, before.window.w, strict=True):
            for s in self.model.cell.states:
                w[s][0] = other[s][-1]

    def set_dropout_key(self, seed: int, step: int) -> None:
        """Choose the dropout masks of this step."""
        for i, key in enumerate(self.window.keys):
            key[0] = zlib.crc32(b"%d dropout %d layer %d" % (seed, step, i))

    def run_forward(self) -> None:
        owner = self.like or self
        if owner.packed_version != self.model.version:
            self.team.run(self.pack)
            owner.packed_version = self.model.version
        self.team.run(self.forward)

    def run_gradients(self) -> float:
        """Forward and backward: fills ``grads``; returns the mean nats per character."""
        self.run_forward()
        for block in self.blocks:
            self.team.run(block.gradients)
            self.team.run(block.weights)
        for w in self.window.w:
            for s in self.model.cell.states:
                w[f"d{s}0"].fill(0)
        self.team.run(self.backward)
        self.team.run(self.weights)
        return float(self.losses.sum(dtype=np.float64)) / self.losses.size

"""One window shape: work arrays and lists of kernel calls, made once and then walked through.

The phases of a training pass, each shared by the team's threads:

    pack      weights into the layout that the products read, again before the way back
    forward   every thread takes a share of the batch through all layers and time steps, or a share
              of the units
    output    in blocks of time steps: logits, loss and their gradient (shares of the batch), then
              the output weights' gradient (shares of the columns)
    backward  the same shares, back through layers and time
    weights   shares of the columns of every weight's gradient

No sum crosses a share, so that the bits do not depend on how many there are.
"""

from __future__ import annotations

import zlib
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np

from charrnn.cells.base import Arrays, Call, Product, rows, whole
from charrnn.errors import InputError
from charrnn.kernels.gemm import ROWS, weight_product
from charrnn.kernels.pack import operand, panel, panels, steps
from charrnn.kernels.program import COMPILED
from charrnn.kernels.seat import ALONE
from charrnn.kernels.softmax import back_project, column_sums, cross_entropy, project
from charrnn.stack import LINE, Window
from charrnn.threads import Item, Phase, Program, share

if TYPE_CHECKING:
    from charrnn.model import Model

BLOCK = 1 << 20
"""Logits that exist at a time, about; a whole window of a small vocabulary is less than that."""

SMALL = 1 << 22
"""Multiply-adds of a pass forward below which other threads are not worth waking."""

UNITS = 1 << 24
"""Bytes of a layer's recurrent weights from which threads share its units, not the batch.

Who has a share of the batch reads all weights at every time step, who has one of the units meets
the others there. On two threads with an L2 of 1 MB each forward and backward of B 32 take by units,
against by rows: 104 % at lstm 1x512 (4 MB), 93 to 101 % at 1x1024, 88 % at 1x1536, 94 % at 1x2048.
"""

FEW = 4
"""Rows a thread below which few units are better than few rows: a tile is slow with 1 to 3."""

UNITS_OF_FEW = 1 << 19
"""`UNITS` for fewer rows: by units B 1 and 2 take 49 to 63 % at lstm 1x256 (1 MB) and larger, B 4
57 to 72 %; at 1x128 (256 KB) sampling takes 100 and 128 %.
"""

State = Arrays
"""``h`` and for some cells ``c``, each (L, B, H)."""


class Block:
    """A run of time steps whose logits exist at the same time."""

    def __init__(self, t0: int, t1: int, array: np.ndarray) -> None:
        self.t0, self.t1 = t0, t1
        self.array = array
        self.logits: list[Item] = []
        self.losses: list[Item] = []
        self.gradients: list[Item] = []
        self.weights: list[Item] = []


class Pass:
    """Work arrays and call lists for windows of T steps and B rows.

    ``rounds``: how many are run before the threads may go to sleep.
    """

    def __init__(
        self, model: Model, T: int, B: int, kind: str, dropout: float,
        like: Pass | None = None, rounds: int = 1,
    ) -> None:  # fmt: skip
        self.model, self.team, self.kind, self.dropout = model, model.team, kind, dropout
        self.training = kind in ("train", "gradient")
        self.parts = self.team.size if rounds * T * B * model.params.count >= SMALL else 1
        self.like = like
        self.shorter: dict[int, Pass] = {}
        self.programs: dict[str, Program] = {}
        dtype = model.config.dtype
        self.ids = np.zeros((T, B), np.int32)
        self.targets = np.zeros((T, B), np.int32)
        self.losses = np.zeros((T, B), dtype)
        self.stack = model.stack(self.training)
        self.window: Window = Window(
            self.stack, self.ids, training=self.training, dropout=dropout,
            like=like.window if like else None,
        )  # fmt: skip
        self.shares = self.team.parts(B, self.parts, self._by_units(B))
        self.forward: list[Item] = [self.window.forward_calls(s) for s in self.shares]
        self._make_blocks()
        if self.training:
            self.backward: list[Item] = [self.window.backward_calls(s) for s in self.shares]
            self._make_weights()

    def _by_units(self, B: int) -> bool:
        """Whether threads share the units of a layer rather than the rows of the batch."""
        cell, H, operands = self.model.cell, self.model.config.hidden_size, self.model.operands
        size = cell.gates * H * steps(H, operands) * operand(operands).itemsize
        least = UNITS_OF_FEW if FEW * self.parts > B else UNITS
        return COMPILED and size >= least and panels(H, operands) >= self.parts > 1

    # -- call lists -----------------------------------------------------------------------------

    def _make_blocks(self) -> None:
        T, B = self.ids.shape
        V, dtype = self.model.vocab_size, np.dtype(self.model.config.dtype)
        steps = max(1, min(T, BLOCK // (B * V)))
        self.logits: np.ndarray
        if self.like is None:
            self.logits = np.zeros((steps, B, V), dtype)
        else:
            self.logits = self.like.logits
        self.blocks = [self._block(t0, min(t0 + steps, T)) for t0 in range(0, T, steps)]

    def _block(self, t0: int, t1: int) -> Block:
        T, B = self.ids.shape
        dtype = np.dtype(self.model.config.dtype).type
        block = Block(t0, t1, self.logits[: t1 - t0])
        x, losses, targets = self.window.x[-1][t0:t1], self.losses[t0:t1], self.targets[t0:t1]
        by, scale = self.model.params.views["head.by"], dtype(1 / (T * B))
        for s in self.shares:
            logits = (project, (block.array, x, self.stack.head["Wy"], by, *s.rows, ALONE))
            block.logits.append([logits])
            loss = (cross_entropy, (losses, block.array, targets, scale, self.training, *s.rows))
            block.losses.append([logits, loss])
            if self.training:
                dx = self.window.dx[-1][t0:t1]
                back = (
                    back_project,
                    (dx, block.array, self.stack.head["WyT"], by.size, *s.rows, ALONE),
                )
                block.gradients.append([logits, loss, back])
        if self.training:
            g = self.model.grads.views
            product = whole(g["head.Wy"], rows(x), rows(block.array))
            again = t0 > 0
            for part in range(self.parts):
                c0, c1 = share(self.model.vocab_size, part, self.parts, LINE)
                bias = (column_sums, (g["head.by"], rows(block.array), c0, c1, 0, again))
                calls = self._product_calls(product, part, again)
                block.weights.append([*calls, bias])
        return block

    def _make_weights(self) -> None:
        self.weights: list[Item] = []
        for part in range(self.parts):
            calls = self.window.reductions(part, self.parts)
            for product in self.window.products():
                calls += self._product_calls(product, part, False)
            self.weights.append(calls)

    def _product_calls(self, product: Product, part: int, again: bool) -> list[Call]:
        """One part of a weight's gradient: a share of its columns, or of its rows if narrow."""
        gradient, inputs, dgates, first, last, shift = product
        m0, m1, c0, c1 = 0, len(gradient), first, last
        if panels(last - first, gradient.dtype) >= 4 * self.parts:
            c0, c1 = share(last - first, part, self.parts, panel(gradient.dtype))
            c0, c1 = first + c0, first + c1
        else:
            m0, m1 = share(len(gradient), part, self.parts, ROWS)
        if m0 == m1 or c0 == c1:
            return []
        scratch = self.model.scratch[part]
        args = (gradient, inputs, dgates, m0, m1, c0, c1, shift, scratch, again)
        return [(weight_product, args)]

    # -- running --------------------------------------------------------------------------------

    def of_length(self, T: int) -> Pass:
        """This pass, or a shorter one on the same arrays."""
        if len(self.ids) == T:
            return self
        if T not in self.shorter:
            B = self.ids.shape[1]
            self.shorter[T] = Pass(self.model, T, B, self.kind, self.dropout, like=self)
        return self.shorter[T]

    def phases(self) -> list[Phase]:
        """All that a training step does up to the gradients."""
        blocks = [phase for block in self.blocks for phase in (block.gradients, block.weights)]
        pack, pack_back = self.stack.pack, self.stack.pack_back
        return [pack, self.forward, *blocks, pack_back, self.backward, self.weights]

    def set_state(self, state: State | None) -> None:
        """Put the state (L, B, H) before the window; None is zero."""
        names = self.model.cell.states
        if state is not None and set(state) != set(names):
            raise InputError(f"the state has {sorted(state)}: needed is {sorted(names)}")
        for i, w in enumerate(self.window.w):
            for name in names:
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

    def carry(self, before: Pass) -> None:
        """Begin where the window ``before``, which may share the arrays, ended."""
        for w, other in zip(self.window.w, before.window.w, strict=True):
            for s in self.model.cell.states:
                w[s][0] = other[s][-1]

    def set_dropout_key(self, seed: int, step: int) -> None:
        """Choose the dropout masks of this step."""
        for i, key in enumerate(self.window.keys):
            key[0] = zlib.crc32(b"%d dropout %d layer %d" % (seed, step, i))

    def run(self, name: str, *phases: Phase) -> None:
        """Run phases that follow the packing of the weights; ``name`` stands for them."""
        self.model.pack(self.stack)
        if name not in self.programs:
            self.programs[name] = self.team.program(*phases)
        self.programs[name].run()

    def run_forward(self) -> None:
        self.run("forward", self.forward)

    def run_losses(self) -> None:
        """Forward, and every target's loss."""
        self.run("losses", self.forward, *(block.losses for block in self.blocks))

    def run_gradients(self) -> float:
        """Forward and backward: fills the model's ``grads``; returns mean nats per character."""
        self.gradient_program.run()
        self.stack.version = -1
        return float(self.losses.sum(dtype=np.float64)) / self.losses.size

    @cached_property
    def gradient_program(self) -> Program:
        return self.team.program(*self.phases())

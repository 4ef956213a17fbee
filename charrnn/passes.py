"""One window shape: work arrays and lists of kernel calls, made once and then walked through.

The phases of a training pass, each shared by the team's threads:

    pack      weights into the layout that the products read
    forward   every thread takes a share of the batch through all layers and time steps, or a share
              of the units
    output    in blocks of time steps: logits, loss and their gradient (shares of the batch, or of
              the steps), then the output weights' gradient
    pack      the weights again, for the way back
    backward  the same shares, back through layers and time
    weights   every weight's gradient
    adding    its two sums, if there are two

Threads meet where one needs what another has made: not between forward and the first logits if they
have the same rows, nor between the last output weights and packing. Of gradients they have shares
of the columns, or of the rows (see `charrnn.sums`). No sum crosses a share, so that the bits do not
depend on how many there are.
"""

from __future__ import annotations

import zlib
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from functools import cached_property
from itertools import chain, zip_longest
from typing import TYPE_CHECKING

import numpy as np

from charrnn.cells.base import Arrays, Call, Product, rows, whole
from charrnn.errors import InputError
from charrnn.kernels.gemm import WIDEST, keeps, weight_product
from charrnn.kernels.pack import aligned_zeros, operand, panel, panels, steps
from charrnn.kernels.program import COMPILED
from charrnn.kernels.seat import ALONE
from charrnn.kernels.softmax import back_project, column_sums, cross_entropy, loss_sum, project
from charrnn.kernels.tile import by_matrix, most_rows, operands_of, tile_for, tile_of
from charrnn.kernels.update import add
from charrnn.operands import SHARED, SUMMED, of_batch, of_sums
from charrnn.params import Params
from charrnn.stack import Window
from charrnn.sums import Portion, are_halved, portions
from charrnn.threads import Item, Phase, Program, Way, dealt, share

if TYPE_CHECKING:
    from typing_extensions import Self

    from charrnn.model import Model

BLOCK = 1 << 21
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

UNITS_OF_FULL = 4 * SHARED
"""`UNITS` for rows that fill a tile of the matrix unit, while a thread's share of them would not:
what the second cache does not hold is read once for all of them.
"""

KEPT, KEPT_STEPS = 32, 1 << 15
"""Shorter passes that are kept, or more if they have no more steps than this in all: 0.5 KB and
more a step. Making one anew takes about as long as one of its steps in a small model."""

State = Arrays
"""``h`` and for some cells ``c``, each (L, B, H)."""


def merged(*phases: Phase) -> Phase:
    """Phases as one: every thread goes on to its item of the next without waiting for others."""
    return [[*chain(*items)] for items in zip_longest(*phases, fillvalue=())]


def by_units(model: Model, B: int, threads: int) -> bool | None:
    """Whether threads share a layer's units rather than B rows; None: it is too small for that."""
    H, gates = model.config.hidden_size, model.cell.gates
    operands = of_batch(model.operands, B).of_layer(H, gates * H)
    size = gates * H * steps(H, operands) * operand(operands).itemsize
    if not COMPILED or size < UNITS_OF_FEW or not panels(H, operands) >= threads > 1:
        return None
    rows = most_rows(operands) if by_matrix(operands) and size > UNITS_OF_FULL else FEW
    return size >= UNITS or rows * threads > B


def _same(call: Call, D: np.ndarray, scratch: np.ndarray, *bounds: int) -> bool:
    """Whether a `weight_product` has the same D and scratch, and the same rows and columns."""
    _, _, other, r0, r1, _, _, c0, c1, shift, room, *_ = call[1]
    same = all(x.ctypes.data == y.ctypes.data for x, y in ((other, D), (room, scratch)))
    return same and (r0, r1, c0, c1, shift) == bounds


class Block:
    """A run of time steps whose logits exist at the same time."""

    def __init__(self, t0: int, t1: int, array: np.ndarray) -> None:
        self.t0, self.t1 = t0, t1
        self.array = array
        self.logits: list[Item] = []
        self.losses: list[Item] = []
        self.gradients: list[Item] = []
        self.weights: list[Item] = []


class Inputs(ABC):
    """What goes into a window of T steps and B rows, and the states at its ends.

    Attributes
    ----------
    ids, targets : (T, B) int32; a negative target has no loss
    losses : (T, B) nats of the targets
    total : (1,), their sum
    first : the step from which on there are losses
    way : the team's, when this was made
    parts : how many threads share it: the team's, or one if it is small
    summed : rows that gradients are summed over, as far as it matters
    ways : (T, B), see `charrnn.cells.base`
    """

    ways: np.ndarray

    def __init__(self, model: Model, T: int, B: int, dropout: float, first: int = 0) -> None:
        self.model, self.dropout, self.first = model, dropout, first
        self.way = model.team.way
        self.parts = self.way.threads
        dtype = model.config.dtype
        self.ids = np.zeros((T, B), np.int32)
        self.targets = np.zeros((T, B), np.int32)
        self.losses = np.zeros((T, B), dtype)
        self.count = (T - first) * B
        self.scale = np.full(1, 1 / self.count, dtype)
        self.total = np.zeros(1)
        self.summed = min(T * B, SUMMED)
        self.shorter: dict[tuple[int, int, int, Way], Self] = {}

    def load(
        self, ids: np.ndarray, targets: np.ndarray | None = None, weight: float = 1.0,
        count: int | None = None,
    ) -> None:  # fmt: skip
        """Put characters (T, B) in, and targets for the steps from ``first`` on.

        Negative targets have no loss; ``count`` is the number of the others, all if None. The
        gradients are those of ``weight`` times the mean loss.
        """
        self.ids[:] = ids
        if targets is not None:
            self.targets[self.first :] = targets
            self.count = targets.size if count is None else count
            self.scale[0] = weight / self.count

    def set_state(self, state: State | None) -> None:
        """Put the state (L, B, H) before the window; None is zero."""
        names = self.model.cell.states
        if state is not None and set(state) != set(names):
            raise InputError(f"the state has {sorted(state)}: needed is {sorted(names)}")
        layers = self.states_at(0)
        for i, layer in enumerate(layers):
            for name, array in layer.items():
                if state is None:
                    array[:] = 0
                    continue
                given, shape = np.asarray(state[name]), (len(layers), *array.shape)
                if given.shape != shape:
                    raise InputError(f"state {name} has shape {given.shape}: needed is {shape}")
                array[:] = given[i]

    def state(self, slot: int | None = None) -> State:
        """The state before step ``slot``, or the final one, (L, B, H) each."""
        layers = self.states_at(len(self.ids) if slot is None else slot)
        return {s: np.stack([layer[s] for layer in layers]) for s in self.model.cell.states}

    def carry(self, before: Inputs, slot: int) -> None:
        """Begin where the window ``before``, which may share the arrays, was at step ``slot``."""
        for mine, other in zip(self.states_at(0), before.states_at(slot), strict=True):
            for s, array in mine.items():
                array[:] = other[s]

    def of_length(self, T: int, new: int | None = None, rows: int | None = None) -> Self:
        """This pass, or a shorter one on the same arrays; its ``new`` last steps have losses.

        It is for as many threads as the team has now, and for its way of sharing work. ``rows``:
        those of the window that it is a segment of.
        """
        summed = min(rows or T * self.ids.shape[1], SUMMED)
        key = T, 0 if new is None else T - new, summed, self.model.team.way
        if (len(self.ids), self.first, self.summed, self.way) == key:
            return self
        if key not in self.shorter:
            while len(self.shorter) >= KEPT and sum(T for T, *_ in self.shorter) > KEPT_STEPS:
                del self.shorter[next(iter(self.shorter))]  # the oldest
            self.shorter[key] = self._shortened(*key[:3])
        return self.shorter[key]

    @abstractmethod
    def states_at(self, slot: int) -> list[Arrays]:
        """Every layer's state (B, H) before step ``slot``, or the final one at T, as views."""

    @abstractmethod
    def set_dropout_key(self, seed: int, step: int) -> None:
        """Choose the dropout masks of this step."""

    @abstractmethod
    def phases(self) -> list[Phase]:
        """All that a training step does up to the gradients."""

    @abstractmethod
    def make_ready(self) -> None:
        """Make what `run_gradients` would make the first time, that its time is as any other."""

    @abstractmethod
    def run_gradients(self) -> float:
        """Forward and backward: fills the model's ``grads``; returns mean nats per character."""

    @abstractmethod
    def _shortened(self, T: int, first: int, summed: int) -> Self:
        """A shorter pass, or one for another number of threads, on the same arrays."""


class Pass(Inputs):
    """Work arrays and call lists for windows of T steps and B rows.

    Parameters
    ----------
    kind : "forward", "step" (one character at a time), "gradient", "train", or "segment": of a
        longer window, whose gradients are added to what is there
    like : lends its arrays to a shorter pass
    rounds : how many are run before the threads may go to sleep
    first : the step from which on there are losses
    summed : see `Inputs`; of a segment more than its own rows
    """

    def __init__(
        self, model: Model, T: int, B: int, kind: str, dropout: float = 0.0,
        like: Pass | None = None, rounds: int = 1, first: int = 0, summed: int = 0,
    ) -> None:  # fmt: skip
        super().__init__(model, T, B, dropout, first)
        self.summed = max(self.summed, summed)
        self.team, self.kind = model.team, kind
        self.training = kind in ("train", "gradient", "segment")
        self.chained = kind == "segment"
        if rounds * T * B * model.params.count < SMALL:
            self.parts = 1
        self.like = like
        self.programs: dict[str, Program] = {}
        # A step's sums are the same however many are made side by side.
        self.stack = model.stack(self.training, 1 if kind == "step" else B)
        self.window: Window = Window(
            self.stack, self.ids, training=self.training, dropout=dropout, chained=self.chained,
            like=like.window if like else None,
        )  # fmt: skip
        self.shares = self.team.parts(B, self.parts, self._by_units(B), self.stack.grain)
        self.forward: list[Item] = [self.window.forward_calls(s) for s in self.shares]
        self.sums: list[Params] = []
        if self.training:
            halved = are_halved(model.params.count, B)
            self.sums = [model.grads, model.second_grads] if halved else [model.grads]
        self._make_blocks()
        if self.training:
            self.ways = self.window.ways
            self.backward: list[Phase] = self._backward()
            self._make_weights()

    def _by_units(self, B: int) -> bool:
        """Whether threads share the units of a layer rather than the rows of the batch.

        The other way has been found by training steps, so it holds for these.
        """
        rule = by_units(self.model, B, self.parts)
        return rule is not None and rule != (self.way.contrary and self.training)

    # -- call lists -----------------------------------------------------------------------------

    def _make_blocks(self) -> None:
        T, B = self.ids.shape
        V, dtype = self.model.vocab_size, np.dtype(self.model.config.dtype)
        steps = min(T, 1 << max(0, (BLOCK // (B * V)).bit_length() - 1))
        self.logits: np.ndarray
        if self.like is None:
            self.logits = aligned_zeros((steps, B, V), dtype)
        else:
            self.logits = self.like.logits
        # One step's rows of all threads fill a tile that makes parts; those of each would not.
        makes_parts = operands_of(self.stack.head["Wy"]) == "whole"
        n = len(self.shares)
        self.by_time = makes_parts and n * most_rows("whole") > B and n <= len(self.logits)
        starts = range(self.first, T, steps)  # the last one comes first: see `gemm_tn`
        self.blocks = [self._block(t0, min(t0 + steps, T)) for t0 in reversed(starts)]

    def _block(self, t0: int, t1: int) -> Block:
        block = Block(t0, t1, self.logits[: t1 - t0])
        by, head = self.model.params.views["head.by"], self.stack.head
        for i in range(len(self.shares)):
            own, mine = self._of_output(i, t1 - t0)
            part, there = block.array[own], slice(t0 + own.start, t0 + own.stop)
            x, losses, targets = self.window.x[-1][there], self.losses[there], self.targets[there]
            logits = (project, (part, x, head["Wy"], by, *mine, ALONE, tile_of(head["Wy"])))
            block.logits.append([logits])
            loss = (cross_entropy, (losses, part, targets, self.scale, self.training, *mine))
            block.losses.append([logits, loss])
            if self.training:
                dx, WyT = self.window.dx[-1][there], head["WyT"]
                back = (back_project, (dx, part, WyT, by.size, *mine, ALONE, tile_of(WyT)))
                block.gradients.append([logits, loss, back])
        if self.training:
            again, x = self.chained or t1 < len(self.ids), self.window.x[-1][t0:t1]
            block.weights = [
                self._head_calls(rows(block.array), rows(x), again, i) for i in range(self.parts)
            ]
        return block

    def _of_output(self, i: int, steps: int) -> tuple[slice, tuple[int, int]]:
        """What thread i takes of a block of so many steps: which steps, and which rows of these.

        In all blocks it has the same part of the logits, so that others need not wait for it.
        """
        if not self.by_time:
            return slice(0, steps), self.shares[i].rows
        bounds = share(len(self.logits), i, len(self.shares))
        return slice(*(min(t, steps) for t in bounds)), (0, self.ids.shape[1])

    def _head_calls(self, dlogits: np.ndarray, x: np.ndarray, again: bool, thread: int) -> Item:
        """What a thread adds to the output's gradients for the rows of a block."""
        calls: list[Call] = []
        for portion in self._portions(len(x), thread, again):
            g = self.sums[portion.half].views
            product = whole(g["head.Wy"].T, dlogits, x)
            calls += self._product_calls(product, portion)
            columns = portion.share(self.model.vocab_size)
            sums = (g["head.by"], dlogits[portion.rows], *columns, 0, portion.again)
            calls.append((column_sums, sums))
        return calls

    def _portions(self, count: int, thread: int, again: bool) -> Iterator[Portion]:
        return portions(count, len(self.sums), thread, self.parts, again)

    def _backward(self) -> list[Phase]:
        """The way back through layers and time."""
        return [[self.window.backward_calls(s) for s in self.shares]]

    def _make_weights(self) -> None:
        """Block by block of rows, so that what one sum has read is near for the next one."""
        self.weights: list[Item] = []
        for thread in range(self.parts):
            calls: list[Call] = []
            for i in range(len(self.window.w)):
                for portion in self._portions(self.ids.size, thread, self.chained):
                    grads = self.sums[portion.half]
                    calls += self.window.sums(i, portion, grads)
                    before: list[Call] = []
                    for product in self.window.products(i, grads):
                        before = self._product_calls(product, portion, before)
                        calls += before
            self.weights.append(calls)

    def _product_calls(
        self, product: Product, portion: Portion, before: Sequence[Call] = ()
    ) -> list[Call]:
        """What a portion of rows adds to a weight's gradient, after the calls ``before``.

        The portion's share is one of its columns, or of its rows if narrow. What is not shared is
        packed by all threads.
        """
        gradient, inputs, dgates, first, last, shift = product
        operands = of_sums(self.model.operands, self.summed, len(gradient))
        m0, m1, c0, c1 = 0, len(gradient), first, last
        part, parts = portion.part, portion.parts
        count = panels(last - first, gradient.dtype)
        even = len(gradient) < last - first and count % parts == 0
        if even or count >= 4 * parts:
            c0, c1 = share(last - first, part, parts, panel(gradient.dtype))
            c0, c1 = first + c0, first + c1
        else:
            m0, m1 = share(len(gradient), part, parts, most_rows(operands))
        if m0 == m1 or c0 == c1:
            return []
        r0, r1, columns = portion.rows.start, portion.rows.stop, (c0, c1, shift)
        scratch, code = self.model.scratch(operands)[portion.thread], tile_for(operands)
        calls, count = [*before], -(-(m1 - m0) // WIDEST)
        for i in range(count):
            i0, i1 = share(m1 - m0, i, count, most_rows(operands))
            kept = keeps(operands, r1 - r0, c1 - c0) and any(
                _same(call, dgates, scratch, r0, r1, *columns) for call in calls[-1:]
            )
            more = m0 + i0, m0 + i1, *columns, scratch, kept, portion.again, code
            calls.append((weight_product, (gradient, inputs, dgates, r0, r1, *more)))
        return calls[len(before) :]

    # -- running --------------------------------------------------------------------------------

    def _shortened(self, T: int, first: int, summed: int) -> Self:
        shape = T, self.ids.shape[1]
        return type(self)(
            self.model, *shape, self.kind, self.dropout, like=self, first=first, summed=summed
        )

    def phases(self) -> list[Phase]:
        first, *others = self.weights
        loss = (loss_sum, (self.total, self.losses))
        weights = [[*first, loss], *others]
        phases = [*self.there_and_back(weights=True), weights]
        return phases if self.chained else phases + self._adding()

    def _adding(self) -> list[Phase]:
        """Adds the second of the gradient's sums to the first."""
        arrays = [sums.flat for sums in self.sums]
        calls: list[Call] = [(add, (*arrays, *bounds)) for bounds in chain(*self.sums[0].blocks())]
        return [dealt(calls, self.parts)] if len(arrays) == 2 else []

    def there_and_back(self, weights: bool = False) -> list[Phase]:
        """Forward and backward, but for the weights' gradients; or the output's ``weights`` too."""
        pack, back = self.stack.pack(self.parts), self.stack.pack_back(self.parts)
        if not weights:
            there = self._and_output(*(block.gradients for block in self.blocks))
            return [pack, *there, back, *self.backward]
        first, *others = self.blocks  # each one's logits take the place of those before
        phases = [pack, *self._and_output(first.gradients), first.weights]
        for block in others:
            phases += [block.gradients, block.weights]
        return [*phases[:-1], merged(phases[-1], back), *self.backward]

    def states_at(self, slot: int) -> list[Arrays]:
        return [{s: w[s][slot] for s in self.model.cell.states} for w in self.window.w]

    def set_dropout_key(self, seed: int, step: int) -> None:
        for key, number in zip(self.window.keys, self.dropout_keys(seed, step), strict=False):
            key[0] = number

    def dropout_keys(self, seed: int, step: int) -> list[int]:
        """What chooses the masks of this step, layer by layer; nothing if there is no dropout."""
        layers = range(len(self.window.keys) if self.dropout else 0)
        return [zlib.crc32(b"%d dropout %d layer %d" % (seed, step, i)) for i in layers]

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
        self.run("losses", *self._and_output(*(block.losses for block in self.blocks)))

    def _and_output(self, *output: Phase) -> list[Phase]:
        """Forward, and what follows of the output layer."""
        if self.by_time:
            return [self.forward, merged(*output)]
        return [merged(self.forward, *output)]

    def run_packing(self, program: Program, rounds: int = 1) -> None:
        """Run a program of `phases` or `there_and_back`, which pack the weights for themselves."""
        program.run(rounds)
        self.model.unpacked()

    def make_ready(self) -> None:
        _ = self.gradient_program

    def run_gradients(self) -> float:
        self.run_packing(self.gradient_program)
        return float(self.total[0]) / self.count

    def add_up(self) -> None:
        """Finish the gradient, which segments leave in as many sums as it is made of."""
        self._adding_program.run()

    @cached_property
    def _adding_program(self) -> Program:
        return self.team.program(*self._adding())

    @cached_property
    def gradient_program(self) -> Program:
        return self.team.program(*self.phases())

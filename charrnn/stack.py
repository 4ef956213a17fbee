"""L layers of one cell: what lies between them, and the order of the calls.

Layer l reads ``x[l]`` and writes ``w[l]["h"][1:]``. Between layers, and before the output,

    x[l+1] = mask * (h_l + x[l])

with the mask of dropout and, for residual links, x[l] where the widths agree. Where there is
neither, ``x[l+1]`` is h_l itself: no copy. ``dx`` mirrors ``x`` on the way back.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np

from charrnn.cells.base import (
    Arrays,
    Call,
    Cell,
    Packing,
    Product,
    packed_pair,
    part_of,
    rows,
    whole,
)
from charrnn.config import ModelConfig
from charrnn.kernels.dropout import add, clear, link, unlink
from charrnn.kernels.gather import embed, scatter
from charrnn.kernels.gemm import layout
from charrnn.kernels.pack import aligned_zeros, in_one_place, pack, pack_t, plain
from charrnn.kernels.softmax import back_project, column_sums, project
from charrnn.kernels.tile import tile_of
from charrnn.operands import Operands
from charrnn.params import Params
from charrnn.sums import Portion
from charrnn.threads import Part, Phase, Program

NO_IDS = np.empty((0, 0), np.int32)


class Stack:
    """The weights of all layers, as they are and packed.

    Parameters
    ----------
    gradient : whether it is trained: the weights are packed for the way back, too
    operands : what products with the weights are made of
    memory : for packed weights, in their order: that of another stack, which is not used meanwhile

    Attributes
    ----------
    grain : rows of a batch that take as long as one
    """

    def __init__(
        self, config: ModelConfig, cell: Cell, params: Params, gradient: bool,
        operands: Operands, memory: Sequence[np.ndarray] = (),
    ) -> None:  # fmt: skip
        self.config, self.cell, self.gradient = config, cell, gradient
        self.embedding = params.views.get("embedding")
        self.p = [params.part(f"layers.{i}.") for i in range(config.num_layers)]
        self.memory: list[np.ndarray] = []
        self._given = list(memory)
        self.grain = layout(operands.of_layer(*self.p[0]["Wh"].shape)).grain
        layers = []
        for i, p in enumerate(self.p):
            room = partial(self._room, operands.of_layer(*p["Wh"].shape))
            layer = cell.packing(p, room, gradient)
            if not self.reads_ids(i):
                room = partial(self._room, operands.of_layer(*p["Wx"].shape))
                layer += packed_pair("Wx", p["Wx"], room, gradient)
            layers.append(layer)
        WyT = params.views["head.Wy"].T
        V, H = WyT.shape
        there, back = (self._room(operands.of(V, H), *shape)[0] for shape in (((H, V),), ((V, H),)))
        head = Packing({"Wy": there}, [(pack_t, (plain(there), WyT, 0, H))], [])
        if gradient:  # both ways at the same time, block by block
            head += Packing({"WyT": back}, [(pack, (plain(back), WyT, 0, H))], [])
        self.head, self.k = head.arrays, [layer.arrays for layer in layers]
        self._packing = sum(layers, head)
        self.packing: dict[int, Program] = {}
        """What runs `pack`, by the number of threads."""
        self.version = -1
        """Version of the weights that are packed for the way there; -1 if none are."""

    def _room(self, operands: str, *shapes: tuple[int, int]) -> list[np.ndarray]:
        given = self._given.pop(0) if self._given else None
        found = in_one_place(operands, *shapes, memory=given)
        self.memory.append(max(found, key=np.size).reshape(-1).view(np.uint8))
        return found

    def pack(self, parts: int) -> Phase:
        """Packs the weights for the way there, shared by so many threads."""
        return [part_of(self._packing.there, i, parts) for i in range(parts)]

    def pack_back(self, parts: int) -> Phase:
        """Packs them for the way back, in the same memory."""
        return [part_of(self._packing.back, i, parts) for i in range(parts)]

    def reads_ids(self, i: int) -> bool:
        """Whether layer ``i`` gathers rows of Wx by character."""
        return i == 0 and self.embedding is None


class Window:
    """Work arrays and call lists for windows of T steps and B rows.

    Parameters
    ----------
    chained : the way back begins with the gradient of the final state that stands in ``dh0`` (and
        ``dc0``), and the weights' gradients are added to what is there
    like : lends its arrays to a shorter window

    Attributes
    ----------
    w : each layer's work arrays
    results : each layer's work arrays as `backward_calls` leave them
    ways, places : (T, B), see `charrnn.cells.base` and `charrnn.kernels.dropout`
    """

    def __init__(
        self, stack: Stack, ids: np.ndarray, *, training: bool, dropout: float = 0.0,
        chained: bool = False, like: Window | None = None,
    ):  # fmt: skip
        self.stack, self.ids, self.training = stack, ids, training
        self.T, self.B = ids.shape
        self.chained, self.like = chained, like
        H, cell, config = stack.config.hidden_size, stack.cell, stack.config
        dtype = config.dtype
        self.threshold = np.uint32(min(round(dropout * 2**32), 2**32 - 1))
        self.scale = np.dtype(dtype).type(1 / (1 - dropout))
        shapes = cell.work_shapes(self.T, self.B, H)
        if not training:
            forward_only = (*cell.states, "gates")
            shapes = {n: s for n, s in shapes.items() if n in forward_only}
        self.arrays: Arrays = {}
        shared = ("dh", "ways")  # a layer's dh is no longer needed when the one below gets its own
        self.w = [
            {n: self.array(n if n in shared else f"{i}.{n}", s) for n, s in shapes.items()}
            for i in range(len(stack.p))
        ]
        self.results = self.w
        if training:
            self.ways = self.w[0]["ways"]
            self.ways[:] = 1
        self.places = np.arange(self.T * self.B, dtype=np.uint32).reshape(self.T, self.B)
        self.keys: list[Any] = like.keys if like else [np.zeros(1, np.uint32) for _ in self.w]
        self.x: list[np.ndarray] = [np.empty((0, 0, 0), dtype)]
        self.dx: list[np.ndarray] = [np.empty((0, 0, 0), dtype)]
        if stack.embedding is not None:
            E = stack.embedding.shape[1]
            self.x[0] = self.array("x0", (self.T, self.B, E))
            if training:
                self.dx[0] = self.array("dx0", (self.T, self.B, E))
        shape = (self.T, self.B, H)
        for i, w in enumerate(self.w):
            if self.has_link(i):
                self.x.append(self.array(f"x{i + 1}", shape))
            else:
                self.x.append(w["h"][1:])
            if training:  # a residual link sends it two ways, others can use the layer's own
                self.dx.append(self.array(f"dx{i + 1}", shape) if self.skips(i) else w["dh"])

    def array(self, name: str, shape: tuple[int, ...]) -> np.ndarray:
        """A work array of zeros, or that of this name in the window that lends its arrays."""
        if name in self.arrays:
            return self.arrays[name]
        if self.like is None:
            array = aligned_zeros(shape, self.stack.config.dtype)
        else:
            array = self.like.arrays[name].reshape(-1)[: int(np.prod(shape))].reshape(shape)
        self.arrays[name] = array
        return array

    def skips(self, i: int) -> bool:
        """Whether layer ``i`` has a residual link."""
        config = self.stack.config
        return config.residual and self.x[i].shape[-1] == config.hidden_size

    def has_link(self, i: int) -> bool:
        """Whether ``x[i + 1]`` is something else than layer ``i``'s output."""
        return self.threshold > 0 or self.skips(i)

    def forward_calls(self, part: Part) -> list[Call]:
        """One thread's part of all layers."""
        stack = self.stack
        calls: list[Call] = []
        if stack.embedding is not None:
            calls.append((embed, (self.x[0], self.ids, stack.embedding, *part.rows)))
            calls += part.join()
        for i, (p, k, w) in enumerate(zip(stack.p, stack.k, self.w, strict=True)):
            ids = self.ids if stack.reads_ids(i) else NO_IDS
            if not stack.reads_ids(i):
                product = (w["gates"], self.x[i], k["Wx"], p["b"])
                calls.append((project, (*product, *part.rows, part.seat, tile_of(k["Wx"]))))
                calls += part.join()
            calls.append(stack.cell.forward(p, k, w, ids, part))
            if self.has_link(i):
                skip = self.x[i] if self.skips(i) else np.empty((0, 0, 0), w["h"].dtype)
                mask = (self.places, self.keys[i], self.threshold, self.scale)
                calls.append((link, (self.x[i + 1], w["h"][1:], skip, *mask, *part.rows)))
                calls += part.join()
        return calls

    def backward_calls(self, part: Part) -> list[Call]:
        """Undo `forward_calls`: from ``dx[L]`` to the gradients of gates, inputs and states."""
        stack = self.stack
        calls: list[Call] = []
        for i in range(len(self.w) - 1, -1, -1):
            p, k, w = stack.p[i], stack.k[i], self.w[i]
            if self.has_link(i):
                mask = (self.places, self.keys[i], self.threshold, self.scale)
                calls.append((unlink, (w["dh"], self.dx[i + 1], *mask, *part.rows)))
            if not self.chained:
                calls += [(clear, (w[f"d{s}0"], *part.rows)) for s in stack.cell.states]
            calls += part.join()
            calls.append(stack.cell.backward(p, k, w, part))
            if not stack.reads_ids(i):
                N = p["Wx"].shape[1]
                product = (self.dx[i], w["gates"], k["WxT"], N)
                calls.append((back_project, (*product, *part.rows, part.seat, tile_of(k["WxT"]))))
                calls += part.join()
                if self.skips(i):
                    calls.append((add, (self.dx[i], self.dx[i + 1], *part.rows)))
        return calls

    def products(self, i: int, grads: Params) -> list[Product]:
        """The gradients of layer ``i``'s matrices."""
        stack, g, w = self.stack, grads.part(f"layers.{i}."), self.results[i]
        found = stack.cell.weight_products(g, w)
        if not stack.reads_ids(i):
            found.append(whole(g["Wx"], rows(self.x[i]), rows(w["gates"])))
        return found

    def sums(self, i: int, portion: Portion, grads: Params) -> list[Call]:
        """What a portion of rows gives, or adds, to the gradients of layer ``i`` that are sums.

        These are the bias, Wx or the embedding of characters, and the cell's own.
        """
        g, cell, block = grads.part(f"layers.{i}."), self.stack.cell, portion.rows
        ids, again = self.ids.reshape(-1)[block], portion.again
        left = {name: rows(self.results[i][name])[None, block] for name in cell.leaves}
        gates, columns = rows(left["gates"]), portion.share(g["b"].size)
        calls: list[Call] = []
        if self.stack.reads_ids(i):
            calls.append((scatter, (g["Wx"], ids, gates, *columns, again)))
            if portion.last:  # each row reads one character: the bias's is the sum over these
                calls.append((column_sums, (g["b"], g["Wx"], *columns, 0, False)))
        else:
            calls.append((column_sums, (g["b"], gates, *columns, 0, again)))
        if i == 0 and "embedding" in grads.views:
            gradient, dx = grads.views["embedding"], rows(self.dx[0])[block]
            calls.append((scatter, (gradient, ids, dx, *portion.share(gradient.shape[1]), again)))
        return calls + cell.reductions(g, left, again, portion.part, portion.parts)

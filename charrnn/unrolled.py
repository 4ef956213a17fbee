"""The network unrolled: what each time step's own copy of the parameters does to each loss.

L_l is the loss, in nats, of the target at time l of a window. Imagine that every time step e had
its own copy of all parameters: the *component* (l, e) is the gradient of L_l by the copy of step e,
all others held. Summed over e it is the gradient of L_l, summed over l and e the total gradient.

A `Probe` runs one stream of text forward, once, and then takes the gradients of many losses back
side by side, as the rows of a batch whose rows all have the same states: step by step through the
cells' own compiled `backward`. With one stream a component is a product of two vectors, so that its
norm is the product of their norms and no matrix is made. All is float64: far components of a plain
network are smaller than float32 can hold.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from functools import partial
from typing import NamedTuple

import numpy as np

from charrnn.cells.base import Arrays, Cell, Part
from charrnn.errors import InputError
from charrnn.kernels.pack import in_one_place
from charrnn.kernels.program import make
from charrnn.kernels.seat import ALONE, NOWHERE
from charrnn.model import Model
from charrnn.params import Params
from charrnn.passes import Pass, State


def in_float64(model: Model) -> Model:
    """A model with the same weights, float64; without dropout."""
    config = dataclasses.replace(model.config, dtype="float64", precision="float32", dropout=0.0)
    double = Model(config, model.vocab_size)
    for name, view in model.params.views.items():
        double.params.views[name][:] = view
    double.changed()
    return double


class Step(NamedTuple):
    """Gradients of some losses at one time step; a row is a loss, the latest first."""

    time: int
    losses: np.ndarray
    """(R,): those at or after ``time``."""
    layers: list[Arrays]
    """Each layer's gradients by its states after the step, ``h`` and for some cells ``c`` (R, H),
    and what the cell's backward leaves, ``gates`` (R, width) and the like; good until the next."""
    input: np.ndarray
    """(R, V) by a one-hot input, (R, E) by an embedding."""


class Layer:
    """One layer's weights and values, and one step back through it for many rows."""

    def __init__(
        self, cell: Cell, p: Arrays, values: Arrays, ids: np.ndarray, x: np.ndarray | None
    ) -> None:
        self.cell, self.p, self.values, self.ids, self.x = cell, p, values, ids, x
        packing = cell.packing(p, partial(in_one_place, "float64"), True)
        for call in packing.back:
            make(call)
        self.k = packing.arrays
        self.width = p["Wx"].shape[1]
        self.exposure = cell.exposure(values)
        self.own = [name for name in p if name not in ("Wx", "Wh", "b")]
        self.scratch = {name: np.zeros_like(array) for name, array in p.items()}

    def room(self, rows: int) -> Arrays:
        """Work arrays for one time step."""
        shapes = self.cell.work_shapes(1, rows, len(self.p["Wh"]))
        return {name: np.zeros(shape) for name, shape in shapes.items()}

    def values_width(self, name: str) -> int:
        """Columns of a work array."""
        return self.cell.work_shapes(1, 1, len(self.p["Wh"]))[name][2]

    def back(self, room: Arrays, time: int, rows: int, dh: np.ndarray | float) -> Arrays:
        """Undo one step for the first ``rows`` rows; ``dh`` comes from above (rows, H)."""
        others = {s: room[f"d{s}0"][:rows].copy() for s in self.exposure}
        for name in self.cell.reads:
            slots = len(room[name])
            room[name][:, :rows] = self.values[name][time : time + slots]
        room["ways"][:] = 1
        room["dh"][0, :rows] = dh
        part = Part(0, rows, NOWHERE, ALONE)
        make(self.cell.backward(self.p, self.k, room, part))
        found = {name: room[name][0, :rows] for name in self.cell.leaves}
        found["h"] = room["dh"][0, :rows]
        for s, d in others.items():
            found[s] = d + found["h"] * self.exposure[s][time]
        return found

    def to_input(self, gates: np.ndarray) -> np.ndarray:
        """The gradient by the layer's input, (R, D)."""
        return gates[:, : self.width] @ self.p["Wx"].T

    def norms(self, time: int, found: Arrays) -> dict[str, np.ndarray]:
        """Parameter -> norm of every row's component of this step, (R,)."""
        gates = found["gates"]
        bias = np.linalg.norm(gates[:, : self.width], axis=1)
        size = 1.0 if self.x is None else np.linalg.norm(self.x[time])
        norms = {"Wx": size * bias, "b": bias}
        work = {"h": self.values["h"][time : time + 2], "gates": gates[None]}
        squares = np.zeros(len(gates))
        for product in self.cell.weight_products(self.scratch, work):
            part = product.dgates[:, product.first + product.shift : product.last + product.shift]
            squares += (np.linalg.norm(product.inputs) * np.linalg.norm(part, axis=1)) ** 2
        norms["Wh"] = np.sqrt(squares)
        if self.own:
            each = []
            for row in range(len(gates)):
                self._reduce({n: found[n][None, row : row + 1] for n in self.cell.leaves})
                each.append([np.linalg.norm(self.scratch[name]) for name in self.own])
            norms |= dict(zip(self.own, np.reshape(each, (-1, len(self.own))).T, strict=True))
        return norms

    def gradients(self, first: int, leaves: Arrays) -> Arrays:
        """Parameter -> gradient, of steps from ``first`` on that left ``leaves`` (n, width)."""
        n, gates = len(leaves["gates"]), leaves["gates"][:, : self.width]
        steps = slice(first, first + n)
        g = {name: np.zeros_like(array) for name, array in self.p.items()}
        work = {name: np.ascontiguousarray(array[:, None]) for name, array in leaves.items()}
        self._reduce(work)
        g |= {name: self.scratch[name].copy() for name in self.own}
        for product in self.cell.weight_products(g, work | {"h": self.values["h"][first:]}):
            m0, m1 = product.first, product.last
            dgates = product.dgates[:, m0 + product.shift : m1 + product.shift]
            product.gradient[:, m0:m1] = product.inputs[:n].T @ dgates
        if self.x is None:
            np.add.at(g["Wx"], self.ids[steps], gates)
        else:
            g["Wx"][:] = self.x[steps].T @ gates
        g["b"][:] = gates.sum(axis=0)
        return g

    def _reduce(self, work: Arrays) -> None:
        """Fill the ``scratch`` of parameters that are neither matrices nor the bias ``b``."""
        for call in self.cell.reductions(self.scratch, work, False):
            make(call)


class Probe:
    """One stream of text through a model, and the gradients of its losses on their way back.

    Parameters
    ----------
    model : of any type; a float64 copy is made
    ids, targets : (T,) integers
    state : before the window, (L, 1, H) each; None is zero

    Attributes
    ----------
    losses : (T,) nats
    """

    def __init__(
        self, model: Model, ids: np.ndarray, targets: np.ndarray, state: State | None = None
    ) -> None:
        self.model = model = in_float64(model)
        self.ids, self.targets = np.asarray(ids), np.asarray(targets)
        ids, targets = (model.checked(each[:, None]) for each in (self.ids, self.targets))
        self.state = state
        run = Pass(model, len(self.ids), 1, "forward")
        run.load(ids, targets)
        run.set_state(state)
        run.run_losses()
        self.losses = run.losses[:, 0]
        x = [array[:, 0] if array.size else None for array in run.window.x]
        self.layers = [
            Layer(model.cell, p, w, self.ids, x[i])
            for i, (p, w) in enumerate(zip(run.stack.p, run.window.w, strict=True))
        ]
        self.skips = [run.window.skips(i) for i in range(len(self.layers))]
        self.output = run.window.x[-1][:, 0]
        head = model.params.views
        z = self.output @ head["head.Wy"] + head["head.by"]
        p = np.exp(z - z.max(axis=1, keepdims=True))
        self.dlogits = p / p.sum(axis=1, keepdims=True)
        self.dlogits[np.arange(len(z)), self.targets] -= 1

    @property
    def length(self) -> int:
        """Time steps of the window (T)."""
        return len(self.ids)

    def walk(self, losses: Sequence[int] | np.ndarray) -> Iterator[Step]:
        """Take the gradients of these losses back, step by step, from the last one to step 0."""
        rows_of = np.sort(np.asarray(losses))[::-1]
        if not len(rows_of) or not 0 <= rows_of[-1] <= rows_of[0] < self.length:
            raise InputError(f"losses {losses}: needed are times from 0 to {self.length - 1}")
        rooms = [layer.room(len(rows_of)) for layer in self.layers]
        doutput = self.dlogits @ self.model.params.views["head.Wy"].T
        for time in range(rows_of[0], -1, -1):
            rows = int(np.count_nonzero(rows_of >= time))
            d = np.where(rows_of[:rows, None] == time, doutput[time], 0.0)
            found: list[Arrays] = []
            for layer, room, skips in zip(
                self.layers[::-1], rooms[::-1], self.skips[::-1], strict=True
            ):
                found.insert(0, layer.back(room, time, rows, d))
                below = layer.to_input(found[0]["gates"])
                d = below + d if skips else below
            yield Step(time, rows_of[:rows], found, d)

    def jacobians(
        self, layer: int, last: int, count: int
    ) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """For k = 1, 2, ... ``count``: a step's Jacobian and the product of the last k.

        With s a layer's state, (h, c) side by side where there is a c, and S its width:
        ds_t/ds_(t-1) at t = last - k + 1, and ds_last/ds_(last-k), both (S, S), the later state in
        the rows.
        """
        one, H = self.layers[layer], self.model.config.hidden_size
        names = [f"d{s}0" for s in self.model.cell.states]
        S = H * len(names)
        step, product = one.room(S), one.room(S)

        def start(room: Arrays) -> None:
            for i, name in enumerate(names):
                room[name][:] = np.eye(S, H, -i * H)

        start(product)
        for time in range(last, last - count, -1):
            start(step)
            found = []
            for room in (step, product):
                one.back(room, time, S, 0.0)
                found.append(np.hstack([room[name] for name in names]))
            yield found[0], found[1]

    def terms(self, loss: int) -> list[Arrays]:
        """``terms[e]``: the component (loss, e) by every parameter, under its own name.

        The head's is zero for e < loss. ``input`` is the gradient by what the network reads at e:
        (V,) for a one-hot input, (E,) for an embedding.
        """
        found = [
            self.gradients_of(s.time, [{n: a[:1] for n, a in w.items()} for w in s.layers], s.input)
            | {"input": s.input[0].copy()}
            for s in self.walk([loss])
        ][::-1]
        for e, term in enumerate(found):
            here = self.dlogits[loss] * (e == loss)
            term["head.Wy"] = np.outer(self.output[e], here)
            term["head.by"] = here
        return found

    def component(self, loss: int, step: int) -> Arrays:
        """The component (loss, step) by every parameter and the input: see `terms`."""
        return self.terms(loss)[step]

    def norms(self, step: Step) -> dict[str, np.ndarray]:
        """Parameter of the layers, embedding, ``input`` -> norms of the components, (R,)."""
        size = np.linalg.norm(step.input, axis=1)
        found = {"input": size}
        if "embedding" in self.model.params.views:
            found["embedding"] = size
        for i, (layer, w) in enumerate(zip(self.layers, step.layers, strict=True)):
            found |= {f"layers.{i}.{n}": a for n, a in layer.norms(step.time, w).items()}
        return found

    def gradients_of(self, first: int, layers: list[Arrays], inputs: np.ndarray) -> Arrays:
        """Gradients of the layers and the embedding, of steps from ``first`` on.

        ``layers`` and ``inputs`` are as in `Step`, but their rows are steps.
        """
        found: Arrays = {}
        if "embedding" in self.model.params.views:
            found["embedding"] = np.zeros(self.model.shapes()["embedding"])
            np.add.at(found["embedding"], self.ids[first : first + len(inputs)], inputs)
        for i, (layer, w) in enumerate(zip(self.layers, layers, strict=True)):
            leaves = {name: w[name] for name in self.model.cell.leaves}
            g = layer.gradients(first, leaves)
            found |= {f"layers.{i}.{name}": array for name, array in g.items()}
        return found

    def gradient(self, losses: Sequence[int] | np.ndarray) -> Params:
        """The gradient of the sum of these losses by the ordinary way of training."""
        run = Pass(self.model, self.length, 1, "gradient")
        targets = np.full((self.length, 1), -1)
        targets[losses, 0] = self.targets[losses]
        run.load(self.ids[:, None], targets, 1.0, 1)
        run.set_state(self.state)
        run.run_gradients()
        return self.model.grads

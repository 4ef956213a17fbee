"""What a cell is, and the notation of all cells.

Sizes: T time steps, B batch rows, D input width, H hidden units, G gates per unit. Slot 0 of the
state arrays is the state before the window, so ``h[t + 1]`` belongs to input t. Rows of the batch
never meet inside a cell: a kernel does the rows ``r0 <= r < r1`` of every time step, and any
division of the batch over threads gives the same bits. Or it does some units of all rows, and
meets the threads that do the others at every step: see `charrnn.kernels.seat`.

A new cell is one file in this folder that defines ``CELL``, a subclass of `Cell`, and its slow
twin in ``tests/naive.py``. Its kernels follow one pattern:

    forward    gates[t] holds x_t Wx + b on entry (or is gathered from Wx by id), gets
               h_(t-1) Wh added, becomes the gates' values, and h[t+1] is written;
    backward   from the last step to the first, dh[t] (the gradient of h[t+1] from above) gets the
               recurrent part, times ways[t], added, and gates[t] is replaced by the gradient before
               the non-linearity.

The gradients of the weights are products over all T*B rows, which `weight_products` names.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import ClassVar, NamedTuple

import numpy as np

from charrnn.kernels.pack import pack, pack_t, plain
from charrnn.threads import Call, Part, share

Arrays = dict[str, np.ndarray]
Room = Callable[..., list[np.ndarray]]
"""Packed matrices of some shapes (K, N), which use the same memory one after the other."""

SLOPES: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "tanh": lambda y: 1 - y**2,
    "sigmoid": lambda y: y * (1 - y),
    "relu": lambda y: (y > 0) * 1.0,
    "identity": np.ones_like,
}
"""Activation -> its derivative, seen from its value."""


class Product(NamedTuple):
    """``gradient[:, first:last] = inputs.T @ dgates[:, first + shift : last + shift]``."""

    gradient: np.ndarray
    inputs: np.ndarray
    dgates: np.ndarray
    first: int
    last: int
    shift: int


class Packing(NamedTuple):
    """Room for packed weights, and the calls that fill it for the way there and for the way back.

    Both ways use the same memory one after the other.
    """

    arrays: Arrays
    there: list[Call]
    back: list[Call]

    def __add__(self, other: Packing) -> Packing:  # type: ignore[override]
        return Packing(self.arrays | other.arrays, self.there + other.there, self.back + other.back)


class Cell(ABC):
    """One kind of recurrent layer. Stateless: arrays come in as dictionaries by name.

    ``p`` holds a layer's weights, ``k`` what `packing` made of them, ``w`` the work arrays of a
    window: ``h`` (T+1, B, H) and for some cells ``c``; ``gates`` (T, B, buffer width); ``dh``
    (T, B, H); ``dh0`` (and ``dc0``) (B, H), the gradient of the state that leaves the window on
    entry of `backward` and of the one that enters it on return; ``ways`` (T, B), by which the
    gradient that comes back into the state after a step is multiplied: 1, or 1/p where a randomized
    window may have ended, p the chance that it goes on.
    """

    name: ClassVar[str]
    gates: ClassVar[int]
    states: ClassVar[tuple[str, ...]] = ("h",)
    reads: ClassVar[tuple[str, ...]] = ("gates",)
    """Work arrays of the way there that `backward` reads, beside what it returns in them."""
    leaves: ClassVar[tuple[str, ...]] = ("gates",)
    """Work arrays (T, B, .) in which `backward` leaves what the weights' gradients are made of."""
    torch_module: ClassVar[str] = ""
    activations: ClassVar[tuple[str, ...]] = ("tanh",)
    squashes: dict[str, str]
    """Gate -> its activation, in the order of the columns of ``gates``."""

    def __init__(self, activation: str = "tanh") -> None:
        self.activation = activation

    def shapes(self, D: int, H: int) -> dict[str, tuple[int, ...]]:
        """Weight name -> shape."""
        G = self.gates
        return {"Wx": (D, G * H), "Wh": (H, G * H), "b": (G * H,)}

    def initialize(self, p: Arrays) -> None:  # noqa: B027 (a hook that may stay empty)
        """Adjust freshly drawn uniform weights in place; most cells have nothing to do."""

    def work_shapes(self, T: int, B: int, H: int) -> dict[str, tuple[int, ...]]:
        """Shape of every work array of a window that is trained."""
        shapes = {s: (T + 1, B, H) for s in self.states}
        shapes |= {"gates": (T, B, self.gates * H), "dh": (T, B, H)}
        return shapes | {"ways": (T, B)} | {f"d{s}0": (B, H) for s in self.states}

    def packing(self, p: Arrays, room: Room, gradient: bool) -> Packing:
        """The recurrent weights, packed in ``room``; with ``gradient`` both ways."""
        return packed_pair("Wh", p["Wh"], room, gradient)

    @abstractmethod
    def forward(self, p: Arrays, k: Arrays, w: Arrays, ids: np.ndarray, part: Part) -> Call:
        """The call that runs the rows through all time steps.

        ``ids`` (T, B) int32 for a layer that reads characters; (0, 0) if ``gates`` already holds
        the projected input.
        """

    @abstractmethod
    def backward(self, p: Arrays, k: Arrays, w: Arrays, part: Part) -> Call:
        """The call that takes the rows back through time."""

    def weight_products(self, g: Arrays, w: Arrays) -> list[Product]:
        """The products that give the recurrent weights' gradients ``g``."""
        T = len(w["gates"])
        return [whole(g["Wh"], rows(w["h"][:T]), rows(w["gates"]))]

    def reductions(
        self, g: Arrays, w: Arrays, accumulate: bool, part: int = 0, parts: int = 1
    ) -> list[Call]:
        """Calls for a part of the gradients ``g`` that are neither products nor the bias ``b``.

        ``w`` has what `backward` left of some rows (1, R, .); the last ones come first.
        """
        return []

    def kept(self, p: Arrays, w: Arrays) -> np.ndarray | None:
        """(T, B, H): the factor that takes a unit's memory from step to step without a matrix.

        The memory is the last of the ``states``; None if the cell has no such path.
        """
        return None

    def exposure(self, w: Arrays) -> Arrays:
        """State -> derivative of h by it within a step, unit by unit, (T, B, H); h left out."""
        return {}

    def slope(self, p: Arrays, gates: np.ndarray) -> np.ndarray | None:
        """dh_t/da, (T, B, H), for a cell of one gate: a is the sum before its activation.

        The largest singular value s of Wh then bounds a step's Jacobian: it is kept + slope * s.
        """
        return None

    def to_torch(self, p: Arrays, gradients: bool = False) -> Arrays:
        """A layer's weights under PyTorch's names and in its layout.

        PyTorch adds two biases: the second one is zero, but the gradient of both is the same.
        """
        return {
            "weight_ih": p["Wx"].T,
            "weight_hh": p["Wh"].T,
            "bias_ih": p["b"],
            "bias_hh": p["b"].copy() if gradients else np.zeros_like(p["b"]),
        }

    def from_torch(self, t: Arrays) -> Arrays:
        """Inverse of `to_torch`; the two biases are summed."""
        return {
            "Wx": t["weight_ih"].T,
            "Wh": t["weight_hh"].T,
            "b": t["bias_ih"] + t["bias_hh"],
        }


def rows(x: np.ndarray) -> np.ndarray:
    """(T, B, N) as (T*B, N)."""
    return x.reshape(-1, x.shape[-1])


def whole(gradient: np.ndarray, inputs: np.ndarray, dgates: np.ndarray) -> Product:
    """A product over all columns of the gradient."""
    return Product(gradient, inputs, dgates, 0, gradient.shape[1], 0)


def packed_pair(
    name: str, W: np.ndarray, room: Room, gradient: bool, n0: int = 0, n1: int | None = None
) -> Packing:
    """Columns n0 <= n < n1 of W packed for ``x @ W`` and, as ``nameT``, for ``dy @ W.T``."""
    n1 = W.shape[1] if n1 is None else n1
    shapes = ((len(W), n1 - n0), (n1 - n0, len(W)))
    if not gradient:
        (there,) = room(*shapes[:1])
        return Packing({name: there}, [(pack, (plain(there), W, n0, n1))], [])
    there, back = room(*shapes)
    return Packing(
        {name: there, name + "T": back},
        [(pack, (plain(there), W, n0, n1))],
        [(pack_t, (plain(back), W, n0, n1))],
    )


def part_of(calls: list[Call], part: int, parts: int) -> list[Call]:
    """One of ``parts`` shares of packing calls: a run of every matrix's panels."""
    found: list[Call] = []
    for kernel, (P, W, n0, n1) in calls:
        p0, p1 = share(len(P), part, parts)
        first, last = p0 * P.shape[2], p1 * P.shape[2]
        if kernel is pack:
            found.append((pack, (P[p0:p1], W, n0 + first, min(n1, n0 + last))))
        else:
            found.append((pack_t, (P[p0:p1], W[first:last], n0, n1)))
    return found

"""Formulas on elements, compiled to loops over vectors.

A formula is a Python function on arrays. `elementwise` makes of it a function for kernels: called
with `Vector` in place of arrays, the formula writes its own instructions, once for whole vectors
and once, masked, for what is left of a row. It is one loop however many arrays it reads and writes;
the compiler's own vectoriser gives up on such, because it cannot prove them apart. Without the
compiler the same formula works on NumPy's arrays.

float32 uses a rational tanh and a polynomial exp, both within a few units in the last place and
written without branches or calls; float64, which is for gradient checks, uses the C library.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
from llvmlite import ir
from numba.core import cgutils, config, types
from numba.extending import intrinsic

from charrnn.kernels.jit import FAST_MATH, VECTOR_BITS
from charrnn.kernels.vector import Emitter

Formula = Callable[..., tuple[Any, ...]]
POSITIONAL = inspect.Parameter.POSITIONAL_ONLY
FLAGS = tuple(sorted(FAST_MATH))
TOGETHER = 2
"""Vectors side by side in a loop: chains of dependent operations that the processor overlaps."""


def elementwise(*written: str) -> Callable[[Formula], Callable[..., None]]:
    """Decorator: a formula becomes a function for kernels that writes its results.

    The formula returns a tuple, one result for every parameter named in ``written``; these are
    arrays, the others arrays or numbers, all of one type, the arrays contiguous and of one length.
    An array may be given twice, but not overlap with another one. In the formula they know
    ``+ - * /``, ``-x`` and the functions of this module.
    """

    def decorator(formula: Formula) -> Callable[..., None]:
        names = list(inspect.signature(formula).parameters)
        places = [names.index(name) for name in written]

        def on_arrays(*args: Any) -> None:
            shape = args[places[0]].shape
            results = [np.array(np.broadcast_to(x, shape)) for x in formula(*args)]
            for place, result in zip(places, results, strict=True):
                args[place][:] = result

        return on_arrays if config.DISABLE_JIT else _compiled(formula, names, places)

    return decorator


def _compiled(formula: Formula, names: list[str], places: list[int]) -> Any:
    """The formula as an intrinsic: its arguments come one by one, since Numba counts references to
    the arrays of a tuple, which takes longer than the arithmetic."""

    def loop(typingctx, *kinds):
        scalar = kinds[places[0]].dtype
        for kind in kinds:
            assert kind == scalar or (kind.dtype == scalar and kind.layout == "C"), kind

        def codegen(context, builder, signature, args):
            lanes = VECTOR_BITS // scalar.bitwidth
            emitter = Emitter(builder, context.get_data_type(scalar), lanes)
            arrays = [
                context.make_array(kind)(context, builder, value)
                if isinstance(kind, types.Array) else None
                for kind, value in zip(kinds, args, strict=True)
            ]  # fmt: skip
            size = builder.extract_value(arrays[places[0]].shape, 0)
            sources = [
                array.data if array else emitter.splat(value)
                for array, value in zip(arrays, args, strict=True)
            ]
            emit = partial(_emit, emitter, formula, sources, places, size)
            emit(emit(emitter.at(0), TOGETHER), 1)
            return context.get_dummy_value()

        return types.void(*kinds), codegen

    parameters = [inspect.Parameter(name, POSITIONAL) for name in ("typingctx", *names)]
    loop.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    return intrinsic(loop)


def _emit(emitter, formula, sources, places, size, begin, together):
    """Whole groups of ``together`` vectors, or one by one to the end, the last of which is masked.

    Returns the first element that is left.
    """
    b, to_the_end = emitter.builder, together == 1
    step = emitter.at(together * emitter.lanes)
    before = b.block
    head, body, end = (b.append_basic_block(f"elements.{name}") for name in ("head", "body", "end"))
    b.branch(head)
    b.position_at_end(head)
    first = emitter.phi(emitter.index, (begin, before))
    left = b.sub(size, first)
    b.cbranch(b.icmp_signed(">=", left, emitter.at(1) if to_the_end else step), body, end)

    b.position_at_end(body)
    mask = emitter.mask(left) if to_the_end else None
    shifts = [b.add(first, emitter.at(i * emitter.lanes)) for i in range(together)]
    loaded = [
        [x] * together if x.type == emitter.vector
        else [emitter.load(b.gep(x, [shift]), emitter.vector, mask) for shift in shifts]
        for x in sources
    ]  # fmt: skip
    results = formula(*(Vector(emitter, x) for x in loaded))
    for place, result in zip(places, results, strict=True):
        for shift, value in zip(shifts, result.values, strict=True):
            emitter.store(value, b.gep(sources[place], [shift]), mask)
    first.add_incoming(b.add(first, step), b.block)
    b.branch(head)
    b.position_at_end(end)
    return first


class Vector:
    """What a formula's operations write code for: some vectors, side by side."""

    __array_ufunc__ = None  # a NumPy number on the left leaves the operation to this class

    def __init__(self, emitter: Emitter, values: list[ir.Value]) -> None:
        self.emitter, self.values = emitter, values
        self.builder = emitter.builder
        self.is_double = emitter.vector.element == ir.DoubleType()

    def operands(self, x: Any) -> list[ir.Value]:
        """x, or a number in every lane."""
        if isinstance(x, Vector):
            return x.values
        constant = ir.Constant(self.emitter.vector, [float(x)] * self.emitter.lanes)
        return [constant] * len(self.values)

    def each(self, emit: Callable[..., ir.Value], *operands: Any) -> Vector:
        """``emit``'s results for these operands."""
        columns = zip(*map(self.operands, operands), strict=True)
        return Vector(self.emitter, [emit(*column) for column in columns])

    def __add__(self, x: Any) -> Vector:
        return self.each(partial(self.builder.fadd, flags=FLAGS), self, x)

    def __sub__(self, x: Any) -> Vector:
        return self.each(partial(self.builder.fsub, flags=FLAGS), self, x)

    def __rsub__(self, x: Any) -> Vector:
        return self.each(partial(self.builder.fsub, flags=FLAGS), x, self)

    def __mul__(self, x: Any) -> Vector:
        return self.each(partial(self.builder.fmul, flags=FLAGS), self, x)

    def __truediv__(self, x: Any) -> Vector:
        return self.each(partial(self.builder.fdiv, flags=FLAGS), self, x)

    def __neg__(self) -> Vector:
        return 0.0 - self  # the sign of a zero is free

    __radd__, __rmul__ = __add__, __mul__

    def choose(self, comparison: str, bound: Any, then: Any, otherwise: Any) -> Vector:
        """``then`` where self compares so with ``bound``, else, as for NaN, ``otherwise``."""
        b = self.builder

        def emit(x: ir.Value, bound: ir.Value, then: ir.Value, otherwise: ir.Value) -> ir.Value:
            return b.select(b.fcmp_ordered(comparison, x, bound), then, otherwise)

        return self.each(emit, self, bound, then, otherwise)

    def of_library(self, name: str) -> Vector:
        """The C library's function of every lane."""
        b, kind = self.builder, ir.FunctionType(ir.DoubleType(), [ir.DoubleType()])
        function = cgutils.get_or_insert_function(b.module, kind, name)

        def emit(x: ir.Value) -> ir.Value:
            for lane in range(self.emitter.lanes):
                at = ir.Constant(ir.IntType(32), lane)
                x = b.insert_element(x, b.call(function, [b.extract_element(x, at)]), at)
            return x

        return self.each(emit, self)

    def power_of_two(self) -> Vector:
        """2**self for whole numbers in -126 .. 127, by writing the exponent's bits."""
        b, integers = self.builder, ir.VectorType(ir.IntType(32), self.emitter.lanes)
        bias, bits = (ir.Constant(integers, [n] * self.emitter.lanes) for n in (127, 23))

        def emit(x: ir.Value) -> ir.Value:
            return b.bitcast(b.shl(b.add(b.fptosi(x, integers), bias), bits), x.type)

        return self.each(emit, self)


def where_positive(x: Any, then: Any, otherwise: Any) -> Any:
    """``then`` where x > 0, else ``otherwise``."""
    if not isinstance(x, Vector):
        return np.where(x > 0, then, otherwise)
    return x.choose(">", 0.0, then, otherwise)


def at_least(x: Any, bound: float) -> Any:
    """The greater of both; NaN stays NaN."""
    return x.choose("<", bound, bound, x) if isinstance(x, Vector) else np.maximum(x, bound)


def at_most(x: Any, bound: float) -> Any:
    """The lesser of both; NaN stays NaN."""
    return x.choose(">", bound, bound, x) if isinstance(x, Vector) else np.minimum(x, bound)


def tanh(x: Any) -> Any:
    """Hyperbolic tangent."""
    if not isinstance(x, Vector):
        return np.tanh(x)
    if x.is_double:
        return x.of_library("tanh")
    # Minimax rational approximation of degree 13 over 6 (the coefficients that Eigen and others
    # use), cut where it is 1 - 2.4e-7. Absolute error below 3e-7.
    x = at_most(at_least(x, -7.90531110763549805), 7.90531110763549805)
    q = x * x
    a = -2.76076847742355e-16 * q + 2.00018790482477e-13
    a = a * q + -8.60467152213735e-11
    a = a * q + 5.12229709037114e-08
    a = a * q + 1.48572235717979e-05
    a = a * q + 6.37261928875436e-04
    a = a * q + 4.89352455891786e-03
    b = 1.19825839466702e-06 * q + 1.18534705686654e-04
    b = b * q + 2.26843463243900e-03
    b = b * q + 4.89352518554385e-03
    return x * a / b


def sigmoid(x: Any) -> Any:
    """Logistic function, ``1 / (1 + exp(-x))``."""
    if isinstance(x, Vector) and x.is_double:
        # By the sign, so that neither way loses digits to cancellation or overflows.
        e = exp(where_positive(x, -x, x))
        return where_positive(x, 1.0, e) / (1.0 + e)
    return 0.5 * tanh(0.5 * x) + 0.5


def exp(x: Any) -> Any:
    """Exponential of x <= 0; in float32 never less than exp(-87)."""
    if not isinstance(x, Vector):
        return np.exp(x)
    if x.is_double:
        return x.of_library("exp")
    # 2**n * e**r with |r| <= ln(2)/2: Cephes' reduction and polynomial. Adding and subtracting
    # 1.5 * 2**23 rounds to the nearest integer.
    x = at_least(x, -87.0)
    n = (x * 1.44269504088896341 + 12582912.0) - 12582912.0
    r = (x - n * 0.693359375) - n * -2.12194440e-4
    p = 1.9875691500e-4 * r + 1.3981999507e-3
    p = p * r + 8.3334519073e-3
    p = p * r + 4.1665795894e-2
    p = p * r + 1.6666665459e-1
    p = p * r + 5.0000001201e-1
    p = p * (r * r) + r + 1.0
    return p * n.power_of_two()

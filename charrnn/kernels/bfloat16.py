"""Pairs of bfloat16 numbers, the operands of processors' dot products with float32 sums.

A bfloat16 is the upper half of a float32. A pair is a uint32: the number of the lower k in its
lower half. Rounding is to the nearest, ties to even; infinities and NaN stay what they are, and
numbers below the least normal one become zero, because that is how processors round.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from llvmlite import ir
from numba.core import types
from numba.extending import intrinsic, overload

from charrnn.kernels.jit import HAS_BF16

PARTS = 3
"""Bfloat16 numbers that a float32 number is the sum of: each has 8 of its 24 bits."""


def rounded(x: np.ndarray) -> np.ndarray:
    """The bits of float32 numbers rounded to bfloat16, as uint32."""
    bits = np.ascontiguousarray(x, np.float32).view(np.uint32)
    up = (bits + np.uint32(0x7FFF) + (bits >> 16 & 1)) >> 16
    up = np.where(bits & 0x7F800000, up, bits >> 16 & 0x8000)
    return np.where(np.isnan(x), bits >> 16 | 0x40, up).astype(np.uint32)


def pairs(x: np.ndarray) -> np.ndarray:
    """The rows (..., K, N) of ``x`` rounded and in pairs: (..., ceil(K / 2), N) uint32."""
    odd = x.shape[-2] % 2
    bits = rounded(np.concatenate([x, np.zeros_like(x[..., :odd, :])], axis=-2))
    return bits[..., ::2, :] | bits[..., 1::2, :] << np.uint32(16)


def unpaired(x: np.ndarray) -> np.ndarray:
    """Undo `pairs`: (..., 2 K, N) float32."""
    halves = np.stack([x << np.uint32(16), x & np.uint32(0xFFFF0000)], axis=-2)
    return halves.reshape(*x.shape[:-2], 2 * x.shape[-2], x.shape[-1]).view(np.float32)


def pair(low, high):
    """Two float32 numbers as a pair."""
    return rounded(low) | rounded(high) << np.uint32(16)


@overload(pair)
def _pair(low, high):
    return lambda low, high: _emit_pair(low, high)


@intrinsic
def _emit_pair(typingctx, low, high):
    def codegen(context, builder, signature, args):
        return emit_pair(builder, *args)

    return types.uint32(types.float32, types.float32), codegen


def emit_pair(b: ir.IRBuilder, low: ir.Value, high: ir.Value) -> ir.Value:
    """`pair` for scalars or vectors."""
    if not isinstance(low.type, ir.VectorType):
        vectors = (b.bitcast(x, ir.VectorType(x.type, 1)) for x in (low, high))
        return b.bitcast(emit_pair(b, *vectors), ir.IntType(32))
    if not HAS_BF16:
        up = _emit_rounded(b, high)
        return b.or_(_emit_rounded(b, low), b.shl(up, _filled(up.type, 16)))
    n, pairs = low.type.count, None
    for i in range(0, n, 16):  # the lanes of a register
        lanes = _indices([*range(i, min(i + 16, n)), *[0] * (i + 16 - n)])
        lower, upper = (b.shuffle_vector(x, x, lanes) for x in (low, high))
        halves = b.bitcast(_emit_halves(b, lower, upper), ir.VectorType(ir.IntType(16), 32))
        halves = b.shuffle_vector(
            halves, halves, _indices([j // 2 + j % 2 * 16 for j in range(32)])
        )
        part = b.bitcast(halves, lanes.type)
        wide = b.shuffle_vector(part, part, _indices([*range(min(n, 16))] * -(-n // 16)))
        place = _indices([n + j if i <= j < i + 16 else j for j in range(n)])
        pairs = wide if pairs is None else b.shuffle_vector(pairs, wide, place)
    return pairs


def emit_parts(
    b: ir.IRBuilder, low: ir.Value, high: ir.Value, nearest: bool = True
) -> list[ir.Value]:
    """Vectors of numbers as three vectors of pairs, whose sum they are exactly.

    Each part is what is left of the number rounded to 8 bits, ties away from zero, so that it is
    2^-8 of the one before at the most; the third one is all that is left. If not to the ``nearest``
    it is towards zero, which is quicker, and it is twice that at the most. Numbers from 3.396e38 on
    count as infinite, and the sum of an infinite number's parts is NaN; below 1e-33 parts are lost
    that are less than the least normal number. A NaN may change the last part of its partner in
    the pair: they meet in the same sums.
    """
    kind = ir.VectorType(ir.IntType(32), low.type.count)
    half, upper = (_filled(kind, x) for x in (0x8000, 0xFFFF0000))
    found, left = [], [low, high]
    for last in (False, False, True):
        bits = [b.bitcast(x, kind) for x in left]
        if not last:  # the third part has no more than 8 bits
            bits = [b.and_(b.add(x, half) if nearest else x, upper) for x in bits]
            left = [b.fsub(x, b.bitcast(part, x.type)) for x, part in zip(left, bits, strict=True)]
        found.append(b.or_(b.lshr(bits[0], _filled(kind, 16)), bits[1]))
    return found


def emit_neighbours(b: ir.IRBuilder, first: ir.Value, second: ir.Value) -> ir.Value:
    """Neighbours as pairs: those in ``first``, then those in ``second``."""
    if HAS_BF16:
        return _emit_halves(b, first, second)
    return emit_pair(b, *emit_split(b, first, second))


def emit_split(b: ir.IRBuilder, first: ir.Value, second: ir.Value) -> list[ir.Value]:
    """Every other number of those in ``first`` and ``second``, and the others."""
    n = first.type.count
    return [b.shuffle_vector(first, second, _indices(range(i, 2 * n, 2))) for i in (0, 1)]


def _emit_halves(b: ir.IRBuilder, first: ir.Value, second: ir.Value) -> ir.Value:
    """Two vectors of 16 rounded, as one register: first the one, then the other."""
    kind = ir.FunctionType(ir.VectorType(ir.IntType(32), 16), [first.type, second.type])
    code = "vcvtne2ps2bf16 $1, $2, $0"
    return b.call(ir.InlineAsm(kind, code, "=v,v,v", side_effect=False), [first, second])


def _indices(values: Sequence[int]) -> ir.Constant:
    return ir.Constant(ir.VectorType(ir.IntType(32), len(values)), list(values))


def _emit_rounded(b: ir.IRBuilder, x: ir.Value) -> ir.Value:
    kind = ir.IntType(32)
    if isinstance(x.type, ir.VectorType):
        kind = ir.VectorType(kind, x.type.count)
    bits = b.bitcast(x, kind)
    upper = b.lshr(bits, _filled(kind, 16))
    half = b.add(b.and_(upper, _filled(kind, 1)), _filled(kind, 0x7FFF))
    nearest = b.lshr(b.add(bits, half), _filled(kind, 16))
    tiny = b.icmp_unsigned("==", b.and_(bits, _filled(kind, 0x7F800000)), _filled(kind, 0))
    nearest = b.select(tiny, b.and_(upper, _filled(kind, 0x8000)), nearest)
    return b.select(b.fcmp_unordered("uno", x, x), b.or_(upper, _filled(kind, 0x40)), nearest)


def _filled(kind: ir.Type, value: int) -> ir.Constant:
    return ir.Constant(kind, [value] * kind.count if isinstance(kind, ir.VectorType) else value)


def emit_dot(b: ir.IRBuilder, x: ir.Value, y: ir.Value, z: ir.Value, native: bool) -> ir.Value:
    """``z`` plus both products of the pairs ``x`` and ``y``, in each lane.

    ``native`` is for processors with AVX512-BF16. Assembly, because the type of LLVM's own
    intrinsic has changed between versions.
    """
    if native:
        kind = ir.FunctionType(z.type, [z.type, x.type, y.type])
        dot = ir.InlineAsm(kind, "vdpbf16ps $3, $2, $0", "=v,0,v,v", side_effect=False)
        return b.call(dot, [z, y, x])
    contract = ("contract",)
    for part in (
        lambda pair: b.and_(pair, _filled(pair.type, 0xFFFF0000)),
        lambda pair: b.shl(pair, _filled(pair.type, 16)),
    ):
        factors = (b.bitcast(part(pair), z.type) for pair in (x, y))
        z = b.fadd(b.fmul(*factors, flags=contract), z, flags=contract)
    return z

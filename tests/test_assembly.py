"""The tile's inner loops for several processors, as assembly: they must not wait for the stack.

The compiler says nothing when accumulators do not fit the registers: it stores some of them and
loads them again at every step, and the product is slow. Other processors are compiled for, not run.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

import pytest
from llvmlite import binding, ir

from charrnn.kernels import amx, tile
from charrnn.kernels.tile import Tile, together, unrolled_for, vectors_for
from charrnn.kernels.vector import TileEmitter

X86, ARM = "x86_64-unknown-linux-gnu", "aarch64-unknown-linux-gnu"
PROCESSORS = {  # triple, bits of a vector, registers, features
    "x86-64": (X86, 128, 16, ""),
    "haswell": (X86, 256, 16, ""),
    "skylake-avx512": (X86, 512, 32, "-prefer-256-bit"),
    "znver4": (X86, 512, 32, "-prefer-256-bit"),
    "sapphirerapids": (X86, 512, 32, "-prefer-256-bit"),
    "generic": (ARM, 128, 32, "+neon"),
    "apple-m1": (ARM, 128, 32, ""),
}
MULTIPLY = re.compile(r"\s(mulp[sd]|vfn?m\w+p[sd]|fmla|vdpbf16ps|tdpbf16ps)\s")
STACK = re.compile(r"%[xyz]mm.*\(%rsp|\(%rsp.*%[xyz]mm|\b[qvd]\d+,.*\[sp\b")
"""A vector that passes through the stack; an address may."""
WAITS = re.compile(r"\(%rsp.*%[xyz]mm")
"""A vector that comes from there."""
ASK = re.compile(r"\sprefetcht1\s|\sprfm\s+pldl2keep")
BRANCH = re.compile(r"\s(?:j\w+|b\.\w+|cbn?z\s+\w+,|tbn?z.*,)\s+(\.L\w+)")


@pytest.fixture(params=PROCESSORS)
def target(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """A processor that the tile is made for instead of this one."""
    if request.param == "znver4" and binding.llvm_version_info < (16, 0, 0):
        pytest.skip("this LLVM does not know the processor and would end the process")
    triple, bits, registers, _ = PROCESSORS[request.param]
    monkeypatch.setattr(tile, "VECTOR_BITS", bits)
    monkeypatch.setattr(tile, "VECTOR_REGISTERS", registers)
    monkeypatch.setattr(tile, "VECTORS", vectors_for(registers))
    monkeypatch.setattr(tile, "UNROLLED", unrolled_for(bits))
    binding.initialize_all_targets()
    binding.initialize_all_asmprinters()
    try:
        binding.Target.from_triple(triple)
    except RuntimeError:
        pytest.skip("this LLVM does not know the architecture")
    return str(request.param)


def assembly(
    processor: str, scalar: ir.Type, operand: ir.Type, lanes: int, kind: type[TileEmitter] = Tile
) -> list[str]:
    """A function that is one tile."""
    pointers = [ir.PointerType(kind) for kind in (scalar, scalar, operand, operand)]
    index = ir.IntType(64)
    kinds = [*pointers, *[index] * 7, ir.IntType(1), *[index] * 2, ir.IntType(1), tile.BYTES, index]
    module = ir.Module()
    function = ir.Function(module, ir.FunctionType(ir.VoidType(), kinds), "tile")
    builder = ir.IRBuilder(function.append_basic_block())
    made = kind(builder, scalar, operand, lanes, tile.VECTORS)
    made.c, made.d, made.a, made.p, made.ldc, made.ldd, made.lda = function.args[:7]
    made.p_step, made.K, rows, made.columns, made.add = function.args[7:12]
    made.ids, made.bias, made.back, made.next, made.pace = function.args[12:]
    made.emit(rows)
    builder.ret_void()
    triple, _, _, features = PROCESSORS[processor]
    module.triple = triple
    machine = binding.Target.from_triple(triple).create_target_machine(
        cpu=processor, features=features, opt=3
    )
    return str(machine.emit_assembly(binding.parse_assembly(str(module)))).split("\n")


def inner_loops(lines: list[str]) -> Iterator[list[str]]:
    """Blocks that jump back to their own start and multiply."""
    start, label = 0, ""
    for number, line in enumerate(lines):
        if match := re.match(r"(\.L\w+):", line):
            start, label = number, match[1]
        elif (match := BRANCH.search(line)) and match[1] == label:
            body = lines[start : number + 1]
            if any(MULTIPLY.search(x) for x in body):
                yield body


def test_inner_loops_stay_in_registers(target: str) -> None:
    bits = PROCESSORS[target][1]
    for scalar, size in ((ir.FloatType(), 32), (ir.DoubleType(), 64)):
        counts = set()
        for body in inner_loops(assembly(target, scalar, scalar, bits // size)):
            assert not any(STACK.search(line) for line in body), "\n".join(body)
            counts.add(sum(bool(MULTIPLY.search(line)) for line in body))
        tails = range(1, tile.VECTORS + 1)
        wanted = {m * v for m in range(1, tile.ROWS + 1) for v in tails}
        wanted |= {m * tile.VECTORS * together(m) for m in range(1, tile.ROWS + 1)}
        assert wanted <= counts  # all of them have been seen


def test_long_loops_ask_for_what_comes_next(target: str) -> None:
    lanes = PROCESSORS[target][1] // 32
    most = tile.ROWS * tile.VECTORS * tile.UNROLLED
    asks = []
    for body in inner_loops(assembly(target, ir.FloatType(), ir.FloatType(), lanes)):
        if sum(bool(MULTIPLY.search(line)) for line in body) == most:
            asks.append(sum(bool(ASK.search(line)) for line in body))
    assert asks and set(asks) == {tile.ASKED if tile.UNROLLED > 1 else 0}


def test_pairs_of_bfloat16(target: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if target not in ("znver4", "sapphirerapids"):
        pytest.skip("has no dot product of bfloat16")
    monkeypatch.setattr(tile, "HAS_BF16", True)
    loops = list(inner_loops(assembly(target, ir.FloatType(), ir.IntType(32), 16)))
    assert not any(STACK.search(line) for body in loops for line in body)
    count = max(sum("vdpbf16ps" in line for line in body) for body in loops)
    assert count == tile.ROWS * tile.VECTORS * tile.UNROLLED


@pytest.mark.parametrize("kind", (amx.MatrixTile, amx.PartsTile, amx.WholeTile))
def test_the_matrix_unit_is_kept_busy(target: str, kind: type[TileEmitter]) -> None:
    """Operands are loaded no more often than they have to be, and sums stay where they are."""
    if target != "sapphirerapids":
        pytest.skip("has no unit for matrices")
    loops = list(inner_loops(assembly(target, ir.FloatType(), ir.IntType(32), 16, kind)))
    counts = set()
    for body in loops:
        # The buffer of parts is on the stack: vectors go there, and squares come from there.
        stack = WAITS if kind is amx.WholeTile else STACK
        assert not any(stack.search(line) for line in body), "\n".join(body)
        assert not any("tilestored" in line or "tilezero" in line for line in body)
        counts.add(tuple(sum(x in line for line in body) for x in ("tdpbf16ps", "tileload")))
    # Rows x columns of registers: products, loads of operands.
    wanted = {(m * n, m + n) for m, n in ((2, 1), (2, 2), (1, 1), (1, 2), (1, 3), (1, 4))}
    if kind is amx.WholeTile:  # what is beyond C's columns is multiplied, too
        wanted = {(24, 15), (24, 14)}
    elif kind is amx.PartsTile:  # with one row, all parts of A stay
        wanted = {(6 * n, 3 + 3 * n) for n in (1, 2, 3, 4)} | {(12, 11), (24, 14)}
    assert counts == wanted

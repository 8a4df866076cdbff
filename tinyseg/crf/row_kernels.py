r"""Kernels for a fast mean field, which keep the numbers of all labels of a pixel in registers while they sum.

What they compute is what `lattice.filtering` and `mean_field` say in plain loops. A plain loop over labels inside
a loop over points or corners loads and stores the sum at every step, and reaches a third of the speed.

A row is a pixel's numbers for all labels, as registers of eight. For 21 labels they begin at the labels 0, 8 and
13:

    labels      0 1 2 3 4 5 6 7 | 8 9 10 11 12 13 14 15
                                                 13 14 15 16 17 18 19 20

so that no memory behind the row is touched. Labels 13 to 15 are computed twice, with the same result, and must be
left out of one register where a row is summed. The tuple of these beginnings, `starts`, goes to every kernel; its
length becomes part of the compiled code, so that all loops over the registers are unrolled. Fewer than eight
labels are padded to eight by the caller.

    load(array, place, starts)       the row that begins at array[place], of a flat array
    store(array, place, starts, row)
    constant(value, starts)          a row of equal numbers
    a + b, number * row              number by number
    largest(row), total(row, starts)
    prefetch(array, place)           tell the cache what will be needed soon; has no other effect

Numba does not know registers: these functions emit the LLVM instructions themselves, and only exist once compiled.
"""

import functools
import operator
from collections.abc import Callable
from typing import Any

import numpy as np

from tinyseg.backend import Kernel, kernel, prange
from tinyseg.crf.lattice.filtering import PIECE

LANES = 8  # numbers in a register: eight float32 are what AVX holds; other processors take two or four of theirs
AHEAD = 12  # entries: how early a row is asked for
PIXELS = 64  # pixels that go through the three steps of an update together: their rows stay in the nearest cache


class Instruction(Kernel):
    """A function that stands for LLVM instructions where a kernel calls it."""

    def __init__(self, name: str):
        self.name = name

    def __call__(self, *arguments: Any) -> Any:
        raise NotImplementedError(f"{self.name} exists in compiled kernels only")

    @functools.cached_property
    def compiled(self) -> Callable:
        return _instructions()[self.name]


load = Instruction("load")
store = Instruction("store")
constant = Instruction("constant")
largest = Instruction("largest")
total = Instruction("total")
prefetch = Instruction("prefetch")


def starts_of(labels: int) -> tuple[int, ...]:
    """Where the registers of a row begin.

    >>> starts_of(21)
    (0, 8, 13)
    """
    return tuple(min(start, labels - LANES) for start in range(0, labels, LANES))


# ----------------------------------------------------------------------------------------------------- the kernels


@kernel
def splat_rows(x, labels, starts, first, entry_point, entry_weight, vertices, out):
    """Splat, as `lattice.filtering.splat` does: float32; x and out are flat arrays of rows."""
    parts = first.size - 1  # the row after the vertices: here go the parts of those that began in an earlier piece
    for piece in prange(vertices.size):
        begin = np.int64(piece) * PIECE
        end = min(begin + PIECE, entry_point.size)
        v = np.int64(vertices[piece])  # the vertex that entry `begin` belongs to
        while begin < end:
            row = parts + np.int64(piece) if first[v] < begin else v
            stop = min(first[v + 1], end)
            s = constant(np.float32(0), starts)
            for k in range(begin, stop):
                soon = np.int64(entry_point[min(k + AHEAD, end - 1)]) * labels
                prefetch(x, soon)
                prefetch(x, soon + labels - 1)
                s = s + entry_weight[k] * load(x, np.int64(entry_point[k]) * labels, starts)
            store(out, row * labels, starts, s)
            begin = stop
            v += 1
    for piece in range(vertices.size):
        v = vertices[piece]
        if first[v] < piece * PIECE:
            for c in range(labels):
                out[v * labels + c] += out[(parts + piece) * labels + c]


@kernel
def blur_rows(values, labels, starts, chain, pieces):
    """Blur along one axis, as `lattice.filtering.blur` does: float32, in place; values is a flat array of rows."""
    half = np.float32(0.5)
    for piece in prange(pieces.size - 1):
        k = np.int64(pieces[piece])
        end = np.int64(pieces[piece + 1])
        while k < end:
            v = np.int64(chain[k])
            before = constant(np.float32(0), starts)
            here = load(values, v * labels, starts)
            while True:  # not `while not last`: from that, Numba 0.68 makes code that mixes up before and here
                k += 1
                following = np.int64(chain[k])
                last = following < 0
                following = max(following, ~following)
                soon = np.int64(chain[min(k + AHEAD, end - 1)])
                soon = max(soon, ~soon) * labels
                prefetch(values, soon)
                prefetch(values, soon + labels - 1)
                ahead = load(values, following * labels, starts)
                store(values, v * labels, starts, here + half * (before + ahead))
                before = here
                here = ahead
                v = following
                if last:
                    break
            store(values, v * labels, starts, here + half * before)
            k += 1


@kernel
def join_corners(corner_vertex, corner_weight, scale, after, first_row, column, vertex, share):
    """Write the corners of one lattice into the table of all: their rows, and scale after_i weight_iq."""
    points, corners = corner_vertex.shape
    for i in prange(points):
        factor = scale * after[i]
        for q in range(corners):
            vertex[i, column + q] = first_row + corner_vertex[i, q]
            share[i, column + q] = factor * corner_weight[i, q]


@kernel(inline=True)
def _exp(x):
    """e^x for float32 x <= 0, in arithmetic that the compiler can do for eight numbers at once.

    x = n log 2 + r with |r| <= log(2) / 2; e^r by a polynomial, 2^n by writing n into the exponent bits. Below
    -80, where e^x < 2e-35, it is zero: so small numbers would only slow the arithmetic down.
    """
    n = np.floor(x * np.float32(1.44269504) + np.float32(0.5))
    r = x - n * np.float32(0.693359375) + n * np.float32(2.12194440e-4)  # log 2 in two parts, the first exact
    p = np.float32(1.9875691500e-4)
    p = p * r + np.float32(1.3981999507e-3)
    p = p * r + np.float32(8.3334519073e-3)
    p = p * r + np.float32(4.1665795894e-2)
    p = p * r + np.float32(1.6666665459e-1)
    p = p * r + np.float32(0.5)
    p = p * r * r + r + np.float32(1)
    power = np.int32((np.int32(max(n, np.float32(-126))) + np.int32(127)) << np.int32(23)).view(np.float32)
    return p * power if x > np.float32(-80) else np.float32(0)


@kernel
def update_rows(unary, labels, starts, values, vertex, share, q):
    """Q = softmax(-U + the shares of the vertices): float32; unary, values and q are flat arrays of rows."""
    points, corners = vertex.shape
    for block in prange((points + PIXELS - 1) // PIXELS):
        begin = np.int64(block) * PIXELS
        end = min(begin + PIXELS, points)
        for i in range(begin, end):
            soon = min(i + 2, points - 1)
            x = np.float32(-1) * load(unary, i * labels, starts)
            for k in range(corners):
                place = np.int64(vertex[soon, k]) * labels
                prefetch(values, place)
                prefetch(values, place + labels - 1)
                x = x + share[i, k] * load(values, np.int64(vertex[i, k]) * labels, starts)
            store(q, i * labels, starts, x + constant(-largest(x), starts))
        some = q[begin * labels : end * labels]  # an array of its own, or the compiler does one number at a time
        for c in range(some.size):
            some[c] = _exp(some[c])
        for i in range(begin, end):
            x = load(q, i * labels, starts)
            store(q, i * labels, starts, (np.float32(1) / total(x, starts)) * x)


# ------------------------------------------------------------------------------------------------ the instructions


@functools.cache
def _instructions() -> dict[str, Callable]:
    """The functions above, for Numba. A row is a value of LLVM type [registers x <8 x float>]."""
    from llvmlite import ir
    from numba.core import cgutils, types
    from numba.core.datamodel import models
    from numba.extending import intrinsic, overload, register_model

    index = ir.IntType(32)
    # Sums may be reordered and a * b + c fused, as in every kernel (see tinyseg.backend).
    flags = ("reassoc", "contract", "nsz")

    class Row(types.Type):
        def __init__(self, dtype: Any, registers: int):
            self.dtype, self.registers = dtype, registers
            super().__init__(name=f"Row({dtype}, {registers})")

    def register_type(dtype: Any) -> Any:
        return ir.VectorType(ir.FloatType() if dtype == types.float32 else ir.DoubleType(), LANES)

    @register_model(Row)
    class RowModel(models.PrimitiveModel):
        def __init__(self, manager: Any, row: Row):
            super().__init__(manager, row, ir.ArrayType(register_type(row.dtype), row.registers))

    def assemble(context: Any, builder: Any, row: Row, registers: list) -> Any:
        value = ir.Constant(context.get_value_type(row), ir.Undefined)
        for i, register in enumerate(registers):
            value = builder.insert_value(value, register, i)
        return value

    def registers_of(builder: Any, row: Row, value: Any) -> list:
        return [builder.extract_value(value, i) for i in range(row.registers)]

    def broadcast(builder: Any, dtype: Any, number: Any) -> Any:
        """A register of equal numbers."""
        nothing = ir.Constant(register_type(dtype), ir.Undefined)
        one = builder.insert_element(nothing, number, index(0))
        return builder.shuffle_vector(one, nothing, ir.Constant(ir.VectorType(index, LANES), [0] * LANES))

    def address(context: Any, builder: Any, array_type: Any, array: Any, place: Any) -> Any:
        return builder.gep(context.make_array(array_type)(context, builder, array).data, [place])

    def register_addresses(context, builder, array_type, array, place, starts_type, starts) -> list:
        pointer = register_type(array_type.dtype).as_pointer()
        begin = address(context, builder, array_type, array, place)
        offsets = [builder.extract_value(starts, i) for i in range(starts_type.count)]
        return [builder.bitcast(builder.gep(begin, [offset]), pointer) for offset in offsets]

    @intrinsic
    def load(_, array, place, starts):
        row = Row(array.dtype, starts.count)

        def emit(context, builder, signature, arguments):
            places = register_addresses(context, builder, array, arguments[0], arguments[1], starts, arguments[2])
            registers = [builder.load(place) for place in places]
            for register in registers:
                register.align = array.dtype.bitwidth // 8
            return assemble(context, builder, row, registers)

        return row(array, types.intp, starts), emit

    @intrinsic
    def store(_, array, place, starts, row):
        def emit(context, builder, signature, arguments):
            places = register_addresses(context, builder, array, arguments[0], arguments[1], starts, arguments[2])
            for place, register in zip(places, registers_of(builder, row, arguments[3]), strict=True):
                builder.store(register, place, align=array.dtype.bitwidth // 8)
            return context.get_dummy_value()

        return types.void(array, types.intp, starts, row), emit

    @intrinsic
    def constant(_, number, starts):
        row = Row(number, starts.count)

        def emit(context, builder, signature, arguments):
            return assemble(context, builder, row, [broadcast(builder, number, arguments[0])] * row.registers)

        return row(number, starts), emit

    @intrinsic
    def add(_, a, b):
        def emit(context, builder, signature, arguments):
            pairs = zip(
                registers_of(builder, a, arguments[0]), registers_of(builder, b, arguments[1]), strict=True
            )
            return assemble(context, builder, a, [builder.fadd(x, y, flags=flags) for x, y in pairs])

        return a(a, b), emit

    @intrinsic
    def multiply(_, number, row):
        def emit(context, builder, signature, arguments):
            factor = broadcast(builder, row.dtype, arguments[0])
            registers = registers_of(builder, row, arguments[1])
            return assemble(context, builder, row, [builder.fmul(factor, x, flags=flags) for x in registers])

        return row(row.dtype, row), emit

    def reduce(builder: Any, name: str, register: Any, *before: Any) -> Any:
        """One number from a register by an LLVM intrinsic."""
        kind = register.type
        suffix = "f32" if isinstance(kind.element, ir.FloatType) else "f64"
        function_type = ir.FunctionType(kind.element, [*(value.type for value in before), kind])
        function = cgutils.get_or_insert_function(
            builder.module, function_type, f"llvm.vector.reduce.{name}.v{LANES}{suffix}"
        )
        return builder.call(function, [*before, register], fastmath=flags)

    @intrinsic
    def largest(_, row):
        def emit(context, builder, signature, arguments):
            best, *others = registers_of(builder, row, arguments[0])
            for other in others:
                best = builder.select(builder.fcmp_ordered(">", other, best), other, best)
            return reduce(builder, "fmax", best)

        return row.dtype(row), emit

    @intrinsic
    def total(_, row, starts):
        def emit(context, builder, signature, arguments):
            *registers, last = registers_of(builder, row, arguments[0])
            if registers:  # leave out what the last register has in common with the one before it
                before, begin = (builder.extract_value(arguments[1], starts.count - i) for i in (2, 1))
                common = builder.trunc(builder.sub(builder.add(before, before.type(LANES)), begin), index)
                lane = ir.Constant(ir.VectorType(index, LANES), list(range(LANES)))
                nothing = ir.Constant(lane.type, ir.Undefined)
                bound = builder.insert_element(nothing, common, index(0))
                bound = builder.shuffle_vector(bound, nothing, ir.Constant(lane.type, [0] * LANES))
                last = builder.select(
                    builder.icmp_signed(">=", lane, bound), last, ir.Constant(last.type, [0.0] * LANES)
                )
            for register in registers:
                last = builder.fadd(last, register, flags=flags)
            return reduce(builder, "fadd", last, last.type.element(0.0))

        return row.dtype(row, starts), emit

    @intrinsic
    def prefetch(_, array, place):
        def emit(context, builder, signature, arguments):
            byte = ir.IntType(8).as_pointer()
            target = builder.bitcast(address(context, builder, array, *arguments), byte)
            function_type = ir.FunctionType(ir.VoidType(), [byte, index, index, index])
            function = cgutils.get_or_insert_function(builder.module, function_type, "llvm.prefetch.p0")
            builder.call(function, [target, index(0), index(3), index(1)])  # to read, keep it near, it is data
            return context.get_dummy_value()

        return types.void(array, types.intp), emit

    @overload(operator.add)
    def _(a, b):
        if isinstance(a, Row) and isinstance(b, Row):
            return lambda a, b: add(a, b)  # pyright: ignore[reportCallIssue]  Numba fills in the first
        return None

    @overload(operator.mul)
    def _(a, b):
        if isinstance(a, types.Float) and isinstance(b, Row):
            return lambda a, b: multiply(a, b)  # pyright: ignore[reportCallIssue]
        return None

    return {
        "load": load,
        "store": store,
        "constant": constant,
        "largest": largest,
        "total": total,
        "prefetch": prefetch,
    }

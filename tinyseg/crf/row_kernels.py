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
    number(array, place)             array[place], without a look at whether place is negative
    constant(value, starts)          a row of equal numbers
    a + b, number * row              number by number
    exponential(row)                 number by number, for a row of float32 none of which is above zero
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

LANES = 8  # numbers in a register: eight float32 are what AVX holds; other processors take two or four of theirs
AHEAD = 24  # entries: how early a row is asked for
PIXELS = 64  # of a task of the update


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
number = Instruction("number")
constant = Instruction("constant")
exponential = Instruction("exponential")
largest = Instruction("largest")
total = Instruction("total")
prefetch = Instruction("prefetch")


def starts_of(labels: int) -> tuple[int, ...]:
    """Where the registers of a row begin.

    >>> starts_of(21)
    (0, 8, 13)
    """
    return tuple(min(start, labels - LANES) for start in range(0, labels, LANES))


def slots_of(labels: int) -> tuple[tuple[int, ...], list[int]]:
    """The same registers one after the other: where they begin, and the label that each slot holds.

    >>> slots_of(10)
    ((0, 8), [0, 1, 2, 3, 4, 5, 6, 7, 2, 3, 4, 5, 6, 7, 8, 9])
    """
    starts = starts_of(labels)
    label = [start + lane for start in starts for lane in range(LANES)]
    return tuple(range(0, len(label), LANES)), label


# ----------------------------------------------------------------------------------------------------- the kernels


@kernel
def join_corners(vertex, weight, read, first_row, column, all_vertices, all_shares):
    """Write the corners of one lattice into the tables of all: its vertex v is row first_row + v of the values."""
    pixels, corners = vertex.shape
    for i in prange(pixels):
        for k in range(corners):
            all_vertices[i, column + k] = first_row + vertex[i, k]
            all_shares[i, column + k] = read[i] * weight[i, k]


@kernel
def join_entries(entry_point, entry_weight, write, gift):
    """What each entry of a vertex adds to it: the weight, times what its point multiplies all weights with."""
    for k in prange(gift.size):
        gift[k] = write[entry_point[k]] * entry_weight[k]


@kernel
def splat_rows(q, labels, starts, first, entry_point, gift, begins, piece, values, width, slots):
    """Splat as `lattice.filtering.splat` does, in pieces of so many entries. q and values are flat."""
    rests = first.size - 1  # row M + p: for the vertex that continues from piece p - 1 into piece p
    last = gift.size - 1
    for task in prange(begins.size):
        k = np.int64(task) * piece
        end = min(k + piece, gift.size)
        v = np.int64(begins[task])
        row = rests + np.int64(task) if first[v] < k else v
        while k < end:
            stop = min(number(first, v + 1), end)
            x = constant(np.float32(0), starts)
            while k < stop:
                soon = number(entry_point, min(k + AHEAD, last)) * labels
                prefetch(q, soon)
                prefetch(q, soon + labels - 1)
                x = x + number(gift, k) * load(q, number(entry_point, k) * labels, starts)
                k += 1
            store(values, row * width, slots, x)
            v += 1
            row = v
    for task in range(begins.size):
        v = np.int64(begins[task])
        if first[v] < task * piece:
            rest = load(values, (rests + task) * width, slots)
            store(values, v * width, slots, load(values, v * width, slots) + rest)


@kernel
def blur_rows(values, width, slots, chains, pieces):
    """Blur along some axes, as `lattice.filtering.blur` does: float32, in place; values is a flat array of rows.

    chains is a tuple, pieces (axes, tasks + 1). A task works on its vertices along one axis after the other.
    """
    for task in prange(pieces.shape[1] - 1):
        for axis in range(pieces.shape[0]):
            chain = chains[axis]
            begin = np.int64(pieces[axis, task])
            end = np.int64(pieces[axis, task + 1])
            if begin < end:
                last = end - 1
                v = number(chain, begin)
                place = max(v, ~v) * width
                here = load(values, place, slots)
                before = constant(np.float32(0), slots)
                for k in range(begin, end):
                    soon = number(chain, min(k + AHEAD, last))
                    soon = max(soon, ~soon) * width
                    prefetch(values, soon)
                    prefetch(values, soon + width - 1)
                    link = np.float32(0.5) if v >= 0 else np.float32(0)  # a chain's last vertex has nobody ahead
                    v = number(chain, min(k + 1, last))
                    following = max(v, ~v) * width
                    ahead = load(values, following, slots)
                    store(values, place, slots, here + before + link * ahead)
                    before = link * here
                    here = ahead
                    place = following


@kernel
def update_rows(unary, labels, starts, vertex, share, corners, values, width, slots, q):
    """One update of all pixels: see `fused`. All arrays are flat; with corners = 0 no vertices are read."""
    pixels = unary.size // labels
    last = vertex.size - 1
    for task in prange((pixels + PIXELS - 1) // PIXELS):
        first = np.int64(task) * PIXELS
        for i in range(first, min(first + PIXELS, pixels)):
            x = np.float32(-1) * load(unary, i * labels, starts)
            for k in range(i * corners, (i + 1) * corners):
                soon = number(vertex, min(k + AHEAD, last)) * width
                prefetch(values, soon)
                prefetch(values, soon + width - 1)
                x = x + number(share, k) * load(values, number(vertex, k) * width, slots)
            x = exponential(x + constant(-largest(x), starts))
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
    def number(_, array, place):
        whole = isinstance(array.dtype, types.Integer)

        def emit(context, builder, signature, arguments):
            value = builder.load(address(context, builder, array, *arguments))
            return builder.sext(value, context.get_value_type(types.intp)) if whole else value

        return (types.intp if whole else array.dtype)(array, types.intp), emit

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

    def larger(builder: Any, a: Any, b: Any) -> Any:
        return builder.select(builder.fcmp_ordered(">", b, a), b, a)

    def plus(builder: Any, a: Any, b: Any) -> Any:
        return builder.fadd(a, b, flags=flags)

    def reduce(builder: Any, combine: Callable, registers: list) -> Any:
        """One number from registers: combine them, then each half with the other half."""
        one = functools.reduce(functools.partial(combine, builder), registers)
        distance = LANES // 2
        while distance > 0:
            lanes = ir.Constant(ir.VectorType(index, LANES), [lane ^ distance for lane in range(LANES)])
            one = combine(builder, one, builder.shuffle_vector(one, one, lanes))
            distance //= 2
        return builder.extract_element(one, index(0))

    @intrinsic
    def exponential(_, row):
        """x = n log 2 + r with |r| <= log(2) / 2: e^r by a polynomial, 2^n by writing n into the exponent bits.

        Below -80, where e^x < 2e-35, it is zero: so small numbers would only slow the arithmetic down.
        """
        kind, whole = register_type(row.dtype), ir.VectorType(index, LANES)

        def emit(context, builder, signature, arguments):
            def equal(value):
                return ir.Constant(kind, [float(np.float32(value))] * LANES)

            def integer(value):
                return ir.Constant(whole, [value] * LANES)

            def multiply_add(a, b, c):
                return builder.fadd(builder.fmul(a, b, flags=flags), c, flags=flags)

            rounding = ir.FunctionType(kind, [kind])
            floor = cgutils.get_or_insert_function(builder.module, rounding, f"llvm.floor.v{LANES}f32")
            results = []
            for x in registers_of(builder, row, arguments[0]):
                n = builder.call(floor, [multiply_add(x, equal(1.44269504), equal(0.5))])
                r = multiply_add(n, equal(-0.693359375), x)  # log 2 in two parts, the first exact
                r = multiply_add(n, equal(2.12194440e-4), r)
                p = equal(1.9875691500e-4)
                for factor in (1.3981999507e-3, 8.3334519073e-3, 4.1665795894e-2, 1.6666665459e-1, 0.5):
                    p = multiply_add(p, r, equal(factor))
                p = multiply_add(p, builder.fmul(r, r, flags=flags), builder.fadd(r, equal(1), flags=flags))
                n = larger(builder, equal(-126), n)
                power = builder.shl(builder.add(builder.fptosi(n, whole), integer(127)), integer(23))
                p = builder.fmul(p, builder.bitcast(power, kind), flags=flags)
                results.append(builder.select(builder.fcmp_unordered(">", x, equal(-80)), p, equal(0)))
            return assemble(context, builder, row, results)

        return row(row), emit

    @intrinsic
    def largest(_, row):
        def emit(context, builder, signature, arguments):
            return reduce(builder, larger, registers_of(builder, row, arguments[0]))

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
            return reduce(builder, plus, [last, *registers])

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
        "number": number,
        "constant": constant,
        "exponential": exponential,
        "largest": largest,
        "total": total,
        "prefetch": prefetch,
    }

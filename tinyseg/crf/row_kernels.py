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
def find_targets(vertex, owner, points, column, target, extra, counts):
    """To which rows does each pixel add? Written to target[:, column:], with rows as in `fused`'s docstring.

    owner[v] is the part of the image in which vertex v first occurs. extra[p, n] becomes the vertex that the n-th
    extra row of part p stands for, with the row number M + n in `target`, and counts[p] how many there are.
    """
    pixels, corners = vertex.shape
    for task in prange(counts.size):
        part = np.int64(task)
        row_of = np.full(owner.size, -1, np.int32)
        n = 0
        for i in range(part * points, min((part + 1) * points, pixels)):
            for k in range(corners):
                v = vertex[i, k]
                row = row_of[v]
                if row < 0:
                    row = v
                    if owner[v] != part:
                        extra[part, n] = v
                        row = np.int32(owner.size + n)
                        n += 1
                    row_of[v] = row
                    row = ~row
                target[i, column + k] = row
        counts[part] = n


@kernel
def join_corners(corner_vertex, corner_weight, read, write, points, first_row, extra_rows, column, tables):
    """Write the corners of one lattice into the tables of all, with the final numbers of their rows.

    read and write (N,) are what a pixel multiplies its weights with when it reads and writes vertices.
    """
    vertex, share, target, gift = tables
    pixels, corners = corner_vertex.shape
    m = extra_rows[0]  # rows from m on are extra ones in `target`; those of part p begin at extra_rows[1 + p]
    for i in prange(pixels):
        shift = extra_rows[1 + np.int64(i) // points] - m
        for k in range(corners):
            row = target[i, column + k]
            known = max(row, ~row)
            known += first_row if known < m else shift
            target[i, column + k] = known if row >= 0 else ~known
            vertex[i, column + k] = first_row + corner_vertex[i, k]
            gift[i, column + k] = write[i] * corner_weight[i, k]
            share[i, column + k] = read[i] * corner_weight[i, k]


@kernel
def add_extra_rows(values, width, slots, extra, begins, first_row):
    """Add the extra rows of each part to their vertices, part by part."""
    for part in range(begins.size - 1):
        for k in prange(begins[part], begins[part + 1]):
            place = np.int64(extra[k]) * width
            other = (first_row + np.int64(k)) * width
            store(values, place, slots, load(values, place, slots) + load(values, other, slots))


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
                v = np.int64(chain[begin])
                here = load(values, max(v, ~v) * width, slots)
                before = constant(np.float32(0), slots)
                for k in range(begin, end):
                    soon = np.int64(chain[min(k + AHEAD, last)])
                    soon = max(soon, ~soon) * width
                    prefetch(values, soon)
                    prefetch(values, soon + width - 1)
                    v = np.int64(chain[k])
                    following = np.int64(chain[min(k + 1, last)])
                    link = np.float32(0.5) if v >= 0 else np.float32(0)  # a chain's last vertex has nobody ahead
                    ahead = load(values, max(following, ~following) * width, slots)
                    store(values, max(v, ~v) * width, slots, here + before + link * ahead)
                    before = link * here
                    here = ahead


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
def update_rows(unary, labels, starts, tables, points, what, old, width, slots, new, q):
    """One update of all pixels: see `fused`. unary, old, new and q are flat arrays of rows.

    what = (gather, scatter, keep): read the vertices in `old`; add to the vertices in `new`; write q.
    """
    vertex, share, target, gift = tables
    gather, scatter, keep = what
    pixels, corners = vertex.shape
    for part in prange((pixels + points - 1) // points):
        some = np.empty(PIXELS * labels, np.float32)
        end = min((np.int64(part) + 1) * points, pixels)
        for first in range(np.int64(part) * points, end, PIXELS):
            count = min(PIXELS, end - first)
            for j in range(count):
                i = first + j
                soon = min(i + 2, pixels - 1)
                x = np.float32(-1) * load(unary, i * labels, starts)
                if gather:
                    for k in range(corners):
                        place = np.int64(vertex[soon, k]) * width
                        prefetch(old, place)
                        prefetch(old, place + width - 1)
                        x = x + share[i, k] * load(old, np.int64(vertex[i, k]) * width, slots)
                store(some, j * labels, starts, x + constant(-largest(x), starts))
            numbers = some[: count * labels]
            for c in range(numbers.size):
                numbers[c] = _exp(numbers[c])
            for j in range(count):
                i = first + j
                soon = min(i + 2, pixels - 1)
                x = load(some, j * labels, starts)
                x = (np.float32(1) / total(x, starts)) * x
                if keep:
                    store(q, i * labels, starts, x)
                if scatter:
                    for k in range(corners):
                        row = np.int64(target[soon, k])
                        place = (row ^ (row >> 63)) * width
                        prefetch(new, place)
                        prefetch(new, place + width - 1)
                        row = np.int64(target[i, k])
                        new_row = row >> 63  # -1 where row is negative, otherwise 0
                        place = (row ^ new_row) * width
                        y = np.float32(1 + new_row) * load(new, place, slots)
                        store(new, place, slots, y + gift[i, k] * x)


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

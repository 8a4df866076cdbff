"""Splat, blur, slice on a GPU. See `filtering`, which does it on the CPU.

A splat gathers: one row of numbers for each run of entries (see `device_table`), then the runs of a vertex are
added up, in order. A blur reads one buffer and writes another, along one axis after the other. A slice gathers a
point's corners. Threads that stand side by side handle neighbouring numbers of a row.

    x, y  (N, L)      values  (R, L): the vertices, then the parts of those that have several runs
"""

from tinyseg import cuda
from tinyseg.backend import Array
from tinyseg.crf.lattice.device_table import DeviceTable

_cuda = cuda.KernelFile(__file__, WIDTH=(1, 4))


def apply_on_device(x: Array, table: DeviceTable, weight: Array, alpha: float, *, reverse: bool) -> Array:
    """The lattice applied to columns (N, L) of any float type: splat, blur along all axes, slice."""
    x = cuda.contiguous(x)
    values = blur(splat(x, table), table, reverse=reverse)
    y = cuda.empty(x.shape, x.dtype)
    points, corners = table.vertex.shape
    weight = cuda.contiguous(weight, x.dtype)
    arguments = (values, table.vertex, weight, points, corners, x.shape[1], alpha, y)
    _cuda.launch("slice", *arguments, **_rows(points, x.shape[1]))
    return y


def splat(x: Array, table: DeviceTable) -> Array:
    """Gather the points (N, L) at the vertices. Only the first M rows of the result (R, L) mean something."""
    columns = x.shape[1]
    values = cuda.empty((table.runs, columns), x.dtype)
    runs = (table.run_first, table.run_vertex, table.vertex_first)
    entries = (table.entry_point, cuda.contiguous(table.entry_weight, x.dtype))
    numbers = (table.runs, table.vertices, columns)
    _cuda.launch("splat", x, *runs, *entries, *numbers, values, **_rows(table.runs, columns))
    if table.runs > table.vertices:
        numbers = (table.vertices, columns)
        _cuda.launch("add_runs", table.vertex_first, *numbers, values, **_rows(table.vertices, columns))
    return values


def blur(values: Array, table: DeviceTable, *, reverse: bool = False) -> Array:
    """Blur values (R, L) along all axes. They serve as one of two buffers, and are lost."""
    columns = values.shape[1]
    other = cuda.empty(values.shape, values.dtype)
    axes = range(len(table.neighbours))
    for axis in reversed(axes) if reverse else axes:
        arguments = (values, table.neighbours, axis, table.vertices, columns, other)
        _cuda.launch("blur", *arguments, **_rows(table.vertices, columns))
        values, other = other, values
    return values


def _rows(rows: int, columns: int) -> dict[str, int]:
    """How the kernels above are launched for so many rows."""
    width = cuda.pack_width(columns)
    return {"threads": rows * columns // width, "WIDTH": width}

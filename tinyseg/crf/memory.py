"""How much memory a dense CRF on lattices needs, said before it is taken.

Counted are the arrays that live at the same time, for N pixels, L labels and kernels with d features. At worst
every corner of every cell is a vertex of its own, M = N (d + 1): a photograph in colour has 10 to 100 times
fewer.
"""

import os
from collections.abc import Sequence
from typing import NamedTuple

from tinyseg.crf.row_kernels import LANES

NUMBER = 4  # bytes of a float32 and of an int32
CODE = 8  # bytes of a lattice point's code


class Memory(NamedTuple):
    """Bytes that one call needs beyond its arguments."""

    certain: int  # pixels, labels and tables; known from the sizes alone
    at_most: int  # with the vertices of lattices that do not share any

    def __str__(self) -> str:
        return f"{self.certain / 2**30:.1f} to {self.at_most / 2**30:.1f} GiB"


def estimate(points: int, labels: int, dimensions: Sequence[int] = (2, 5)) -> Memory:
    """What inference needs: points N, labels L and, for each kernel, its number of features d."""
    corners = [d + 1 for d in dimensions]
    maps = 2 * points * max(labels, LANES) * NUMBER  # unary energies and marginals
    features = sum(points * d * NUMBER for d in dimensions)
    tables = sum(4 * points * c * NUMBER for c in corners)  # vertex and weight, by point and by vertex
    joined = joined_tables(sum(points * c for c in corners))
    scales = 4 * points * NUMBER * len(dimensions)
    sorting = max(3 * points * c * CODE for c in corners)  # codes, and items of the sort twice, for one lattice
    kept = maps + features + tables + scales

    vertices = [points * c for c in corners]
    values = vertex_values(sum(vertices), labels)
    chains = sum(v * (c * NUMBER + CODE) for c, v in zip(corners, vertices, strict=True))
    linking = max(v * (c * (2 * NUMBER + 1) + CODE) for c, v in zip(corners, vertices, strict=True))
    at_most = kept + chains + max(joined + values, sorting + linking)
    return Memory(kept + max(joined, sorting), at_most)


def joined_tables(corners: int) -> int:
    """Bytes of the tables that `fused` makes for so many corners of all points: vertex, share, gift."""
    return 3 * corners * NUMBER


def vertex_values(rows: int, labels: int) -> int:
    """Bytes of the numbers of so many vertices, in whole registers."""
    return rows * -(-labels // LANES) * LANES * NUMBER


def available() -> int | None:
    """Bytes of memory that can be had now, or None where the system does not say."""
    try:
        with open("/proc/meminfo") as file:  # noqa: PTH123  a line of text, not a file of the user's
            for line in file:
                if line.startswith("MemAvailable:"):
                    return int(line.split()[1]) * 1024
    except OSError:
        pass
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (ValueError, OSError, AttributeError):
        return None

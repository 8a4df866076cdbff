"""The CUDA kernels of the Gaussian filters: exact and lattice, forward, transposed, normalised; and the lattice's
table, which must be the one that the CPU makes."""

from typing import Any

import numpy as np
import pytest

import tinyseg
from tinyseg import crf, cuda
from tinyseg.crf.filters import NORMALISATIONS
from tinyseg.crf.lattice.device_table import DeviceTable
from tinyseg.crf.lattice.simplex import find_simplices, packing
from tinyseg.gradcheck import check_adjoint

KINDS = [crf.ExactFilter, crf.LatticeFilter]


def both_ways(kind, **options):
    def apply(features, x):
        kernel = kind(features, **options)
        return kernel.apply(x), kernel.apply_transpose(x)

    return apply


# One point, one feature, labels in fours and not, more than one block of points and more than one tile of entries.
@pytest.mark.parametrize(
    ("points", "d", "labels"), [(1, 1, 1), (7, 2, 3), (150, 5, 21), (137, 3, 8), (40, 8, 4), (1500, 2, 2)]
)
@pytest.mark.parametrize("kind", KINDS)
def test_filters(machine, dtype, kind, points, d, labels):
    features = machine.rng.uniform(0, 4, (points, d)).astype(dtype)
    machine.agree(both_ways(kind), features, machine.numbers(points, labels, dtype=dtype))


def test_exact_without_self(machine, dtype):
    features = machine.rng.uniform(0, 4, (45, 2)).astype(dtype)
    x = machine.numbers(45, 3, dtype=dtype)
    machine.agree(both_ways(crf.ExactFilter, include_self=False), features, x)


@pytest.mark.parametrize(("size", "labels", "window"), [((5, 7), 3, 3), ((4, 1), 4, 5), ((19, 16), 8, 11)])
@pytest.mark.parametrize("include_self", [True, False])
def test_local(machine, dtype, size, labels, window, include_self):
    features = machine.rng.uniform(0, 2, (size[0] * size[1], 3)).astype(dtype)
    filtering = both_ways(crf.LocalFilter, size=size, window=window, include_self=include_self)
    machine.agree(filtering, features, machine.numbers(len(features), labels, dtype=dtype))


@pytest.mark.parametrize(("size", "bandwidth"), [((9, 13), (0.7, 2.5)), ((1, 6), 1.0), ((3, 4), 20.0)])
@pytest.mark.parametrize("include_self", [True, False])
def test_separable(machine, dtype, size, bandwidth, include_self):
    def apply(x):
        kernel = crf.SeparableFilter(size, bandwidth, include_self=include_self, on_gpu=cuda.on_gpu(x))
        f = crf.Normalised(kernel, "after", dtype)
        return f.norm, kernel.apply(x), f.apply_transpose(x)

    machine.agree(apply, machine.numbers(size[0] * size[1], 5, dtype=dtype))


def test_bandwidth_gradients_on_images(machine):
    features = machine.rng.uniform(0, 2, (30, 2))
    a, b = machine.numbers(2, 30, 3)

    def gradients(features, a, b):
        separable = crf.SeparableFilter((5, 6), 1.2, on_gpu=cuda.on_gpu(features))
        kernels = crf.LocalFilter(features, (5, 6), window=3), separable
        return [crf.Normalised(k, "symmetric", np.float64).log_bandwidth_gradient(a, b) for k in kernels]

    with cuda.on(machine.devices[0]):
        on_device = [cuda.to_device(array) for array in (features, a, b)]
        results = gradients(on_device[0], on_device[1], on_device[2])
    np.testing.assert_allclose(results, gradients(features, a, b), rtol=1e-9)


def test_vertices_with_several_runs(machine, dtype):
    # 700 points around two places: vertices of some hundred entries, which are cut into runs of 128.
    features = np.repeat([[0.3, 0.1], [5.2, 4.4]], [450, 250], axis=0) + 0.05 * machine.numbers(700, 2)
    order = machine.rng.permutation(700)
    x = machine.numbers(700, 4, dtype=dtype)
    machine.agree(both_ways(crf.LatticeFilter), features[order].astype(dtype), x)


def test_numbers_of_the_other_type_than_the_features(machine):
    features = machine.rng.uniform(0, 3, (60, 3)).astype(np.float32)
    x = machine.numbers(60, 2)
    for kind in KINDS:
        expected = kind(features).apply(x)
        for device in machine.devices:
            with cuda.on(device):
                result = cuda.to_host(kind(cuda.to_device(features)).apply(cuda.to_device(x)))
            np.testing.assert_allclose(result, expected, rtol=1e-6, atol=1e-6)


def test_the_table_is_that_of_the_cpu(machine):
    # Pixels of an image in steps of a bandwidth: many lie exactly on the border of two cells.
    image = machine.rng.integers(0, 4, (13, 17, 3)) * 20.0
    features = crf.bilateral_features(image, 4.0, 20.0)
    with tinyseg.use("numpy"):
        pack = packing(features)
        cells = find_simplices(features, pack)
        expected = crf.LatticeFilter(features)
        unique = np.unique(cells.codes)
    for device in machine.devices:
        with cuda.on(device):
            lattice = crf.LatticeFilter(cuda.to_device(features))
            table: Any = lattice.table
            found = DeviceTable(*map(cuda.to_host, table))
            np.testing.assert_array_equal(cuda.to_host(lattice.weight), expected.weight)
        np.testing.assert_array_equal(found.vertex, expected.table.vertex)
        np.testing.assert_array_equal(found.entry_point, expected.table.entry_point)
        np.testing.assert_array_equal(found.entry_weight, expected.table.entry_weight)
        np.testing.assert_array_equal(found.run_first[found.vertex_first], expected.table.first)
        for axis, step in enumerate(pack.steps):
            for side, code in enumerate((unique - step, unique + step)):
                number = found.neighbours[axis, :, side]
                np.testing.assert_array_equal(number >= 0, np.isin(code, unique))
                np.testing.assert_array_equal(unique[number[number >= 0]], code[number >= 0])


@pytest.mark.parametrize("mode", NORMALISATIONS)
@pytest.mark.parametrize("kind", KINDS)
def test_normalised(machine, dtype, kind, mode):
    def apply(features, x):
        f = crf.Normalised(kind(features), mode, dtype)
        return f.norm, f.apply(x), f.apply_transpose(x)

    features = machine.rng.uniform(0, 4, (90, 3)).astype(dtype)
    machine.agree(apply, features, machine.numbers(90, 5, dtype=dtype))


@pytest.mark.parametrize("kind", KINDS)
def test_transpose_is_the_adjoint(machine, kind):
    features = machine.rng.uniform(0, 4, (90, 3))
    x, y = machine.numbers(2, 90, 3)
    with cuda.on(machine.devices[0]):
        f = crf.Normalised(kind(cuda.to_device(features)), "after", np.float64)
        check_adjoint(
            lambda x: cuda.to_host(f.apply(cuda.to_device(x))),
            lambda y: cuda.to_host(f.apply_transpose(cuda.to_device(y))),
            x,
            y,
        )


@pytest.mark.parametrize("mode", NORMALISATIONS)
@pytest.mark.parametrize("kind", KINDS)
def test_bandwidth_gradients(machine, kind, mode):
    features = machine.rng.uniform(0, 3, (40, 2))
    a, b = machine.numbers(2, 40, 3)
    expected = crf.Normalised(kind(features), mode, np.float64).log_bandwidth_gradient(a, b)
    for device in machine.devices:
        with cuda.on(device):
            f = crf.Normalised(kind(cuda.to_device(features)), mode, np.float64)
            result = f.log_bandwidth_gradient(cuda.to_device(a), cuda.to_device(b))
        np.testing.assert_allclose(result, expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(
    ("features", "message"),
    [
        (np.full((5, 2), np.nan), "LatticeFilter: features are not finite"),
        (np.full((5, 2), np.inf), "LatticeFilter: features are not finite"),
        (np.zeros(5), r"features must have shape \(N, d\), a row for each point, got \(5,\)"),
        (np.array([[0], [1e9]], np.float32), "a bandwidth is far too small"),
    ],
)
def test_errors(machine, features, message):
    with cuda.on(machine.devices[0]), pytest.raises(ValueError, match=message):
        crf.LatticeFilter(cuda.to_device(features))

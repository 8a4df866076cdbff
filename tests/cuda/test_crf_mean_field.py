"""Mean field on the GPU: the fast way and the plain one, and gradients."""

from typing import Any

import numpy as np
import pytest

from tinyseg import crf, cuda
from tinyseg.crf import arrays, fused_device
from tinyseg.crf.filters import NORMALISATIONS
from tinyseg.gradcheck import check_vjp

POINTS = 150


def features_of(machine, dtype, points=POINTS):
    """Of a kernel of two features, and of one of five."""
    return [machine.rng.uniform(0, 4, (points, d)).astype(dtype) for d in (2, 5)]


def unary_of(machine, dtype, labels, points=POINTS):
    return machine.rng.uniform(0, 4, (points, labels)).astype(dtype)


@pytest.mark.parametrize(
    ("labels", "iterations", "mode"),
    [(1, 1, "after"), (2, 0, "none"), (21, 2, "symmetric"), (4, 3, "none"), (37, 1, "before"), (128, 1, "after")],
)
def test_inference_on_lattices(machine, dtype, labels, iterations, mode):
    weights = [3.0, 0.7] if mode != "none" else [3e-2, 7e-2]

    def infer(unary, *features):
        filters = [crf.Normalised(crf.LatticeFilter(f), mode, unary.dtype.type) for f in features]
        couplings = [crf.potts(w) for w in weights]
        if cuda.on_gpu(unary):
            assert fused_device.applies_to(unary, couplings, filters)
        return crf.infer(unary, couplings, filters, iterations)

    machine.agree(infer, unary_of(machine, dtype, labels), *features_of(machine, dtype))


def test_all_iterations(machine, dtype):
    def steps(unary, *features):
        filters = [crf.Normalised(crf.LatticeFilter(f), "symmetric", unary.dtype.type) for f in features]
        found = crf.iterate(unary, [crf.potts(2.0), crf.potts(1.0)], filters, 2)
        return [cuda.copied(q) for q in found]

    assert len(machine.agree(steps, unary_of(machine, dtype, 3), *features_of(machine, dtype))) == 3


def test_runs_and_vertices_of_several_lattices_are_kept_apart(machine, dtype):
    # Three lattices of one, three and two features, with vertices of some hundred entries in each.
    def infer(unary, *features):
        filters = [crf.Normalised(crf.LatticeFilter(f), "after", unary.dtype.type) for f in features]
        return crf.infer(unary, [crf.potts(w) for w in (1, 2, 3)], filters, 2)

    features = [machine.rng.uniform(0, 1.5, (600, d)).astype(dtype) for d in (1, 3, 2)]
    machine.agree(infer, unary_of(machine, dtype, 5, 600), *features)


@pytest.mark.parametrize(
    ("kind", "forms"),
    [
        (crf.ExactFilter, ()),
        (crf.ExactFilter, (0, 1)),
        (crf.LatticeFilter, (2, 0)),
        (crf.LatticeFilter, (1, 2)),
    ],
)
def test_mean_field(machine, dtype, kind, forms):
    def both(unary, dq, *rest):
        features, couplings = rest[: len(forms)], rest[len(forms) :]
        filters = [crf.Normalised(kind(f), "symmetric", unary.dtype.type) for f in features]
        q, cache = crf.mean_field(unary, *couplings, filters=filters, iterations=2)
        fast = crf.infer(unary, couplings, filters, 2)
        return q, fast, *crf.mean_field_backward(dq, cache)

    couplings = [np.asarray(machine.rng.standard_normal((3,) * axes), dtype) for axes in forms]
    arrays = (unary_of(machine, dtype, 3), machine.numbers(POINTS, 3, dtype=dtype))
    features = features_of(machine, dtype)[: len(forms)]
    machine.agree(both, *arrays, *features, *couplings, tolerance={np.dtype("f4"): 2e-5})


@pytest.mark.parametrize("logits", [False, True])
def test_more_labels_than_the_fast_way_takes(machine, dtype, logits):
    def forward(unary, features):
        filters = [crf.Normalised(crf.LatticeFilter(features), "after", unary.dtype.type)]
        coupling = arrays.here(np.asarray(-2.0), unary)
        q = crf.infer(unary, [crf.potts(2.0)], filters, 1)
        return q, crf.mean_field(unary, coupling, filters=filters, iterations=1, logits=logits)[0]

    machine.agree(forward, unary_of(machine, dtype, 130, 20), features_of(machine, dtype, 20)[0])


@pytest.mark.parametrize("mode", NORMALISATIONS)
@pytest.mark.parametrize("kind", [crf.ExactFilter, crf.LatticeFilter])
def test_gradients(machine, kind, mode):
    unary, couplings = unary_of(machine, np.float64, 3, 12), [np.array(-0.8), machine.numbers(3, 3)]
    with cuda.on(machine.devices[0]):
        features = [cuda.to_device(f) for f in features_of(machine, np.float64, 12)]
        filters = [crf.Normalised(kind(f), mode, np.float64) for f in features]

        def forward(*inputs):
            q, cache = crf.mean_field(*map(cuda.to_device, inputs), filters=filters, iterations=2)
            return cuda.to_host(q), cache

        def backward(dq, cache):
            gradients: tuple[Any, ...] = crf.mean_field_backward(cuda.to_device(dq), cache)
            return tuple(map(cuda.to_host, gradients))

        check_vjp(forward, backward, (unary, *couplings))


@pytest.mark.parametrize("energy", [crf.free_energy, crf.pydensecrf_kl])
def test_energies(machine, energy):
    unary, features = unary_of(machine, np.float32, 3), features_of(machine, np.float32)
    couplings = [crf.potts(2), np.array([0.1, -0.3, 0.2], np.float32)]

    def both(unary, features):
        filters = [crf.Normalised(crf.LatticeFilter(f)) for f in features]
        return energy(crf.infer(unary, couplings, filters, 1), unary, couplings, filters)

    with cuda.on(machine.devices[0]):
        result = both(cuda.to_device(unary), [cuda.to_device(f) for f in features])
    assert result == pytest.approx(both(unary, features), rel=1e-6)


def test_a_graph_uses_lattices_that_were_made_before(machine):
    unary, other, dq = (unary_of(machine, np.float32, 3) for _ in range(3))
    with cuda.on(machine.devices[0]):
        features = [cuda.to_device(f) for f in features_of(machine, np.float32)]
        filters = [crf.Normalised(crf.LatticeFilter(f)) for f in features]
        coupling = cuda.to_device(np.array(-1, np.float32))
        x, d = cuda.to_device(unary), cuda.to_device(dq)

        def run():
            fast = crf.infer(x, [crf.potts(2), crf.potts(1)], filters, 2)
            q, cache = crf.mean_field(x, coupling, coupling, filters=filters, iterations=2)
            gradients: Any = crf.mean_field_backward(d, cache)
            return fast, q, *gradients

        run()  # compiles
        with cuda.record() as graph:
            results = run()
        cuda.write(x, other)
        graph.launch()
        for recorded, expected in zip(results, run(), strict=True):
            np.testing.assert_array_equal(cuda.to_host(recorded), cuda.to_host(expected))


def test_logarithms_of_small_numbers_and_nan(machine, dtype):
    x = np.array([0.5, 0.0, 1e-30, -1.0, np.nan, np.inf, 1.0], dtype)
    machine.agree(lambda x: arrays.logarithm(x, 1e-20, factor=-2.0), x)

"""The CUDA kernels of the losses: cross_entropy, bce_with_logits, dice, balanced_edge_loss, dual_task_loss."""

import numpy as np
import pytest

from tinyseg import cuda, ops

SHAPES = [(1, 1), (7, 3), (2, 5, 7, 21), (3, 4, 33), (2, 150), (600, 2)]


def labels_for(machine, shape, ignored=None):
    """Labels for scores of this shape; a third of them is to be ignored."""
    labels = machine.rng.integers(0, shape[-1], shape[:-1])
    return labels if ignored is None else np.where(machine.rng.random(labels.shape) < 0.3, ignored, labels)


def weights_for(machine, shape, dtype):
    """Some are 0."""
    return np.maximum(machine.numbers(*shape, dtype=dtype), 0)


@pytest.mark.parametrize("reduction", ["mean", "sum"])
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("shape", SHAPES)
def test_cross_entropy(machine, dtype, shape, weighted, reduction):
    def both(logits, labels, dy, *weights):
        options = dict(zip(("class_weights", "pixel_weights"), weights, strict=False))
        ignored = 255 if weighted else None
        loss, cache = ops.cross_entropy(logits, labels, ignore_label=ignored, reduction=reduction, **options)
        return loss, ops.cross_entropy_backward(dy, cache)

    arrays = [5 * machine.numbers(*shape, dtype=dtype), labels_for(machine, shape, 255 if weighted else None)]
    arrays.append(machine.numbers(dtype=dtype))
    if weighted:
        arrays += [weights_for(machine, shape[-1:], dtype), weights_for(machine, shape[:-1], dtype)]
    machine.agree(both, *arrays)


def test_nothing_counts(machine, dtype):
    def both(logits, labels, dy):
        loss, cache = ops.cross_entropy(logits, labels, ignore_label=7)
        return loss, ops.cross_entropy_backward(dy, cache)

    logits = np.full((5, 3), np.nan, dtype)
    loss, gradient = machine.agree(both, logits, np.full(5, 7), np.ones((), dtype))
    assert loss == 0 and (gradient == 0).all()


def test_large_scores(machine, dtype):
    logits = np.array([[1e5, 1e5 + 1, 0], [-1e4, 0, 3]], dtype)
    machine.agree(lambda z, t: ops.cross_entropy(z, t)[0], logits, np.array([1, 2], np.uint8))


def test_weights_of_classes_from_the_host(machine, dtype):
    weights = np.array([1, 2, 0.5], dtype)
    machine.agree(
        lambda z, t: ops.cross_entropy(z, t, class_weights=weights)[0],
        machine.numbers(9, 3, dtype=dtype),
        machine.rng.integers(0, 3, 9),
    )


@pytest.mark.parametrize("wrong", [{"labels": 3}, {"labels": -1}, {"weight": -1.0}])
def test_a_wrong_label_or_weight_makes_the_loss_nan(host, wrong):
    labels, weights = np.array([0, 1, 2]), np.ones(3)
    labels[1], weights[1] = wrong.get("labels", 1), wrong.get("weight", 1)
    with cuda.on(host()):
        arrays = [cuda.to_device(array) for array in (np.zeros((3, 3)), labels, weights)]
        loss, _ = ops.cross_entropy(*arrays[:2], pixel_weights=arrays[2])
        assert np.isnan(cuda.to_host(loss))


@pytest.mark.parametrize("reduction", ["mean", "sum"])
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("weights", [None, "pixels", "elements"])
def test_bce_with_logits(machine, dtype, shape, weights, reduction):
    positive = np.abs(machine.numbers(shape[-1], dtype=dtype))

    def both(logits, targets, dy, *pixel_weights):
        options = {"pixel_weights": pixel_weights[0], "ignore_label": 255} if pixel_weights else {}
        loss, cache = ops.bce_with_logits(
            logits, targets, positive_weight=positive, reduction=reduction, **options
        )
        return loss, ops.bce_with_logits_backward(dy, cache)

    targets = machine.rng.integers(0, 2, shape).astype(np.uint8)
    arrays = [5 * machine.numbers(*shape, dtype=dtype), targets, machine.numbers(dtype=dtype)]
    if weights:
        targets[machine.rng.random(shape) < 0.3] = 255
        arrays.append(weights_for(machine, shape if weights == "elements" else shape[:-1], dtype))
    machine.agree(both, *arrays)


def test_soft_targets(machine, dtype):
    targets = machine.rng.random((4, 5)).astype(dtype)
    machine.agree(lambda z, t: ops.bce_with_logits(z, t)[0], 3 * machine.numbers(4, 5, dtype=dtype), targets)


@pytest.mark.parametrize("reduction", ["mean", "sum"])
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("shape", SHAPES)
def test_dice(machine, dtype, shape, weighted, reduction):
    def both(p, labels, dy, *weights):
        options = dict(zip(("class_weights", "pixel_weights"), weights, strict=False))
        ignored = 255 if weighted else None
        loss, cache = ops.dice(p, labels, epsilon=0.5, ignore_label=ignored, reduction=reduction, **options)
        return loss, ops.dice_backward(dy, cache)

    p = machine.rng.random(shape).astype(dtype)
    arrays = [p, labels_for(machine, shape, 255 if weighted else None), machine.numbers(dtype=dtype)]
    if weighted:
        arrays += [weights_for(machine, shape[-1:], dtype), weights_for(machine, shape[:-1], dtype)]
    machine.agree(both, *arrays, floor=1)


@pytest.mark.parametrize("kind", ["bools", "bytes", "with ignored pixels"])
@pytest.mark.parametrize("shape", [(1, 1), (2, 5, 7, 1), (3, 4, 2), (600, 1)])
def test_balanced_edge_loss(machine, dtype, shape, kind):
    def both(logits, edges, dy):
        loss, cache = ops.balanced_edge_loss(logits, edges, ignore_label=255)
        return loss, ops.balanced_edge_loss_backward(dy, cache)

    edges = machine.rng.random(shape) < 0.2
    if kind != "bools":
        edges = edges.astype(np.uint8)
    if kind == "with ignored pixels":
        edges[machine.rng.random(shape) < 0.3] = 255
    machine.agree(both, 5 * machine.numbers(*shape, dtype=dtype), edges, machine.numbers(dtype=dtype))


@pytest.mark.parametrize(("edge", "ignored"), [(0, None), (1, None), (7, 7), (1, 1)])
def test_one_kind_of_pixels_alone(machine, dtype, edge, ignored):
    def both(logits, edges, dy):
        loss, cache = ops.balanced_edge_loss(logits, edges, ignore_label=ignored)
        return loss, ops.balanced_edge_loss_backward(dy, cache)

    loss, gradient = machine.agree(
        both, machine.numbers(4, 5, dtype=dtype), np.full((4, 5), edge), np.ones((), dtype)
    )
    assert loss == 0 and not gradient.any()


def test_a_wrong_edge_makes_the_loss_nan(host):
    with cuda.on(host()):
        loss, _ = ops.balanced_edge_loss(*map(cuda.to_device, (np.zeros(3), np.array([0, 1, 2]))))
        assert np.isnan(cuda.to_host(loss))


@pytest.mark.parametrize("ignored", [None, 255])
@pytest.mark.parametrize("seed", [None, 5])
@pytest.mark.parametrize("shape", [(2, 6, 5, 3), (1, 1, 1, 2), (1, 4, 7, 33), (1, 19, 23, 2)])
def test_dual_task_loss(machine, dtype, shape, seed, ignored):
    def both(logits, labels, dy):
        loss, cache = ops.dual_task_loss(
            logits, labels, temperature=0.8, seed=seed, threshold=0.05, ignore_label=ignored
        )
        return loss, ops.dual_task_loss_backward(dy, cache)

    logits, labels = 2 * machine.numbers(*shape, dtype=dtype), labels_for(machine, shape, ignored)
    if ignored is not None:
        logits[labels == ignored] = np.nan  # what is ignored may be anything
    machine.agree(both, logits, labels, machine.numbers(dtype=dtype))


@pytest.mark.parametrize("wrong", ["label", "logit"])
def test_what_is_wrong_makes_the_dual_task_loss_nan(host, wrong):
    logits, labels = np.zeros((1, 4, 3, 2)), np.zeros((1, 4, 3), int)
    if wrong == "label":
        labels[0, 2, 1] = 2
    else:
        logits[0, 2, 1, 0] = np.nan
    with cuda.on(host()):
        loss, _ = ops.dual_task_loss(*map(cuda.to_device, (logits, labels)))
        assert np.isnan(cuda.to_host(loss))

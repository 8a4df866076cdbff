"""The gradient checks reject wrong backward passes: a list of them, for small versions of real operators.

Each operator stands here in plain NumPy, with its right backward pass, which the checks must accept, and with
wrong ones, which they must reject. Nothing is taken from `tinyseg.ops`, so that the list says something about the
checks alone. Each mistake is one that people make; `mistake_in(1, ...)` is wrong in gradient number 1 only.

One famous mistake needs care: routing a pooling gradient to the last of several equal maxima is not wrong in
itself, since each of them is a valid derivative. It is wrong where the forward pass chose another one: see
`pool_and_unpool`.
"""

import functools
from collections.abc import Callable

import numpy as np
import pytest

from tinyseg import gradcheck
from tinyseg.gradcheck import EPS, GradientError, check_vjp, check_vjp_full, spaced

OPERATORS: list["Operator"] = []


class Operator:
    """A forward pass, its right backward pass, inputs to check them at, and wrong backward passes by name."""

    def __init__(self, forward: Callable, backward: Callable, *inputs: np.ndarray):
        self.name = forward.__name__
        self.forward, self.backward, self.inputs = forward, backward, inputs
        self.mistakes: dict[str, Callable] = {}
        OPERATORS.append(self)

    def mistake(self, description: str, gradient: Callable) -> None:
        """`gradient(dy, *cache)` is the wrong backward pass."""
        self.mistakes[description] = lambda dy, cache: gradient(dy, *cache)

    def mistake_in(self, position: int, description: str, gradient: Callable) -> None:
        """`gradient(dy, *cache)` is wrong; the other gradients are right."""

        def backward(dy, cache):
            gradients = list(self.backward(dy, cache))
            gradients[position] = gradient(dy, *cache)
            return tuple(gradients)

        self.mistakes[description] = backward


def normal(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng([seed, *shape]).normal(size=shape)


# ----------------------------------------------------------------------------------------------------- convolution

STRIDE, PADDING, DILATION = (2, 1), (1, 2), (1, 2)


def window(r, s, out, stride=STRIDE, dilation=DILATION):
    """The padded pixels under tap (r, s) for all outputs: two slices, down and across."""
    return tuple(
        slice(tap * d, tap * d + (count - 1) * step + 1, step)
        for tap, count, step, d in zip((r, s), out, stride, dilation, strict=True)
    )


def pad(x, padding=PADDING):
    return np.pad(x, ((0, 0), (padding[0],) * 2, (padding[1],) * 2, (0, 0)))


def convolve(x, w, out, stride=STRIDE, dilation=DILATION):
    padded, y = pad(x), np.zeros((len(x), *out, w.shape[3]))
    for r, s in np.ndindex(*w.shape[:2]):
        rows, columns = window(r, s, out, stride, dilation)
        y += padded[:, rows, columns] @ w[r, s]
    return y


def input_gradient(dy, x, w, stride=STRIDE, padding=PADDING, dilation=DILATION):
    dx = np.zeros_like(pad(x))
    for r, s in np.ndindex(*w.shape[:2]):
        rows, columns = window(r, s, dy.shape[1:3], stride, dilation)
        dx[:, rows, columns] += dy @ w[r, s].T
    return dx[:, padding[0] :, padding[1] :][:, : x.shape[1], : x.shape[2]]


def weight_gradient(dy, x, w, stride=STRIDE, dilation=DILATION):
    padded, dw = pad(x), np.zeros_like(w)
    for r, s in np.ndindex(*w.shape[:2]):
        rows, columns = window(r, s, dy.shape[1:3], stride, dilation)
        dw[r, s] = np.einsum("npqc,npqo->co", padded[:, rows, columns], dy)
    return dw


def conv2d(x, w, b):
    return convolve(x, w, (3, 6)) + b, (x, w)


def conv2d_backward(dy, cache):
    x, w = cache
    return input_gradient(dy, x, w), weight_gradient(dy, x, w), dy.sum(axis=(0, 1, 2))


def scaled_border(dy, x, w, factor):
    dx = input_gradient(dy, x, w)
    dx[:, [0, -1]] *= factor
    return dx


def per_channel_mean(dy):
    return np.broadcast_to(dy.mean(axis=(1, 2), keepdims=True), dy.shape)


op = Operator(conv2d, conv2d_backward, normal(2, 5, 6, 2), normal(3, 3, 2, 3), normal(3))
op.mistake_in(0, "dx: kernel flipped", lambda dy, x, w: input_gradient(dy, x, w[::-1, ::-1]))
op.mistake_in(
    0, "dx: height and width of the kernel swapped", lambda dy, x, w: input_gradient(dy, x, w.swapaxes(0, 1))
)
op.mistake_in(0, "dx: output channels in reverse order", lambda dy, x, w: input_gradient(dy, x, w[..., ::-1]))
op.mistake_in(0, "dx: last row of the kernel left out", lambda dy, x, w: input_gradient(dy, x, w[:-1]))
op.mistake_in(0, "dx: half of it at the border", lambda dy, x, w: scaled_border(dy, x, w, 0.5))
op.mistake_in(0, "dx: none of it at the border", lambda dy, x, w: scaled_border(dy, x, w, 0.0))
op.mistake_in(0, "dx: padding off by one", lambda dy, x, w: input_gradient(dy, x, w, padding=(1, 1)))
op.mistake_in(0, "dx: stride ignored", lambda dy, x, w: input_gradient(dy, x, w, stride=(1, 1)))
op.mistake_in(0, "dx: dilation ignored", lambda dy, x, w: input_gradient(dy, x, w, dilation=(1, 1)))
op.mistake_in(0, "dx: dy averaged over the image", lambda dy, x, w: input_gradient(per_channel_mean(dy), x, w))
op.mistake_in(1, "dw: flipped", lambda dy, x, w: weight_gradient(dy, x, w)[::-1, ::-1])
op.mistake_in(1, "dw: transposed", lambda dy, x, w: weight_gradient(dy, x, w).swapaxes(0, 1))
op.mistake_in(1, "dw: of the first example only", lambda dy, x, w: weight_gradient(dy[:1], x[:1], w))
op.mistake_in(1, "dw: mean over the batch", lambda dy, x, w: weight_gradient(dy, x, w) / len(x))
op.mistake_in(1, "dw: dy read backwards", lambda dy, x, w: weight_gradient(dy[:, ::-1, ::-1], x, w))
op.mistake_in(1, "dw: dy averaged over the image", lambda dy, x, w: weight_gradient(per_channel_mean(dy), x, w))
op.mistake_in(1, "dw: stride ignored", lambda dy, x, w: weight_gradient(dy, x, w, stride=(1, 1)))
op.mistake_in(1, "dw: dilation ignored", lambda dy, x, w: weight_gradient(dy, x, w, dilation=(1, 1)))
op.mistake_in(2, "db: counts pixels and ignores dy", lambda dy, x, w: np.full(3, dy[..., 0].size, float))
op.mistake_in(2, "db: of the first example only", lambda dy, x, w: dy[0].sum(axis=(0, 1)))
op.mistake_in(2, "db: mean in place of sum", lambda dy, x, w: dy.mean(axis=(0, 1, 2)))
op.mistake_in(2, "db: all channels in each", lambda dy, x, w: np.full(3, dy.sum() / 3))


def conv_transpose2d(x, w):
    """The adjoint of conv2d: x has w's output channels, y its input channels."""
    return input_gradient(x, np.zeros((len(x), 5, 6, w.shape[2])), w), (x, w)


def conv_transpose2d_backward(dy, cache):
    x, w = cache
    return convolve(dy, w, x.shape[1:3]), weight_gradient(x, dy, w)


op = Operator(conv_transpose2d, conv_transpose2d_backward, normal(2, 3, 6, 3), normal(3, 3, 2, 3))
op.mistake_in(0, "dx: kernel flipped", lambda dy, x, w: convolve(dy, w[::-1, ::-1], (3, 6)))
op.mistake_in(0, "dx: stride ignored", lambda dy, x, w: convolve(dy, w, (3, 6), stride=(1, 1)))
op.mistake_in(0, "dx: dilation ignored", lambda dy, x, w: convolve(dy, w, (3, 6), dilation=(1, 1)))
op.mistake_in(1, "dw: flipped", lambda dy, x, w: weight_gradient(x, dy, w)[::-1, ::-1])
op.mistake_in(1, "dw: of the last example only", lambda dy, x, w: weight_gradient(x[1:], dy[1:], w))


# -------------------------------------------------------------------------------------- pooling: 3 x 2, step 2 x 1


def windows(x):
    """All pooling windows of x, N P Q C 6, and nothing is copied: the sixth axis is (r, s) in reading order."""
    view = np.lib.stride_tricks.sliding_window_view(x, (3, 2), axis=(1, 2))[:, ::2]
    return view.reshape(*view.shape[:-2], 6)


def spread(shares, shape, add=True):
    """Each window's shares of its gradient, N P Q C 6, put back to where the window was."""
    dx = np.zeros(shape)
    for k in range(6):
        rows, columns = window(k // 2, k % 2, shares.shape[1:3], (2, 1), (1, 1))
        if add:
            dx[:, rows, columns] += shares[..., k]
        else:
            dx[:, rows, columns] = np.where(shares[..., k] != 0, shares[..., k], dx[:, rows, columns])
    return dx


def chosen(index):
    return np.eye(6)[index]


def max_pool2d(x):
    return windows(x).max(axis=-1), (x,)


def max_pool2d_backward(dy, cache):
    (x,) = cache
    return spread(dy[..., None] * chosen(windows(x).argmax(axis=-1)), x.shape)


def last_rise(x):
    """The last element that is larger than the one before it, in place of the largest so far."""
    rises = np.diff(windows(x), axis=-1) > 0
    return np.where(rises.any(axis=-1), 5 - rises[..., ::-1].argmax(axis=-1), 0)


op = Operator(max_pool2d, max_pool2d_backward, spaced((2, 7, 5, 2)))
op.mistake("to the last element of the window", lambda dy, x: spread(dy[..., None] * np.eye(6)[5], x.shape))
op.mistake("to the last element that rises", lambda dy, x: spread(dy[..., None] * chosen(last_rise(x)), x.shape))
op.mistake("to all elements of the window", lambda dy, x: spread(dy[..., None] * np.ones(6), x.shape))
op.mistake("to the minimum", lambda dy, x: spread(dy[..., None] * chosen(windows(x).argmin(axis=-1)), x.shape))
op.mistake("dy read backwards", lambda dy, x: max_pool2d_backward(dy[:, ::-1, ::-1], (x,)))
op.mistake(
    "windows that share a maximum overwrite each other",
    lambda dy, x: spread(dy[..., None] * chosen(windows(x).argmax(axis=-1)), x.shape, add=False),
)


def pool_of_pairs(x):
    """Max pooling of an image in which every pixel stands twice, so that every window has equal maxima."""
    return x.repeat(2, axis=2).reshape(2, 3, -1, 4, 2).max(axis=3), (x,)


def pool_of_pairs_backward(dy, cache, share=1.0):
    (x,) = cache
    pairs = x.reshape(2, 3, -1, 2, 2)
    return (share * dy[:, :, :, None] * (pairs == pairs.max(axis=3, keepdims=True))).reshape(x.shape)


op = Operator(pool_of_pairs, pool_of_pairs_backward, spaced((2, 3, 6, 2)))
op.mistake("all of dy to each of the equal maxima", lambda dy, x: pool_of_pairs_backward(dy, (x,), share=2.0))


def pool_and_unpool(x):
    """Every pixel is doubled, every pair is pooled, and the maximum goes back to its place: the first one."""
    pairs = np.stack([x, x], axis=-1)
    place = np.eye(2)[pairs.argmax(axis=-1)]
    return place * pairs.max(axis=-1, keepdims=True), (place,)


op = Operator(pool_and_unpool, lambda dy, cache: (dy * cache[0]).sum(axis=-1), normal(4, 3))
op.mistake("from the last of the equal maxima", lambda dy, place: (dy * place[..., ::-1]).sum(axis=-1))
op.mistake("from all of the equal maxima", lambda dy, place: dy.sum(axis=-1))


def avg_pool2d(x):
    """With one row of zeros above and below, which are counted."""
    padded = np.pad(x, ((0, 0), (1, 1), (0, 0), (0, 0)))
    return windows(padded).mean(axis=-1), (x, padded)


def avg_pool2d_backward(dy, cache, share=None):
    _, padded = cache
    share = np.full(6, 1 / 6) if share is None else share
    return spread(dy[..., None] * share * np.ones(6), padded.shape)[:, 1:-1]


def valid_share(x):
    rows = np.pad(np.ones((1, *x.shape[1:3], 1)), ((0, 0), (1, 1), (0, 0), (0, 0)))
    return 1 / windows(rows).sum(axis=-1, keepdims=True)


op = Operator(avg_pool2d, avg_pool2d_backward, normal(2, 5, 4, 2))
op.mistake("not divided by the window's size", lambda dy, *cache: avg_pool2d_backward(dy, cache, np.ones(6)))
op.mistake("divided by the pixels inside the image", lambda dy, *c: avg_pool2d_backward(dy, c, valid_share(c[0])))
op.mistake("all of it to the first pixel of the window", lambda dy, *c: avg_pool2d_backward(dy, c, np.eye(6)[0]))
op.mistake(
    "windows that overlap overwrite each other",
    lambda dy, x, padded: spread(dy[..., None] * np.full(6, 1 / 6), padded.shape, add=False)[:, 1:-1],
)


# --------------------------------------------------------------------------------------------------- normalisation


def normalise(x, axes, eps):
    deviation = np.sqrt(x.var(axis=axes, keepdims=True) + eps)
    return (x - x.mean(axis=axes, keepdims=True)) / deviation, deviation


def normalise_backward(dn, n, deviation, axes):
    mean = functools.partial(np.mean, axis=axes, keepdims=True)
    return (dn - mean(dn) - n * mean(dn * n)) / deviation


BATCH, BATCH_EPS = (0, 1, 2), 0.01


def batch_norm(x, gamma, beta):
    n, deviation = normalise(x, BATCH, BATCH_EPS)
    return n * gamma + beta, (x, n, deviation, gamma)


def batch_norm_backward(dy, cache):
    _, n, deviation, gamma = cache
    dx = normalise_backward(dy * gamma, n, deviation, BATCH)
    return dx, (dy * n).sum(axis=BATCH), dy.sum(axis=BATCH)


def no_variance_term(dy, x, n, deviation, gamma):
    return gamma * (dy - dy.mean(axis=BATCH)) / deviation


def no_mean_term(dy, x, n, deviation, gamma):
    return gamma * (dy - n * (dy * n).mean(axis=BATCH)) / deviation


def one_pixel_less(dy, x, n, deviation, gamma):
    count = n[..., 0].size - 1
    return gamma * (dy - dy.sum(axis=BATCH) / count - n * (dy * n).sum(axis=BATCH) / count) / deviation


def without_eps(dy, x, n, deviation, gamma):
    return normalise_backward(dy * gamma, n, np.sqrt(deviation**2 - BATCH_EPS), BATCH)


op = Operator(batch_norm, batch_norm_backward, 2 + normal(3, 2, 4, 2), 1 + 0.3 * normal(2), normal(2))
op.mistake_in(
    0, "dx: mean and variance taken for constants", lambda dy, x, n, deviation, gamma: gamma * dy / deviation
)
op.mistake_in(0, "dx: without the variance term", no_variance_term)
op.mistake_in(0, "dx: without the mean term", no_mean_term)
op.mistake_in(0, "dx: means over one pixel less", one_pixel_less)
op.mistake_in(0, "dx: eps left out of the deviation", without_eps)
op.mistake_in(0, "dx: zero", lambda dy, x, n, deviation, gamma: np.zeros_like(x))
op.mistake_in(0, "dx: without gamma", lambda dy, x, n, d, gamma: normalise_backward(dy, n, d, BATCH))
op.mistake_in(1, "dgamma: of x before normalisation", lambda dy, x, n, d, gamma: (dy * x).sum(axis=BATCH))
op.mistake_in(1, "dgamma: zero", lambda dy, x, n, deviation, gamma: np.zeros_like(gamma))
op.mistake_in(1, "dgamma: dy averaged first", lambda dy, x, n, d, gamma: dy.mean(axis=BATCH) * n.sum(axis=BATCH))
op.mistake_in(2, "dbeta: mean in place of sum", lambda dy, x, n, deviation, gamma: dy.mean(axis=BATCH))


def group_norm(x):
    """Two groups of two channels, in an image N H W C."""
    grouped = x.reshape(*x.shape[:3], 2, 2)
    n, deviation = normalise(grouped, (1, 2, 4), 1e-5)
    return n.reshape(x.shape), (n, deviation)


def group_norm_backward(dy, cache, axes=(1, 2, 4)):
    n, deviation = cache
    return normalise_backward(dy.reshape(n.shape), n, deviation, axes).reshape(dy.shape)


op = Operator(group_norm, group_norm_backward, normal(2, 2, 3, 4))
op.mistake("means over both groups", lambda dy, *cache: group_norm_backward(dy, cache, axes=(1, 2, 3, 4)))
op.mistake("means over the batch too", lambda dy, *cache: group_norm_backward(dy, cache, axes=(0, 1, 2, 4)))
op.mistake("means of each channel alone", lambda dy, *cache: group_norm_backward(dy, cache, axes=(1, 2)))


# ---------------------------------------------------------------------------------------------- softmax and losses


def softmax(x):
    e = np.exp(x - x.max(axis=-1, keepdims=True))
    y = e / e.sum(axis=-1, keepdims=True)
    return y, (y,)


def softmax_backward(dy, cache):
    (y,) = cache
    return y * (dy - (dy * y).sum(axis=-1, keepdims=True))


op = Operator(softmax, softmax_backward, normal(2, 3, 4))
op.mistake("zero", lambda dy, y: np.zeros_like(y))
op.mistake("doubled", lambda dy, y: 2 * softmax_backward(dy, (y,)))
op.mistake("a mean for the weighted sum", lambda dy, y: y * (dy - dy.mean(axis=-1, keepdims=True)))
op.mistake("the diagonal only", lambda dy, y: dy * y * (1 - y))
op.mistake("the sum over the wrong axis", lambda dy, y: y * (dy - (dy * y).sum(axis=1, keepdims=True)))


def log_softmax(x):
    y = softmax(x)[0]
    return np.log(y), (y,)


op = Operator(log_softmax, lambda dy, cache: dy - cache[0] * dy.sum(axis=-1, keepdims=True), normal(2, 3, 4))
op.mistake("that of softmax", lambda dy, y: softmax_backward(dy, (y,)))
op.mistake("a mean for the sum", lambda dy, y: dy - y * dy.mean(axis=-1, keepdims=True))

LABELS = np.array([[0, 2, 9], [1, 9, 2]])  # 9 is ignored
WEIGHTS = np.array([1.0, 2.0, 0.5])


def cross_entropy(logits):
    """Weighted mean over the pixels that are not ignored."""
    counted = LABELS != 9
    y, one_hot = softmax(logits)[0], np.eye(10)[LABELS][..., :3]
    weight = (one_hot * WEIGHTS).sum(axis=-1)  # 0 where ignored
    return -(weight * np.log((y * one_hot).sum(axis=-1) + ~counted)).sum() / weight.sum(), (y, one_hot, weight)


def cross_entropy_backward(dy, cache):
    y, one_hot, weight = cache
    return dy * (y - one_hot) * weight[..., None] / weight.sum()


op = Operator(cross_entropy, cross_entropy_backward, normal(2, 3, 3))
op.mistake(
    "ignored pixels not left out", lambda dy, y, t, w: dy * (y - t) * np.where(w, w, 1)[..., None] / w.sum()
)
op.mistake("class weights left out", lambda dy, y, t, w: dy * (y - t) * (w > 0)[..., None] / w.sum())
op.mistake("sum in place of mean", lambda dy, y, t, w: dy * (y - t) * w[..., None])
op.mistake("mean over the ignored pixels too", lambda dy, y, t, w: dy * (y - t) * w[..., None] / w.size)
op.mistake("dy taken for 1", lambda dy, y, t, w: (y - t) * w[..., None] / w.sum())
op.mistake("the label not subtracted", lambda dy, y, t, w: dy * y * w[..., None] / w.sum())
op.mistake("the label's channel only", lambda dy, y, t, w: dy * (y - t) * t * w[..., None] / w.sum())

TARGETS = np.array([[0.0, 1.0, 1.0], [1.0, 0.0, 0.3]])


def bce_with_logits(x):
    return np.mean(np.log1p(np.exp(x)) - TARGETS * x), (x, 1 / (1 + np.exp(-x)))


op = Operator(bce_with_logits, lambda dy, cache: dy * (cache[1] - TARGETS) / TARGETS.size, normal(2, 3))
op.mistake("the sign", lambda dy, x, p: dy * (TARGETS - p) / x.size)
op.mistake("times the sigmoid's slope", lambda dy, x, p: dy * (p - TARGETS) * p * (1 - p) / x.size)
op.mistake("the logit in place of the probability", lambda dy, x, p: dy * (x - TARGETS) / x.size)


def dice(p):
    """1 - 2 |p t| / (|p| + |t|), over all pixels."""
    overlap, total = (p * TARGETS).sum(), p.sum() + TARGETS.sum()
    return 1 - 2 * overlap / total, (p, overlap, total)


op = Operator(
    dice, lambda dy, cache: -2 * dy * (TARGETS * cache[2] - cache[1]) / cache[2] ** 2, 0.5 + 0.1 * normal(2, 3)
)
op.mistake("the total taken for a constant", lambda dy, p, overlap, total: -2 * dy * TARGETS / total)
op.mistake("the total not squared", lambda dy, p, overlap, total: -2 * dy * (TARGETS * total - overlap) / total)


# ---------------------------------------------------------------------------------- resize, pad, concatenate, crop


def bilinear_matrix(size, out, align_corners=False):
    """(out, size): how much of each input pixel is in each output pixel."""
    if align_corners:
        centre = np.arange(out) * (size - 1) / (out - 1)
    else:
        centre = np.clip((np.arange(out) + 0.5) * size / out - 0.5, 0, size - 1)
    return np.maximum(1 - abs(centre[:, None] - np.arange(size)), 0)


def nearest_matrix(size, out):
    return np.eye(size)[np.arange(out) * size // out]


DOWN, ACROSS = bilinear_matrix(3, 5), bilinear_matrix(4, 9)


def resize(x):
    """Bilinear, from 3 x 4 to 5 x 9 pixels."""
    return np.einsum("ph,qw,nhwc->npqc", DOWN, ACROSS, x), ()


def transposed(dy, down, across):
    return np.einsum("ph,qw,npqc->nhwc", down, across, dy)


op = Operator(resize, lambda dy, cache: transposed(dy, DOWN, ACROSS), normal(2, 3, 4, 2))
op.mistake("nearest", lambda dy: transposed(dy, nearest_matrix(3, 5), nearest_matrix(4, 9)))
op.mistake("corners aligned", lambda dy: transposed(dy, bilinear_matrix(3, 5, True), bilinear_matrix(4, 9, True)))
op.mistake("dy resized back", lambda dy: transposed(dy, bilinear_matrix(5, 3).T, bilinear_matrix(9, 4).T))
op.mistake("dy averaged over the image", lambda dy: transposed(per_channel_mean(dy), DOWN, ACROSS))


def reflect_pad(x):
    return np.pad(x, ((0, 0), (2, 1)), mode="reflect"), (x,)


def reflect_pad_backward(dy, cache):
    dx = dy[:, 2:-1].copy()
    dx[:, 1:3] += dy[:, 1::-1]
    dx[:, -2] += dy[:, -1]
    return dx


op = Operator(reflect_pad, reflect_pad_backward, normal(3, 5))
op.mistake("the border dropped", lambda dy, x: dy[:, 2:-1].copy())
op.mistake(
    "folded back onto the edge itself", lambda dy, x: dy[:, 2:-1] + np.eye(5)[0] * dy[:, :2].sum(1)[:, None]
)


def concat(a, b):
    return np.concatenate([a, b], axis=-1), ()


op = Operator(concat, lambda dy, cache: (dy[..., :2], dy[..., 2:]), normal(3, 2), normal(3, 2, seed=1))
op.mistake("the two parts exchanged", lambda dy: (dy[..., 2:], dy[..., :2]))
op.mistake("the channels taken in turn", lambda dy: (dy[..., ::2], dy[..., 1::2]))


# ---------------------------------------------------------------------------------------------- one by one, linear


def relu(x):
    return np.maximum(x, 0), (x,)


op = Operator(relu, lambda dy, cache: dy * (cache[0] > 0), spaced((3, 5)))
op.mistake("dy where dy is positive", lambda dy, x: dy * (dy > 0))
op.mistake("dy everywhere", lambda dy, x: dy)
op.mistake("one where x is positive", lambda dy, x: (x > 0).astype(float))
op.mistake("times x", lambda dy, x: dy * np.maximum(x, 0))


def sigmoid(x):
    y = 1 / (1 + np.exp(-x))
    return y, (x, y)


op = Operator(sigmoid, lambda dy, cache: dy * cache[1] * (1 - cache[1]), normal(3, 5))
op.mistake("x in place of y", lambda dy, x, y: dy * x * (1 - x))
op.mistake("one factor missing", lambda dy, x, y: dy * y)


def mul(a, b):
    return a * b, (a, b)


op = Operator(mul, lambda dy, cache: (dy * cache[1], dy * cache[0]), normal(3, 5), normal(3, 5, seed=1))
op.mistake("each its own factor", lambda dy, a, b: (dy * a, dy * b))


def dropout(x):
    kept = np.random.default_rng(5).random(x.shape) < 0.6
    return x * kept / 0.6, (kept,)


op = Operator(dropout, lambda dy, cache: dy * cache[0] / 0.6, normal(4, 5))
op.mistake("not scaled", lambda dy, kept: dy * kept)
op.mistake("another mask", lambda dy, kept: dy * kept[::-1] / 0.6)


def linear(x, w, b):
    return x @ w + b, (x, w)


def linear_backward(dy, cache):
    x, w = cache
    return dy @ w.T, x.T @ dy, dy.sum(axis=0)


op = Operator(linear, linear_backward, normal(5, 4), normal(4, 4), normal(4))
op.mistake_in(0, "dx: w not transposed", lambda dy, x, w: dy @ w)
op.mistake_in(1, "dw: transposed", lambda dy, x, w: dy.T @ x)
op.mistake_in(1, "dw: mean over the batch", lambda dy, x, w: x.T @ dy / len(x))
op.mistake_in(1, "dw: of the mean example", lambda dy, x, w: len(x) * np.outer(x.mean(axis=0), dy.mean(axis=0)))


# ----------------------------------------------------------------------------------------------------------- tests

MISTAKES = [
    pytest.param(operator, backward, id=f"{operator.name}: {description}")
    for operator in OPERATORS
    for description, backward in operator.mistakes.items()
]


@pytest.mark.parametrize("operator", OPERATORS, ids=lambda operator: operator.name)
def test_the_right_backward_pass_is_accepted(operator):
    for seed in range(10):
        check_vjp(operator.forward, operator.backward, operator.inputs, seed=seed)
    check_vjp_full(operator.forward, operator.backward, operator.inputs)


@pytest.mark.parametrize("operator, backward", MISTAKES)
def test_the_wrong_backward_pass_is_rejected(operator, backward, monkeypatch):
    with pytest.raises(GradientError, match=" wrong"):
        check_vjp_full(operator.forward, backward, operator.inputs)
    monkeypatch.setattr(gradcheck, "EXPLAINED_SIZE", 0)  # the explanation takes time
    for seed in range(10):
        with pytest.raises(GradientError, match=" wrong"):
            check_vjp(operator.forward, backward, operator.inputs, seed=seed)


def gradient_of_the_sum(operator: Operator) -> list[np.ndarray]:
    """By finite differences, every element: what a check with an all-ones upstream gradient compares with."""
    gradients = []
    for i, x in enumerate(operator.inputs):
        gradient = np.zeros_like(x)
        for index in np.ndindex(*x.shape):
            step = np.zeros_like(x)
            step[index] = EPS
            ahead, behind = (
                np.sum(operator.forward(*operator.inputs[:i], x + sign * step, *operator.inputs[i + 1 :])[0])
                for sign in (1, -1)
            )
            gradient[index] = (ahead - behind) / (2 * EPS)
        gradients.append(gradient)
    return gradients


def test_an_all_ones_upstream_gradient_would_accept_many_of_them():
    """Why dy is random: with dy = 1, a quarter of the list looks right although every element is compared."""
    accepted = []
    for operator in OPERATORS:
        y, cache = operator.forward(*operator.inputs)
        expected = gradient_of_the_sum(operator)
        for description, backward in operator.mistakes.items():
            got = backward(np.ones_like(y), cache)
            got = got if isinstance(got, tuple) else (got,)
            if all(np.allclose(g, e, rtol=1e-5, atol=1e-6) for g, e in zip(got, expected, strict=True)):
                accepted.append(f"{operator.name}: {description}")
    assert (len(accepted), len(MISTAKES)) == (25, 94), accepted

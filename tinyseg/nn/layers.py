"""Layers: operators together with the parameters that they need.

Each one calls the function of `tinyseg.functional` that bears its name; the formulas stand in `tinyseg.ops`.
Sizes that may differ between height and width are one number or a pair (height, width). Attributes are named as in
torchvision: weight, bias, running_mean, running_var. Parameters are float32; `Module.astype` changes that.
"""

import numpy as np

from tinyseg import functional
from tinyseg.functional import Input
from tinyseg.nn import init
from tinyseg.nn.init import Fans, Initialiser, Random, Shape
from tinyseg.nn.module import Buffer, Module, Parameter
from tinyseg.ops import geometry
from tinyseg.ops.batch_norm import move_average
from tinyseg.ops.dropout import next_offset
from tinyseg.ops.geometry import PaddingLike, Pair
from tinyseg.tape import Tensor

HE_NORMAL = init.he_normal()
"""How the weights of convolutions and linear layers start if nothing else is asked for: ReLUs usually follow."""


def _parameter(initialiser: Initialiser, shape: Shape, fans: Fans, rng: Random) -> Parameter:
    return Parameter(initialiser(shape, fans, rng).astype(np.float32))


def _bias(channels: int) -> Parameter:
    return Parameter(np.zeros(channels, np.float32))


def _check_channels(layer: str, in_channels: int, out_channels: int, groups: int) -> None:
    if min(in_channels, out_channels, groups) < 1:
        raise ValueError(
            f"{layer}: channels and groups must be at least 1, got in_channels={in_channels}, "
            f"out_channels={out_channels}, groups={groups}"
        )
    if in_channels % groups or out_channels % groups:
        raise ValueError(
            f"{layer}: groups={groups} must divide in_channels={in_channels} and out_channels={out_channels}"
        )


# ------------------------------------------------------------------------------------------------- linear layers


class Conv2d(Module):
    """Convolution, (N, H, W, in_channels) -> (N, P, Q, out_channels).

    `weight` is (R, S, in_channels / groups, out_channels), `bias` (out_channels,) or None.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel: Pair,
        *,
        stride: Pair = 1,
        padding: PaddingLike = 0,
        dilation: Pair = 1,
        groups: int = 1,
        bias: bool = True,
        init: Initialiser = HE_NORMAL,
        rng: Random = None,
    ):
        _check_channels("Conv2d", in_channels, out_channels, groups)
        r, s = geometry.pair("Conv2d", "kernel", kernel, minimum=1)
        stride_h, stride_w = geometry.pair("Conv2d", "stride", stride, minimum=1)
        fans = Fans(
            into=r * s * in_channels / groups,
            out_of=r * s * out_channels / (groups * stride_h * stride_w),
        )
        self.weight = _parameter(init, (r, s, in_channels // groups, out_channels), fans, rng)
        self.bias = _bias(out_channels) if bias else None
        self.in_channels, self.out_channels, self.kernel = in_channels, out_channels, (r, s)
        self.options = {"stride": stride, "padding": padding, "dilation": dilation, "groups": groups}

    def forward(self, x: Input) -> Tensor:
        return functional.conv2d(x, self.weight, self.bias, **self.options)

    def describe(self) -> str:
        return _describe_convolution(self)


class ConvTranspose2d(Module):
    """The adjoint of a convolution, (N, P, Q, in_channels) -> (N, H, W, out_channels), with a bias.

    `weight` is (R, S, out_channels / groups, in_channels), as for the convolution out_channels -> in_channels.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel: Pair,
        *,
        stride: Pair = 1,
        padding: PaddingLike = 0,
        output_padding: Pair = 0,
        dilation: Pair = 1,
        groups: int = 1,
        bias: bool = True,
        init: Initialiser = HE_NORMAL,
        rng: Random = None,
    ):
        _check_channels("ConvTranspose2d", in_channels, out_channels, groups)
        r, s = geometry.pair("ConvTranspose2d", "kernel", kernel, minimum=1)
        stride_h, stride_w = geometry.pair("ConvTranspose2d", "stride", stride, minimum=1)
        fans = Fans(
            into=r * s * in_channels / (groups * stride_h * stride_w),
            out_of=r * s * out_channels / groups,
        )
        self.weight = _parameter(init, (r, s, out_channels // groups, in_channels), fans, rng)
        self.bias = _bias(out_channels) if bias else None
        self.in_channels, self.out_channels, self.kernel = in_channels, out_channels, (r, s)
        self.options = {
            "stride": stride,
            "padding": padding,
            "output_padding": output_padding,
            "dilation": dilation,
            "groups": groups,
        }

    def forward(self, x: Input) -> Tensor:
        return functional.conv_transpose2d(x, self.weight, self.bias, **self.options)

    def describe(self) -> str:
        return _describe_convolution(self)


def _describe_convolution(layer: Conv2d | ConvTranspose2d) -> str:
    r, s = layer.kernel
    parts = [f"{layer.in_channels} -> {layer.out_channels}", f"kernel {r}x{s}"]
    unchanged = {"stride": 1, "padding": 0, "output_padding": 0, "dilation": 1, "groups": 1}
    parts += [f"{name}={value}" for name, value in layer.options.items() if value != unchanged[name]]
    if layer.bias is None:
        parts.append("bias=False")
    return ", ".join(parts)


class Linear(Module):
    """A matrix product on the last axis, (..., in_channels) -> (..., out_channels). `weight` is (in, out)."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        *,
        bias: bool = True,
        init: Initialiser = HE_NORMAL,
        rng: Random = None,
    ):
        _check_channels("Linear", in_channels, out_channels, groups=1)
        fans = Fans(into=in_channels, out_of=out_channels)
        self.weight = _parameter(init, (in_channels, out_channels), fans, rng)
        self.bias = _bias(out_channels) if bias else None

    def forward(self, x: Input) -> Tensor:
        return functional.linear(x, self.weight, self.bias)

    def describe(self) -> str:
        in_channels, out_channels = self.weight.shape
        return f"{in_channels} -> {out_channels}" + (", bias=False" if self.bias is None else "")


# ------------------------------------------------------------------------------------------------ normalisation


class BatchNorm2d(Module):
    """Batch normalisation, then max(y, 0) if `relu`.

    In training it normalises with the batch's mean and variance, and moves the running ones towards them:

        running <- (1 - momentum) * running + momentum * batch

    with the unbiased variance (n - 1 in the denominator), as PyTorch does. In evaluation, or while `frozen` is
    set, it normalises with the running ones. `frozen` may be changed at any time; weight and bias are still
    learned then, unless their `requires_grad` is switched off too.
    """

    def __init__(
        self,
        channels: int,
        *,
        eps: float = 1e-5,
        momentum: float = 0.1,
        relu: bool = False,
        frozen: bool = False,
    ):
        self.weight = Parameter(np.ones(channels, np.float32))
        self.bias = _bias(channels)
        self.running_mean = Buffer(np.zeros(channels, np.float32))
        self.running_var = Buffer(np.ones(channels, np.float32))
        self.eps, self.momentum, self.relu, self.frozen = eps, momentum, relu, frozen

    def forward(self, x: Input) -> Tensor:
        options = {"eps": self.eps, "relu": self.relu}
        if self.frozen or not self.training:
            options |= {"mean": self.running_mean.data, "var": self.running_var.data}
            return functional.batch_norm(x, self.weight, self.bias, **options)[0]
        y, mean, var = functional.batch_norm(x, self.weight, self.bias, **options)
        count = y.data.size // y.shape[-1]
        move_average(self.running_mean.data, mean, momentum=self.momentum)
        unbiased = count / max(count - 1, 1)
        move_average(self.running_var.data, var, momentum=self.momentum, factor=unbiased)
        return y

    def describe(self) -> str:
        return f"{self.weight.shape[0]}" + (", relu" if self.relu else "") + (", frozen" if self.frozen else "")


class GroupNorm(Module):
    """Normalises each image's channels in groups: independent of the batch, alike in training and evaluation."""

    def __init__(self, groups: int, channels: int, *, eps: float = 1e-5):
        _check_channels("GroupNorm", channels, channels, groups)
        self.weight = Parameter(np.ones(channels, np.float32))
        self.bias = _bias(channels)
        self.groups, self.eps = groups, eps

    def forward(self, x: Input) -> Tensor:
        return functional.group_norm(x, self.weight, self.bias, groups=self.groups, eps=self.eps)

    def describe(self) -> str:
        return f"{self.weight.shape[0]} in {self.groups} groups"


class LocalResponseNorm(Module):
    """Divides each channel by the energy of its neighbour channels (AlexNet, GoogLeNet)."""

    def __init__(self, size: int = 5, *, alpha: float = 1e-4, beta: float = 0.75, k: float = 1.0):
        self.options = {"size": size, "alpha": alpha, "beta": beta, "k": k}

    def forward(self, x: Input) -> Tensor:
        return functional.local_response_norm(x, **self.options)

    def describe(self) -> str:
        return ", ".join(f"{name}={value}" for name, value in self.options.items())


# ------------------------------------------------------------------------------------------ pooling and resizing


class MaxPool2d(Module):
    """The largest element of each window. `stride` is the kernel's size if not given."""

    def __init__(
        self, kernel: Pair, *, stride: Pair | None = None, padding: PaddingLike = 0, ceil_mode: bool = False
    ):
        self.kernel = kernel
        self.options = {"stride": stride, "padding": padding, "ceil_mode": ceil_mode}

    def forward(self, x: Input) -> Tensor:
        return functional.max_pool2d(x, self.kernel, **self.options)

    def describe(self) -> str:
        return f"kernel {self.kernel}, " + ", ".join(f"{name}={value}" for name, value in self.options.items())


class AvgPool2d(Module):
    """The mean of each window. `stride` is the kernel's size if not given."""

    def __init__(
        self,
        kernel: Pair,
        *,
        stride: Pair | None = None,
        padding: PaddingLike = 0,
        ceil_mode: bool = False,
        count_include_pad: bool = True,
    ):
        self.kernel = kernel
        self.options = {
            "stride": stride,
            "padding": padding,
            "ceil_mode": ceil_mode,
            "count_include_pad": count_include_pad,
        }

    def forward(self, x: Input) -> Tensor:
        return functional.avg_pool2d(x, self.kernel, **self.options)

    def describe(self) -> str:
        return f"kernel {self.kernel}, " + ", ".join(f"{name}={value}" for name, value in self.options.items())


class AdaptiveAvgPool2d(Module):
    """Means over a grid of `size` bins that cover the image."""

    def __init__(self, size: Pair):
        self.size = size

    def forward(self, x: Input) -> Tensor:
        return functional.adaptive_avg_pool2d(x, self.size)

    def describe(self) -> str:
        return f"{self.size}"


class AdaptiveMaxPool2d(Module):
    """Maxima over a grid of `size` bins that cover the image."""

    def __init__(self, size: Pair):
        self.size = size

    def forward(self, x: Input) -> Tensor:
        return functional.adaptive_max_pool2d(x, self.size)

    def describe(self) -> str:
        return f"{self.size}"


class GlobalAvgPool2d(Module):
    """The mean over the image, (N, H, W, C) -> (N, 1, 1, C)."""

    def forward(self, x: Input) -> Tensor:
        return functional.global_avg_pool2d(x)


class Resize(Module):
    """Change height and width by the factor `scale`."""

    def __init__(self, scale: float | tuple[float, float], *, mode: str = "bilinear", align_corners: bool = False):
        self.scale = scale
        self.options = {"mode": mode, "align_corners": align_corners}

    def forward(self, x: Input) -> Tensor:
        return functional.resize(x, scale=self.scale, **self.options)

    def describe(self) -> str:
        return f"x{self.scale}, " + ", ".join(f"{name}={value}" for name, value in self.options.items())


# --------------------------------------------------------------------------------- element by element, and dropout


class ReLU(Module):
    """max(x, 0)."""

    def forward(self, x: Input) -> Tensor:
        return functional.relu(x)


class LeakyReLU(Module):
    """x where positive, slope * x elsewhere."""

    def __init__(self, slope: float = 0.01):
        self.slope = slope

    def forward(self, x: Input) -> Tensor:
        return functional.leaky_relu(x, slope=self.slope)

    def describe(self) -> str:
        return f"slope {self.slope}"


class Sigmoid(Module):
    """1 / (1 + exp(-x))."""

    def forward(self, x: Input) -> Tensor:
        return functional.sigmoid(x)


class Tanh(Module):
    """The hyperbolic tangent."""

    def forward(self, x: Input) -> Tensor:
        return functional.tanh(x)


class Dropout(Module):
    """In training, sets elements to zero at random, and scales the others so that the mean stays.

    With `channels` it decides for whole channels of an image instead of single elements.

    The mask is a function of `seed`, drawn once from `rng`, and of the number of calls in training so far. Both
    are buffers: they travel in the state dict, and a resumed run draws the masks that the first one would have.
    """

    def __init__(self, rate: float = 0.5, *, channels: bool = False, rng: Random = None):
        if not 0 <= rate < 1:
            raise ValueError(f"Dropout: rate must be in [0, 1), got {rate}; it is the share of elements dropped")
        if rng is None:
            raise TypeError(
                "Dropout draws random masks: pass rng=np.random.default_rng(seed) to the layer or model"
            )
        self.rate, self.channels = rate, channels
        self.seed = Buffer(np.array(rng.integers(2**63), np.int64), on_host=True)
        self.calls = Buffer(np.array(0, np.int64))

    def forward(self, x: Input) -> Input:
        if not self.training or self.rate == 0:
            return x
        draw = {"seed": int(self.seed.data), "offset": next_offset(self.calls.data)}
        return functional.dropout(x, rate=self.rate, channels=self.channels, **draw)

    def describe(self) -> str:
        return f"{self.rate}" + (", whole channels" if self.channels else "")


class Identity(Module):
    """Returns its input: a place that another setting fills."""

    def forward(self, x: Input) -> Input:
        return x

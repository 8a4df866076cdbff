"""Operators: pairs of pure functions, arrays in and arrays out.

    y, cache = ops.<name>(arrays..., options as keywords)
    gradients = ops.<name>_backward(dy, cache)

The backward function returns the gradients in the order of the array arguments: a bare array where there is one,
a tuple otherwise. Where it is a tuple, `need=(True, False, ...)` skips gradients that nobody wants, and `None`
stands in their place. Images are `N H W C`, convolution weights `R S C O`; float32 and float64.
"""

from tinyseg.ops.adaptive_pool2d import (
    adaptive_avg_pool2d,
    adaptive_avg_pool2d_backward,
    adaptive_max_pool2d,
    adaptive_max_pool2d_backward,
    global_avg_pool2d,
    global_avg_pool2d_backward,
    global_max_pool2d,
    global_max_pool2d_backward,
)
from tinyseg.ops.arithmetic import add, add_backward, mul, mul_backward
from tinyseg.ops.avg_pool2d import avg_pool2d, avg_pool2d_backward
from tinyseg.ops.balanced_edge_loss import balanced_edge_loss, balanced_edge_loss_backward
from tinyseg.ops.batch_norm import batch_norm, batch_norm_backward
from tinyseg.ops.bce_with_logits import bce_with_logits, bce_with_logits_backward
from tinyseg.ops.cast import cast, cast_backward
from tinyseg.ops.concat import concat, concat_backward, slice, slice_backward
from tinyseg.ops.conv2d import conv2d, conv2d_backward
from tinyseg.ops.conv_transpose2d import conv_transpose2d, conv_transpose2d_backward
from tinyseg.ops.cross_entropy import cross_entropy, cross_entropy_backward
from tinyseg.ops.dice import dice, dice_backward
from tinyseg.ops.dropout import dropout, dropout_backward
from tinyseg.ops.dual_task_loss import dual_task_loss, dual_task_loss_backward
from tinyseg.ops.encoding import encoding, encoding_backward
from tinyseg.ops.group_norm import group_norm, group_norm_backward
from tinyseg.ops.gumbel_softmax import gumbel_softmax, gumbel_softmax_backward
from tinyseg.ops.linear import linear, linear_backward
from tinyseg.ops.local_response_norm import local_response_norm, local_response_norm_backward
from tinyseg.ops.max_pool2d import max_pool2d, max_pool2d_backward, max_unpool2d, max_unpool2d_backward
from tinyseg.ops.pad import crop, crop_backward, pad, pad_backward
from tinyseg.ops.relu import leaky_relu, leaky_relu_backward, relu, relu_backward
from tinyseg.ops.reshape import reshape, reshape_backward
from tinyseg.ops.resize import resize, resize_backward
from tinyseg.ops.sigmoid import sigmoid, sigmoid_backward, tanh, tanh_backward
from tinyseg.ops.softmax import log_softmax, log_softmax_backward, softmax, softmax_backward
from tinyseg.ops.spatial_gradient import (
    gaussian_blur,
    gaussian_blur_backward,
    gradient_magnitude,
    gradient_magnitude_backward,
    spatial_gradient,
    spatial_gradient_backward,
)

__all__ = [
    "adaptive_avg_pool2d",
    "adaptive_avg_pool2d_backward",
    "adaptive_max_pool2d",
    "adaptive_max_pool2d_backward",
    "add",
    "add_backward",
    "avg_pool2d",
    "avg_pool2d_backward",
    "balanced_edge_loss",
    "balanced_edge_loss_backward",
    "batch_norm",
    "batch_norm_backward",
    "bce_with_logits",
    "bce_with_logits_backward",
    "cast",
    "cast_backward",
    "concat",
    "concat_backward",
    "conv2d",
    "conv2d_backward",
    "conv_transpose2d",
    "conv_transpose2d_backward",
    "crop",
    "crop_backward",
    "cross_entropy",
    "cross_entropy_backward",
    "dice",
    "dice_backward",
    "dropout",
    "dropout_backward",
    "dual_task_loss",
    "dual_task_loss_backward",
    "encoding",
    "encoding_backward",
    "gaussian_blur",
    "gaussian_blur_backward",
    "global_avg_pool2d",
    "global_avg_pool2d_backward",
    "global_max_pool2d",
    "global_max_pool2d_backward",
    "gradient_magnitude",
    "gradient_magnitude_backward",
    "group_norm",
    "group_norm_backward",
    "gumbel_softmax",
    "gumbel_softmax_backward",
    "leaky_relu",
    "leaky_relu_backward",
    "linear",
    "linear_backward",
    "local_response_norm",
    "local_response_norm_backward",
    "log_softmax",
    "log_softmax_backward",
    "max_pool2d",
    "max_pool2d_backward",
    "max_unpool2d",
    "max_unpool2d_backward",
    "mul",
    "mul_backward",
    "pad",
    "pad_backward",
    "relu",
    "relu_backward",
    "reshape",
    "reshape_backward",
    "resize",
    "resize_backward",
    "sigmoid",
    "sigmoid_backward",
    "slice",
    "slice_backward",
    "softmax",
    "softmax_backward",
    "spatial_gradient",
    "spatial_gradient_backward",
    "tanh",
    "tanh_backward",
]

"""Operators: pairs of pure functions, arrays in and arrays out.

    y, cache = ops.<name>(arrays..., options as keywords)
    gradients = ops.<name>_backward(dy, cache)

The backward function returns the gradients in the order of the array arguments: a bare array where there is one,
a tuple otherwise. Where it is a tuple, `need=(True, False, ...)` skips gradients that nobody wants, and `None`
stands in their place. Images are `N H W C`, convolution weights `R S C O`; float32 and float64.
"""

from tinyseg.ops.relu import leaky_relu, leaky_relu_backward, relu, relu_backward

__all__ = [
    "leaky_relu",
    "leaky_relu_backward",
    "relu",
    "relu_backward",
]

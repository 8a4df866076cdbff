"""Argument checks that every operator shares. Each error names the operator, the argument and the remedy."""

from collections.abc import Sequence

import numpy as np

from tinyseg.backend import Array

FLOATS = (np.dtype(np.float32), np.dtype(np.float64))


def floating(operator: str, *, parameters: Sequence[str] = (), **arrays: Array | None) -> None:
    """All arrays are float32, or all are float64, and none is empty. `None` (an absent bias) passes.

    Arrays on a GPU may all be bfloat16, but for those that `parameters` names: they are float32 then.
    """
    present = {name: array for name, array in arrays.items() if array is not None}
    for name, array in present.items():
        if not hasattr(array, "dtype") or not hasattr(array, "shape"):
            raise TypeError(f"{operator}: {name} must be an array, got {type(array).__name__}")
        if array.dtype not in FLOATS and (name in parameters or not _is_bfloat16(array)):
            raise TypeError(
                f"{operator}: {name} must be float32 or float64, got {array.dtype}; "
                f"convert it with {name}.astype('float32')"
            )
        if array.size == 0:
            raise ValueError(
                f"{operator}: {name} is empty, its shape is {array.shape}; every axis needs length 1 or more"
            )
    decisive = [array for name, array in present.items() if name not in parameters] or [*present.values()]
    for name, array in present.items():
        lowered = name in parameters and _is_bfloat16(decisive[0])
        if array.dtype != (FLOATS[0] if lowered else decisive[0].dtype):
            listing = ", ".join(f"{name} is {array.dtype}" for name, array in present.items())
            raise TypeError(f"{operator}: all arrays must have one type, but {listing}; convert them to one")


def _is_bfloat16(array: Array) -> bool:
    return array.dtype not in FLOATS and array.dtype.name == "bfloat16" and not isinstance(array, np.ndarray)


def rank(operator: str, name: str, array: Array, axes: str) -> None:
    """The array has one axis for each word in `axes`, for instance "N H W C"."""
    if array.ndim != len(axes.split()):
        raise ValueError(
            f"{operator}: {name} must have the axes ({', '.join(axes.split())}), got shape {array.shape}"
        )


def shape(operator: str, name: str, array: Array, expected: Sequence[int], why: str = "") -> None:
    """The array has exactly this shape. `why` says in words what the shape follows from."""
    if tuple(array.shape) != tuple(expected):
        reason = f" ({why})" if why else ""
        raise ValueError(f"{operator}: {name} must have shape {tuple(expected)}{reason}, got {tuple(array.shape)}")


def upstream(operator: str, dy: Array, y_shape: Sequence[int], dtype: np.dtype) -> None:
    """The upstream gradient of a backward pass: the shape and type of the forward pass's result."""
    floating(operator, dy=dy)
    shape(operator, "dy", dy, y_shape, "that of the forward pass's result y")
    if dy.dtype != dtype:
        raise TypeError(f"{operator}: dy must be {dtype} like the forward pass's arrays, got {dy.dtype}")

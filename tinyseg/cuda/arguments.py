"""What a launch looks at before it hands an argument to a kernel.

There are thousands of arguments in a training step, so what is known of a parameter is worked out once.
"""

from collections.abc import Callable
from typing import Any

import numpy as np

from tinyseg.cuda.device import Device
from tinyseg.cuda.signature import Parameter

ALIGNMENT = 16  # bytes: what one memory operation moves at most

Check = Callable[[Device, Any], Any]
"""From the device and an argument to the argument as the device takes it, or an error that names it."""


def check_of(kernel: str, parameter: Parameter, dtype: np.dtype) -> Check:
    """The check of a kernel's parameter, which is a number of this type or points to such."""
    where = f"{kernel}: {parameter.name}"
    if parameter.is_pointer:
        return _array_check(where, dtype)
    return _integer_check(where, dtype) if dtype.kind in "iu" else _number_check(where, dtype)


def _array_check(where: str, dtype: np.dtype) -> Check:
    def check(device: Device, argument: Any) -> Any:
        if argument is None:
            return None
        if not device.owns(argument):
            kind = "a NumPy array" if isinstance(argument, np.ndarray) else type(argument).__name__
            raise TypeError(f"{where} must be an array on the GPU, got {kind}; use tinyseg.cuda.to_device")
        if argument.dtype != dtype:
            raise TypeError(f"{where} must be {dtype}, got {argument.dtype}")
        if not argument.flags.c_contiguous:
            raise ValueError(f"{where} must be C-contiguous; pass it through tinyseg.cuda.contiguous")
        if device.address(argument) % ALIGNMENT:
            raise ValueError(f"{where} begins between 16-byte boundaries; pass it through tinyseg.cuda.contiguous")
        return argument

    return check


def _number_check(where: str, dtype: np.dtype) -> Check:
    def check(_: Device, argument: Any) -> Any:
        _refuse_arrays(where, argument)
        return dtype.type(argument)

    return check


def _integer_check(where: str, dtype: np.dtype) -> Check:
    limits = np.iinfo(dtype)
    lowest, highest = int(limits.min), int(limits.max)

    def check(_: Device, argument: Any) -> Any:
        _refuse_arrays(where, argument)
        whole = int(argument)
        if whole != argument or not lowest <= whole <= highest:
            raise OverflowError(
                f"{where} = {argument} does not fit into {dtype}: the arrays are too large for this kernel"
            )
        return dtype.type(whole)

    return check


def _refuse_arrays(where: str, argument: Any) -> None:
    if getattr(argument, "shape", ()) != ():
        raise TypeError(f"{where} must be a number, got an array of shape {argument.shape}")

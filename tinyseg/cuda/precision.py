"""How exactly matrix products on tensor cores multiply."""

import contextlib
from collections.abc import Iterator
from contextvars import ContextVar

_tf32: ContextVar[bool] = ContextVar("tinyseg_cuda_tf32", default=False)


@contextlib.contextmanager
def allow_tf32(allowed: bool = True) -> Iterator[None]:
    """Inside the `with` block, convolutions of float32 arrays may round what they multiply to three digits.

    TF32 has float's range and 10 bits of mantissa. It takes a third of the multiplications of the default, which
    is as accurate as float32. It holds for the backward passes that run inside the block.
    """
    token = _tf32.set(allowed)
    try:
        yield
    finally:
        _tf32.reset(token)


def tf32_is_allowed() -> bool:
    return _tf32.get()

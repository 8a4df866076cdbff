"""The errors of this package. Their messages say what to install or to change."""


class CudaError(RuntimeError):
    """Kernels cannot be compiled or run on this machine."""


class OutOfMemory(CudaError, MemoryError):
    """The GPU's memory is full."""

"""tinyseg: semantic segmentation that you can read.

    from tinyseg import ops                       # pairs of pure functions: y, cache = ops.conv2d(x, w, b)
    from tinyseg.gradcheck import check_vjp       # is a gradient right?
    from tinyseg import models, nn, functional    # networks on a small tape

Importing it loads NumPy alone; Numba, SciPy, Pillow, Matplotlib and CuPy are loaded where they are first used.
"""

from tinyseg.backend import use

__version__ = "0.1.0"

__all__ = ["__version__", "use"]

"""Which implementation runs, and what importing the package loads."""

import subprocess
import sys
import types

import numpy as np
import pytest

import tinyseg
from tinyseg import backend, ops


def test_the_array_decides_and_use_overrides():
    x = np.zeros(3)
    assert backend.name_for(x) == "numba"
    with tinyseg.use("numpy"):
        assert backend.name_for(x) == "numpy"
        with tinyseg.use("numba"):
            assert backend.name_for(x) == "numba"
        assert backend.name_for(x) == "numpy"
    assert backend.name_for(x) == "numba"


def test_use_refuses_an_unknown_backend():
    with (
        pytest.raises(ValueError, match=r"unknown backend 'cuda'; choose 'numpy', 'numba' or 'cupy'"),
        tinyseg.use("cuda"),
    ):
        pass


def test_a_missing_cuda_kernel_is_an_error_and_never_slow():
    def forward(x):
        return x

    forward.__module__ = "tinyseg.ops.example"
    with tinyseg.use("cupy"), pytest.raises(backend.MissingKernel, match="example has no CUDA kernel"):
        backend.choose(np.zeros(3), numpy=forward, numba=forward)


def test_without_numba_the_reference_runs(monkeypatch):
    monkeypatch.setattr(backend, "numba_is_installed", lambda: False)
    assert backend.name_for(np.zeros(3)) == "numpy"
    with pytest.raises(ModuleNotFoundError, match="pip install numba"), tinyseg.use("numba"):
        pass


def test_import_loads_numpy_alone():
    """The package and its pure parts must not pull in what is only needed later."""
    heavy = ["numba", "scipy", "PIL", "matplotlib", "cupy", "typer", "rich", "safetensors", "torch"]
    code = (
        "import sys, tinyseg\n"
        "from tinyseg import functional, gradcheck, metrics, models, nn, ops, optim, tape\n"
        f"print([name for name in {heavy} if name in sys.modules])"
    )
    loaded = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout
    assert loaded.strip() == "[]"


@backend.kernel
def _sum_of_squares(x, out):
    for i in backend.prange(len(x)):
        out[i] = _square(x[i])


@backend.kernel(inline=True)
def _square(value):
    return value * value


def test_a_kernel_is_its_plain_function_compiled(monkeypatch):
    x, out = np.arange(5.0), np.empty(5)
    monkeypatch.setitem(_sum_of_squares.function.__globals__, "prange", range)
    _sum_of_squares.function(x, out)  # in plain Python, for reading and debugging
    assert out.tolist() == [0, 1, 4, 9, 16]


IN_ONE_FILE = {
    "adaptive_pool2d": ["adaptive_avg_pool2d", "adaptive_max_pool2d", "global_avg_pool2d", "global_max_pool2d"],
    "arithmetic": ["add", "mul"],
    "concat": ["slice"],
    "max_pool2d": ["max_unpool2d"],
    "implicit_gemm": ["conv2d", "conv_transpose2d", "linear"],
    "relu": ["leaky_relu"],
    "separable": ["crop", "gaussian_blur", "pad", "resize", "spatial_gradient"],
    "sigmoid": ["tanh"],
    "softmax": ["log_softmax"],
    "spatial_gradient": ["gradient_magnitude"],
}
"""Operators whose kernels are in the file of another."""

WITHOUT_KERNEL = {"cast", "reshape"}  # they need those of tinyseg/cuda/arrays.cu


def test_every_operator_has_a_cuda_kernel():
    from pathlib import Path

    folder = Path(ops.__file__).parent
    have = {path.stem for path in folder.rglob("*.cu")}
    operators = {
        name
        for name in ops.__all__
        if not name.endswith("_backward") and isinstance(getattr(ops, name), types.FunctionType)
    }
    have |= {operator for file, operators in IN_ONE_FILE.items() if file in have for operator in operators}
    assert operators - have == WITHOUT_KERNEL

"""The benchmark of the CRF on a GPU: what it measures is right, seen on a small picture."""

import numpy as np
import pytest

from benchmarks import crf_gpu
from tinyseg import cuda


@pytest.fixture
def problem(rng):
    image = crf_gpu.picture(24, 30)
    return image, rng.uniform(0, 3, (24 * 30, 21)).astype(np.float32)


def measure(problem, setting):
    image, unary = problem
    return crf_gpu.measure(image, unary, crf_gpu.SETTINGS[setting], rounds=1)


def test_a_row(host, problem):
    with cuda.on(host()):
        row = measure(problem, 0)
    assert row["agreement"] >= 0.999
    assert row["ratio"] == row["pydensecrf"]["median"] / row["tinyseg"]["median"]
    assert row["met"] == (row["ratio"] >= 100)
    assert row["name"] in crf_gpu.line(row)


def test_there_is_a_row_for_each_setting(problem):
    assert [identity["name"] for identity, _ in crf_gpu.rows(*problem)] == [
        "dense CRF, 3/80/13",
        "dense CRF, 3/49/5",
        "dense CRF, 1/67/3",
    ]


def test_wrong_labels_are_not_timed(host, problem, monkeypatch):
    right = crf_gpu.OnGpu.whole
    monkeypatch.setattr(
        crf_gpu.OnGpu, "whole", lambda self: cuda.to_device(cuda.to_host(right(self))[:, ::-1].copy())
    )
    with cuda.on(host()), pytest.raises(AssertionError, match="of the labels are those of the CPU"):
        measure(problem, 1)


def test_it_says_what_is_missing(monkeypatch):
    monkeypatch.setattr(crf_gpu.machine, "problem", lambda: "there is no driver")
    with pytest.raises(SystemExit, match="the benchmark needs a GPU: there is no driver"):
        crf_gpu.main([])

"""What all tests share: the backends, random arrays, the folder of real images, and the oracles."""

import os
import sys
from pathlib import Path

import hypothesis
import numpy as np
import pytest

import tinyseg

# Tests call many small kernels, often from several processes: idle threads sleep instead of spinning.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

hypothesis.settings.register_profile("default", deadline=None, derandomize=True, print_blob=True)
hypothesis.settings.register_profile("explore", deadline=None, max_examples=1000)
hypothesis.settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "default"))


def pytest_addoption(parser):
    parser.addoption("--require-gpu", action="store_true", help="fail, and do not skip, where a GPU is missing")


@pytest.fixture(params=["numpy", "numba"])
def backend(request):
    """Runs the test once for each implementation of the operators, and says which one it is."""
    with tinyseg.use(request.param):
        yield request.param


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(20150518)


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder of real data sets: TINYSEG_DATA, or `shared/data` beside the checkout."""
    root = Path(__file__).resolve().parents[1]
    folder = Path(os.environ.get("TINYSEG_DATA", root.parent / "shared" / "data"))
    if not folder.is_dir():
        pytest.skip(f"no real images at {folder}; set TINYSEG_DATA to their folder")
    return folder


@pytest.fixture(scope="session")
def torch():
    """PyTorch on the CPU, the oracle of most operators; its tests are skipped where it is missing."""
    return pytest.importorskip("torch", reason="PyTorch is the oracle of this test: pip install torch")


@pytest.fixture(scope="session")
def torchvision(torch):
    """torchvision's networks, an oracle too. They need none of its compiled operators, so a build will do whose
    compiled part is for another PyTorch."""
    pytest.importorskip("PIL", reason="torchvision needs Pillow")
    try:
        import torchvision
    except ImportError:
        pytest.skip("torchvision is the oracle of this test: pip install --no-deps torchvision")
    except RuntimeError:
        for name in [name for name in sys.modules if name.startswith("torchvision")]:
            del sys.modules[name]
        library = torch.library.Library("torchvision", "DEF")
        for operator in ("nms", "qnms"):
            library.define(f"{operator}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        import torchvision

        torchvision.declared = library  # it lives as long as the module
    return torchvision

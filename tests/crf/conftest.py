"""What the CRF's tests share: small images, unary energies, and pydensecrf as an oracle."""

import numpy as np
import pytest


@pytest.fixture(scope="session")
def pydensecrf():
    """pydensecrf.densecrf, the rival and oracle; its tests are skipped where it is missing."""
    return pytest.importorskip(
        "pydensecrf.densecrf",
        reason="pydensecrf is the oracle of this test; tinyseg.crf.original says how to build it",
        exc_type=ImportError,
    )


@pytest.fixture
def toy():
    """An image (24, 20, 3) of two noisy shapes, and noisy probabilities (24, 20, 3) of its three labels."""
    return make_toy(np.random.default_rng(0), 24, 20)


def make_toy(rng, height, width):
    y, x = np.mgrid[:height, :width]
    labels = np.zeros((height, width), int)
    labels[(y - 0.4 * height) ** 2 + (x - 0.35 * width) ** 2 < (0.3 * width) ** 2] = 1
    labels[(y > 0.6 * height) & (x > 0.5 * width)] = 2
    colours = np.array([[60, 90, 150], [190, 80, 60], [80, 170, 90]])
    image = np.clip(colours[labels] + rng.normal(0, 12, (height, width, 3)), 0, 255).astype(np.uint8)
    logits = 1.5 * np.eye(3)[labels] + rng.normal(0, 1, (height, width, 3))
    probabilities = np.exp(logits) / np.exp(logits).sum(axis=2, keepdims=True)
    return image, probabilities.astype(np.float32)

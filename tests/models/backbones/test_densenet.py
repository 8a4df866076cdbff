"""DenseNet-121 against torchvision."""

import numpy as np
import pytest

from tinyseg.models import backbones
from tinyseg.models.summary import sketch
from tinyseg.tape import no_grad


@pytest.mark.oracle
def test_same_logits_as_torchvision(torch, torchvision, random_statistics, carry_weights, channels_first):
    theirs = random_statistics(torchvision.models.densenet121(num_classes=10)).eval()
    ours = carry_weights(theirs, sketch(backbones.create, "densenet121", classes=10)).eval()
    x = np.random.default_rng(4).standard_normal((2, 64, 79, 3)).astype(np.float32)
    with torch.no_grad(), no_grad():
        expected, logits = theirs(channels_first(x)).numpy(), ours(x).data
        features = theirs.features(channels_first(x)).relu().numpy()
        last = ours.stages(x)["denseblock4"].data.transpose(0, 3, 1, 2)
    np.testing.assert_allclose(logits, expected, atol=1e-4 * np.abs(expected).max())
    np.testing.assert_allclose(last, features, atol=1e-4 * np.abs(features).max())

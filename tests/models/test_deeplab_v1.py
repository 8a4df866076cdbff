"""DeepLab v1: the sizes of its figure, and the branches of its multi-scale form."""

import numpy as np
import pytest

from tinyseg import models
from tinyseg.models.deeplab_v1 import DeepLabV1
from tinyseg.models.summary import sketch, summarise


def small(**settings):
    return DeepLabV1(2, 3, rng=np.random.default_rng(1), **{"width": 1 / 32} | settings)


def test_sizes_of_the_figure():
    rows = summarise(sketch(models.create, "deeplab_v1_largefov"), 321, 321)
    sides = [row.size[0] for row in rows if "pool" in row.operator]
    assert sides == [161, 81, 41, 41, 41, 41]
    assert rows[-1].size == (321, 321, 21)


@pytest.mark.parametrize(("kernel", "rate"), [(7, 4), (4, 4), (4, 8), (3, 12)])
def test_all_windows_keep_the_size(kernel, rate):
    net = small(fc6_kernel=kernel, fc6_rate=rate)
    assert net.scores(np.zeros((1, 65, 49, 2), np.float32)).shape == (1, 9, 7, 3)


def test_branches_make_the_figures_map_of_each_source():
    rows = summarise(sketch(models.create, "deeplab_v1_msc"), 321, 321)
    assert [row.size for row in rows if row.layer.startswith("branches") and "conv" in row.operator] == [
        (41, 41, 128)
    ] * 10


def test_only_the_branches_and_fc8_learn_in_the_second_stage():
    net = sketch(models.create, "deeplab_v1_msc")
    net.train_only_branches()
    assert net.num_parameters() == 1_192_576 + (1024 + 640) * 21 + 21
    learned = {name.rsplit(".", 2)[0] for name, parameter in net.named_parameters() if parameter.requires_grad}
    assert learned == {f"branches.{index}" for index in range(5)} | {"fully_connected"}


def test_the_first_network_is_what_the_branches_are_added_to():
    """With fc8's weights for the branches at 0, the multi-scale network is the plain one."""
    plain, both = small().eval(), small(multi_scale=True).eval()
    state = both.state_dict() | {name: value for name, value in plain.state_dict().items() if "fc8.w" not in name}
    weight = np.zeros_like(state["fully_connected.fc8.weight"])
    fc7 = plain.fully_connected.fc8.weight.data.shape[2]
    weight[:, :, :fc7] = plain.fully_connected.fc8.weight.data
    both.load_state_dict(state | {"fully_connected.fc8.weight": weight})
    image = np.random.default_rng(0).standard_normal((1, 41, 30, 2)).astype(np.float32)
    np.testing.assert_allclose(both(image).data, plain(image).data, rtol=1e-5, atol=1e-7)


def test_errors():
    with pytest.raises(ValueError, match="a kernel with an even side needs an even rate"):
        small(fc6_kernel=4, fc6_rate=3)
    with pytest.raises(ValueError, match="make the network with multi_scale=True"):
        small().train_only_branches()
    with pytest.raises(ValueError, match="width must be positive"):
        small(width=0)

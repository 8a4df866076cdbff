"""What the tests of the backbones share: weights carried from torchvision to here."""

import numpy as np
import pytest


@pytest.fixture
def random_statistics(torch):
    """Gives the normalisations of a torch network scales, shifts and running moments that are not 1 and 0."""

    def draw(network):
        generator = torch.Generator().manual_seed(1)
        with torch.no_grad():
            for module in network.modules():
                if isinstance(module, torch.nn.BatchNorm2d):
                    for tensor in (module.weight, module.running_var):
                        tensor.uniform_(0.5, 1.5, generator=generator)
                    for tensor in (module.bias, module.running_mean):
                        tensor.normal_(0, 0.1, generator=generator)
        return network

    return draw


@pytest.fixture
def carry_weights():
    """carry_weights(theirs, ours, flattened={name: (h, w, c)}): load a torch network's state into one of ours.

    All names must be the same on both sides, but for the seeds of dropout here.

    flattened  layers that read a flattened map of h x w pixels and c channels, which torch counts channels first
    """

    def carry(theirs, ours, flattened=None):
        state = {}
        for name, tensor in theirs.state_dict().items():
            array = tensor.detach().numpy()
            if name.endswith("num_batches_tracked"):
                continue
            layer = name.removesuffix(".weight")
            if array.ndim == 4:
                array = array.transpose(2, 3, 1, 0)  # O C R S -> R S C O
            elif array.ndim == 2 and layer in (flattened or {}):
                h, w, c = flattened[layer]
                array = array.reshape(-1, c, h, w).transpose(2, 3, 1, 0).reshape(h * w * c, -1)
            elif array.ndim == 2:
                array = array.T
            state[name] = array
        own = ours.state_dict() if any("seed" in name for name, _ in ours.named_buffers()) else {}
        counters = {name: array for name, array in own.items() if name.rpartition(".")[2] in ("seed", "calls")}
        ours.load_state_dict(state | counters)
        return ours

    return carry


@pytest.fixture
def channels_first(torch):
    """An image batch for torch: N H W C -> N C H W."""
    return lambda x: torch.from_numpy(np.ascontiguousarray(x.transpose(0, 3, 1, 2)))

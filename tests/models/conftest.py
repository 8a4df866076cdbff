"""What the tests of all networks share: a gradient check of the whole network, and four images to learn."""

import time

import numpy as np
import pytest

from tinyseg import optim
from tinyseg.gradcheck import check_vjp
from tinyseg.metrics import ConfusionMatrix
from tinyseg.models.network import CrossEntropy, total
from tinyseg.tape import Tensor, no_grad


@pytest.fixture
def check_network_gradient():
    """check_network_gradient(network, (H, W)): a random upstream, a direction over the input, and one over all
    parameters together, in float64 and in the mode in which the network is."""
    return _check_network_gradient


def _check_network_gradient(network, size, *, batch=2, eps=1e-7, rtol=1e-4, seed=2):
    network.astype(np.float64)
    rng = np.random.default_rng(seed)
    parameters = [parameter for parameter in network.parameters() if parameter.requires_grad]
    for parameter in parameters:  # a bias of 0 or a scorer of zeros would put ReLUs on their kinks, or hide errors
        parameter.data = parameter.data + 0.1 * rng.standard_normal(parameter.shape)
    ends = np.cumsum([parameter.data.size for parameter in parameters])
    counters = [module.calls for module in network.modules() if hasattr(module, "calls")]

    def forward(image, values):
        for parameter, part in zip(parameters, np.split(values, ends[:-1]), strict=True):
            parameter.data, parameter.grad = part.reshape(parameter.shape), None
        for calls in counters:
            calls.data = np.zeros_like(calls.data)  # the same dropout masks each time
        image = Tensor(image, requires_grad=True)
        y = network(image)
        return y.data, (image, y)

    def backward(dy, _):
        image, y = forward(*inputs)[1]  # a tape serves once, and the checker asks twice
        y.backward(dy)
        assert all(parameter.grad is not None for parameter in parameters), "no gradient reached some parameters"
        return image.grad, np.concatenate([parameter.grad.reshape(-1) for parameter in parameters])

    image = rng.standard_normal((batch, *size, network.in_channels))
    values = np.concatenate([parameter.data.reshape(-1) for parameter in parameters])
    inputs = (image, values)
    # A step of 1e-7 meets few kinks of the many ReLUs; what it meets is within the tolerance.
    check_vjp(forward, backward, inputs, eps=eps, rtol=rtol)


# ---------------------------------------------------------------------------------------------- learning by heart

VOID = 11
SCENES = ("0001TP_007140", "0006R0_f01890", "0016E5_00630", "0016E5_08490")


@pytest.fixture
def learn_by_heart(real_data):
    """learn_by_heart(network, ...): train on four images of CamVid; the mean IoU on them, in evaluation mode.

    size, part  of each image, the middle `part` of its height and width is enlarged or shrunk to `size`
    lr, steps   of Adam, on all four images at once; a warm-up over 10 steps, then a cosine down to 0
    enough      the mean IoU at which it stops

    What stands in the way of a mean IoU of 0.95, and what is done about it:

    * The grid of the scores. With one score for 8 x 8 pixels and linear interpolation in between, even scores
      chosen freely, without any network, reach 0.90 for whole images of 193 x 257, since a pole is 1 or 2 pixels
      wide there; for the middle of 0.3 of the height and width it is 0.98. So networks with coarse scores learn
      the enlarged middle. The scenes are those among CamVid's in whose middle there is least that is thinner than
      a cell, and still each of the eleven classes.
    * The rarest class has a thousandth of the pixels. While frequent classes are learned, the cheapest answer at
      its pixels is to have all features before the last layer at zero; then their ReLUs let no gradient through,
      and the class is never learned. So a pixel weighs 1 / sqrt(share of its class) in the loss.
    * Dropout, which is off in these tests (but for the rate 0.1 of some heads), and running statistics of batch
      normalisation that lag behind the weights, which the falling learning rate cures.

    Seen on one thread of an EPYC core with AVX2 (pytest -m slow -s prints it), minutes of processor time:

        Plain, 6 layers of 32 channels            150 steps   1.4 minutes   0.958
        U-Net, 3 levels of 16 channels and more   100         0.6           0.956
        FCN-8s, VGG-16 / 8                        100         0.8           0.965
        FC-DenseNet, 3 layers a block              75         0.9           0.973
        DeepLab v1, VGG-16 / 8                    100         0.7           0.954
        DeepLab v2, VGG-16 / 8                     75         0.8           0.962
        DeepLab v2, ResNet-18 / 4                  50         0.4           0.969
        DeepLab v3, ResNet-18 / 4                  75         0.7           0.961
        DeepLab v3+, ResNet-18 / 4                 75         0.4           0.964
        DeepLab v3+, Xception-41 / 4               50         0.4           0.967
        torchvision's FCN, ResNet-18 / 4           75         0.6           0.958
        FastFCN, EncNet head, ResNet-18 / 4        75         0.5           0.950
        Gated-SCNN, ResNet-18 / 4                  75         0.9           0.952
    """

    def learn(network, *, size=(96, 128), part=1.0, **settings):
        return _learn_by_heart(network, *four_images(real_data, size, part), **settings)

    return learn


def four_images(real_data, size, part):
    """Images (4, H, W, 3), normalised, and labels (4, H, W), where 11 is void."""
    from tinyseg.data import CamVid
    from tinyseg.data.transforms import Normalise, Resize

    dataset = CamVid(real_data / "camvid", "train")
    resize, normalise, rng = Resize(size), Normalise(dataset.mean, dataset.std), np.random.default_rng(0)
    samples = []
    for index, pair in enumerate(dataset.pairs):
        if pair.name in SCENES:
            sample = dataset[index]
            rows, columns = (middle(side, part) for side in sample.image.shape[:2])
            sample = sample._replace(image=sample.image[rows, columns], mask=sample.mask[rows, columns])
            samples.append(normalise(resize(sample, rng), rng))
    assert len(samples) == len(SCENES)
    return np.stack([sample.image for sample in samples]), np.stack([sample.mask for sample in samples])


def middle(side, part):
    return slice(round(side * (1 - part) / 2), round(side * (1 + part) / 2))


def pixel_weights(labels):
    """1 / sqrt(share of its class) for each pixel, 0 for void."""
    counts = np.bincount(labels[labels != VOID], minlength=VOID + 1)
    of_class = np.sqrt(counts.sum() / np.maximum(counts, 1))
    of_class[VOID] = 0
    return of_class[labels]


def _learn_by_heart(network, images, labels, *, lr=2e-3, steps=200, enough=0.95, every=25):
    schedules = optim.schedules
    schedule = schedules.product(schedules.warm_up(10), schedules.cosine(steps))
    optimiser = optim.Adam(network.parameters(), lr=lr, schedule=schedule)
    pixel_loss, weights = CrossEntropy(VOID), pixel_weights(labels)
    began, score = time.process_time(), 0.0
    for step in range(1, steps + 1):
        optimiser.zero_grad()
        outputs = network.train().outputs(images)
        loss = total(network.losses(outputs, labels, pixel_loss, weights=weights, step=step))
        loss.backward()
        optimiser.step()
        if step % every == 0:
            score = _mean_iou(network, images, labels)
            print(f"step {step}: loss {float(loss.data):.4f}, mean IoU {score:.4f}", flush=True)
            if score >= enough:
                break
    minutes = (time.process_time() - began) / 60
    print(f"{type(network).__name__}: mean IoU {score:.4f} after {step} steps, {minutes:.1f} minutes", flush=True)
    return score


def _mean_iou(network, images, labels):
    confusion = ConfusionMatrix(VOID, ignore_label=VOID)
    network.eval()
    with no_grad():
        for image, label in zip(images, labels, strict=True):
            logits = network(image[None]).data
            confusion.update(label[None], logits.argmax(axis=-1))
    return confusion.mean_iou

"""A whole training step of a U-Net against PyTorch: forward, loss, backward, SGD with momentum.

Both networks are the padded batch-norm U-Net with the same weights, on the same images. Before the timing, the
logits of both are compared with those of PyTorch in float64.
"""

import subprocess
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn as tn
from torch.nn import functional as tf

from benchmarks import harness
from tinyseg import functional as F
from tinyseg import optim
from tinyseg.models.unet import UNet
from tinyseg.tape import Tensor

CLASSES = 21
LEARNING_RATE, MOMENTUM = 1e-3, 0.9
TOLERANCE = 1e-3  # of logits behind 18 layers of batch normalisation in float32


class TorchUNet(tn.Module):
    """The same network in PyTorch."""

    def __init__(self, base: int, depth: int):
        super().__init__()
        channels = [base * 2**level for level in range(depth + 1)]
        inputs = [3, *channels]
        self.contracting = tn.ModuleList(
            self.double_conv(inputs[level], channels[level]) for level in range(depth + 1)
        )
        self.up_conv = tn.ModuleList(
            tn.ConvTranspose2d(channels[level + 1], channels[level], 2, stride=2)
            for level in reversed(range(depth))
        )
        self.expansive = tn.ModuleList(
            self.double_conv(2 * channels[level], channels[level]) for level in reversed(range(depth))
        )
        self.classifier = tn.Conv2d(base, CLASSES, 1)

    @staticmethod
    def double_conv(inputs: int, outputs: int) -> tn.Sequential:
        return tn.Sequential(
            tn.Conv2d(inputs, outputs, 3, padding=1, bias=False),
            tn.BatchNorm2d(outputs),
            tn.ReLU(inplace=True),
            tn.Conv2d(outputs, outputs, 3, padding=1, bias=False),
            tn.BatchNorm2d(outputs),
            tn.ReLU(inplace=True),
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        copies = []
        for level, convs in enumerate(self.contracting):
            x = convs(x)
            if level < len(self.up_conv):
                copies.append(x)
                x = tf.max_pool2d(x, 2)
        for up_conv, convs in zip(self.up_conv, self.expansive, strict=True):
            x = convs(torch.cat([copies.pop(), up_conv(x)], dim=1))
        return self.classifier(x)

    def copy_weights(self, network: UNet) -> None:
        """Take the weights of our network; both list their parameters in the order of their layers."""
        theirs = {
            **{f"contracting.{i}": block for i, block in enumerate(self.contracting)},
            **{f"expansive.{i}": block for i, block in enumerate(self.expansive)},
        }
        ours = {
            **{f"contracting.{i}": block for i, block in enumerate(network.contracting)},
            **{f"expansive.{i}": block for i, block in enumerate(network.expansive)},
        }
        with torch.no_grad():
            for name, block in theirs.items():
                for index, conv in ((0, ours[name].conv1), (3, ours[name].conv2)):
                    block[index].weight.copy_(torch.from_numpy(conv.weight.data.transpose(3, 2, 0, 1)))
            for layer, conv in zip(
                [*self.up_conv, self.classifier], [*network.up_conv, network.classifier], strict=True
            ):
                layer.weight.copy_(torch.from_numpy(conv.weight.data.transpose(3, 2, 0, 1)))
                layer.bias.copy_(torch.from_numpy(conv.bias.data))


class OurStep:
    """A training step of tinyseg, as a function without arguments."""

    def __init__(self, base: int, depth: int, batch: int, side: int):
        self.network = UNet(3, CLASSES, base=base, depth=depth, variant="padded", rng=np.random.default_rng(0))
        self.images, self.labels = example(batch, side)
        self.optimiser = optim.SGD(self.network.parameters(), lr=LEARNING_RATE, momentum=MOMENTUM)

    def logits(self) -> np.ndarray:
        return self.network(self.images).data

    def make_gradients(self) -> Tensor:
        """Forward and backward. Returns the loss."""
        self.optimiser.zero_grad()
        loss = F.cross_entropy(self.network(self.images), self.labels)
        loss.backward()
        return loss

    def __call__(self) -> float:
        loss = self.make_gradients()
        self.optimiser.step()
        return float(loss.data)


class TorchStep:
    """The same step in PyTorch, with one of its memory formats."""

    def __init__(self, base: int, depth: int, batch: int, side: int, memory_format: torch.memory_format):
        images, labels = example(batch, side)
        self.network = TorchUNet(base, depth)
        self.network.copy_weights(OurStep(base, depth, batch, side).network)
        self.network.to(memory_format=memory_format)  # type: ignore[call-overload]
        self.images = torch.from_numpy(images.transpose(0, 3, 1, 2)).contiguous(memory_format=memory_format)
        self.labels = torch.from_numpy(labels)
        self.optimiser = torch.optim.SGD(self.network.parameters(), lr=LEARNING_RATE, momentum=MOMENTUM)

    def logits(self, dtype: torch.dtype = torch.float32) -> np.ndarray:
        network = self.network.to(dtype)
        result = network(self.images.to(dtype)).detach().numpy().transpose(0, 2, 3, 1)
        network.to(torch.float32)
        return result

    def make_gradients(self) -> torch.Tensor:
        self.optimiser.zero_grad()
        loss = tf.cross_entropy(self.network(self.images), self.labels)
        loss.backward()
        return loss

    def __call__(self) -> float:
        loss = self.make_gradients()
        self.optimiser.step()
        return loss.item()


FORMATS = {"contiguous": torch.contiguous_format, "channels last": torch.channels_last}


def example(batch: int, side: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(1)
    images = rng.standard_normal((batch, side, side, 3)).astype(np.float32)
    return images, rng.integers(0, CLASSES, (batch, side, side))


def measure(base: int, depth: int, batch: int, side: int) -> dict[str, Any]:
    """The row of one network: milliseconds of a step, errors, and the peak memory of a process that runs five."""
    what = f"U-Net, {base} channels, depth {depth}, batch {batch}, {side} x {side}"
    ours = OurStep(base, depth, batch, side)
    theirs = {name: TorchStep(base, depth, batch, side, value) for name, value in FORMATS.items()}
    exact = theirs["contiguous"].logits(torch.float64)
    errors = {"tinyseg": harness.require_close(what, "tinyseg", ours.logits(), exact, TOLERANCE)}
    errors["torch"] = max(
        harness.require_close(what, name, step.logits(), exact, TOLERANCE) for name, step in theirs.items()
    )
    timings = harness.alternate({"tinyseg": ours, **theirs}, bursts=5, seconds=2.0, pause=0.2)
    own = timings.pop("tinyseg")
    fastest = min(timings, key=lambda name: timings[name].median)
    setting = [str(value) for value in (base, depth, batch, side)]
    return {
        "name": what,
        "errors": errors,
        "tinyseg": asdict(own) | {"peak memory MB": peak_memory("tinyseg", setting)},
        "torch": asdict(timings[fastest])
        | {"memory format": fastest, "peak memory MB": peak_memory(fastest, setting)},
        "ratio": round(timings[fastest].median / own.median, 3),
    }


def peak_memory(who: str, setting: list[str]) -> int:
    """Peak resident memory, in MB, of a process of its own that runs five steps (Linux)."""
    command = [sys.executable, "-m", "benchmarks.training", who, *setting]
    return int(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


if __name__ == "__main__":
    who, *setting = sys.argv[1:]
    sizes = [int(value) for value in setting]
    step = OurStep(*sizes) if who == "tinyseg" else TorchStep(*sizes, FORMATS[who])
    for _ in range(5):
        step()
    # Not getrusage: its maximum begins with that of the process that started this one.
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    print(int(status["VmHWM"].split()[0]) // 1024)

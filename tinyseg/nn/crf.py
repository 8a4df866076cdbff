"""The dense CRF as a layer: `tinyseg.crf.layer` with its parameters."""

from typing import Literal

import numpy as np

from tinyseg import crf, cuda
from tinyseg import functional as F
from tinyseg.backend import Array
from tinyseg.crf import Parameters
from tinyseg.crf.layer import Method
from tinyseg.functional import Input
from tinyseg.nn.module import Buffer, Module, Parameter
from tinyseg.tape import Tensor


class CRFRNN(Module):
    """Mean field in a dense CRF, unrolled: logits (N, H, W, classes) and images (N, H, W, C) -> logits.

    Each iteration filters the marginals with two kernels, mixes what they say about each label, and adds that to
    the logits; smoothness sees positions alone, appearance positions and colours:

        Q = softmax(X)          X  <-  logits - compatibility (smoothness_weight F_s Q + appearance_weight F_a Q)

    smoothness_weight and appearance_weight are learned, (classes, classes) with weights="full" as published, or
    (classes,), one number for each label, with "diagonal". compatibility is learned, (classes, classes): it starts
    as -1 times the identity, agreement is rewarded. The weights start on the diagonal with the numbers of `start`,
    and so the layer starts as the dense CRF with the Potts model and the parameters `start`.

    classes           how many labels
    start             a preset of `tinyseg.crf.PRESETS` by name, or `Parameters`; its normalisation and bandwidths,
                      one number each, are used, its iterations are those in evaluation
    iterations        in training. More cost more, and make the gradients of the first ones vanish
    learn_bandwidths  also learn s_g, s_a and s_b, by their logarithms: the parameter log_bandwidths; otherwise it
                      is a buffer. It makes the backward pass some ten times slower
    method            "lattice", "local" (within a window), or "exact" for images of some thousand pixels

    Images hold colours 0 to 255. In evaluation without a tape the logits are logarithms of the marginals.
    """

    def __init__(
        self,
        classes: int,
        *,
        start: str | Parameters = "crf_rnn",
        iterations: int = 5,
        weights: Literal["full", "diagonal"] = "full",
        learn_bandwidths: bool = False,
        method: Method = "lattice",
    ):
        if classes < 1 or iterations < 1:
            raise ValueError(
                f"CRFRNN: classes and iterations must be at least 1, got classes={classes} and "
                f"iterations={iterations}"
            )
        if weights not in ("full", "diagonal"):
            raise ValueError(f"CRFRNN: weights must be 'full' or 'diagonal', got {weights!r}")
        chosen = crf.parameters(start)
        bandwidths = [chosen.smoothness_position, chosen.appearance_position, chosen.appearance_colour]
        if any(np.ndim(bandwidth) for bandwidth in bandwidths):
            raise ValueError(f"CRFRNN: each bandwidth must be one number, got {bandwidths}")
        if chosen.iterations < 1:
            raise ValueError("CRFRNN: the iterations of `start` must be 1 or more, got 0")

        form = np.ones(classes, np.float32) if weights == "diagonal" else np.eye(classes, dtype=np.float32)
        self.smoothness_weight = Parameter(np.float32(chosen.smoothness_weight) * form)
        self.appearance_weight = Parameter(np.float32(chosen.appearance_weight) * form)
        self.compatibility = Parameter(-np.eye(classes, dtype=np.float32))
        log_bandwidths = np.log(np.asarray(bandwidths, np.float32))
        self.log_bandwidths = (
            Parameter(log_bandwidths) if learn_bandwidths else Buffer(log_bandwidths, on_host=True)
        )
        self.classes, self.iterations, self.evaluation_iterations = classes, iterations, chosen.iterations
        self.options = {"normalisation": chosen.normalisation, "method": method}

    def forward(self, logits: Input, images: Array) -> Tensor:
        bandwidths = self.log_bandwidths
        return F.refine(
            logits,
            self._coupling(self.smoothness_weight),
            self._coupling(self.appearance_weight),
            bandwidths if isinstance(bandwidths, Parameter) else bandwidths.data,
            images=images,
            iterations=self.iterations if self.training else self.evaluation_iterations,
            **self.options,
        )

    def _coupling(self, weight: Parameter) -> Tensor:
        """compatibility times weight, (classes, classes)."""
        if weight.data.ndim == 2:
            return F.linear(self.compatibility, weight)
        return F.mul(self.compatibility, weight)  # the columns of a diagonal matrix

    @property
    def bandwidths(self) -> Array:
        """s_g and s_a in pixels, s_b in grey levels: (3,)."""
        return np.exp(cuda.to_host(self.log_bandwidths.data))

    def describe(self) -> str:
        s_g, s_a, s_b = self.bandwidths
        weights = "diagonal" if self.smoothness_weight.data.ndim == 1 else "full"
        learned = ", learned" if isinstance(self.log_bandwidths, Parameter) else ""
        return (
            f"{self.classes}, {weights} weights, bandwidths {s_g:.3g} / {s_a:.3g} / {s_b:.3g}{learned}, "
            f"{self.iterations} iterations ({self.evaluation_iterations} in evaluation)"
        )

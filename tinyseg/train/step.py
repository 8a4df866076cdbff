"""One step of training: the mean gradient of some batches, and the change of the weights that follows from it.

On a GPU the host only starts kernels, and what a step found is read when all of them are started. Even so, a small
network's kernels take less time than it takes to start them. Then the step can be recorded into a CUDA graph:

    step 1      runs as usual, and compiles the kernels
                is recorded: forward and backward pass, clipping, update
    step 2 ..   the batch is written into the arrays that the recording reads, and the graph is launched

What changes from step to step is on the GPU too: learning rates (`Optimiser.advance` writes them), the number of
the step, the counts behind dropout's masks, running averages. A batch of another size than the recorded one, or
several batches for one step, take the usual way.

With mixed precision the network holds its activations in bfloat16, for half the memory and traffic. Parameters and
their gradients, the statistics of normalisation and the losses stay float32. bfloat16 has the range of float32, so
that small gradients do not vanish, and the loss needs no scaling.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from tinyseg import cuda, optim
from tinyseg import functional as F
from tinyseg.backend import Array
from tinyseg.data import Batch
from tinyseg.models import SegmentationNetwork
from tinyseg.models.network import total
from tinyseg.optim import Optimiser
from tinyseg.tape import Tensor
from tinyseg.train.loss import PixelLoss


class Outcome(NamedTuple):
    """What a step found, before it changed the weights."""

    losses: list[float]  # of each batch
    terms: list[dict[str, float]]  # of each loss
    norm: float | None  # of the gradient, if it is clipped


class Found(NamedTuple):
    """The same where it was computed, on the CPU or on the GPU. Each array is one number."""

    losses: list[Array]
    terms: list[dict[str, Array]]
    norm: Array | None

    def read(self) -> Outcome:
        terms = [{name: float(cuda.to_host(term)) for name, term in of_batch.items()} for of_batch in self.terms]
        norm = None if self.norm is None else float(cuda.to_host(self.norm))
        return Outcome([float(cuda.to_host(loss)) for loss in self.losses], terms, norm)


class Recorded(NamedTuple):
    """A step as a CUDA graph: it reads its batch from arrays of its own, and leaves what it finds in others."""

    graph: cuda.Graph
    batch: Batch
    number: Array
    found: Found

    def takes(self, batch: Batch) -> bool:
        return _shapes(batch) == _shapes(self.batch)


class Steps:
    """Takes the steps of a run.

    clip    longest gradient, or None
    record  as a CUDA graph, which is for networks on a GPU; steps of several batches take the usual way
    mixed   with activations in bfloat16, which is for networks on a GPU
    """

    def __init__(
        self,
        network: SegmentationNetwork,
        optimiser: Optimiser,
        loss: PixelLoss,
        *,
        clip: float | None = None,
        record: bool = False,
        mixed: bool = False,
    ):
        self.network, self.optimiser, self.loss = network, optimiser, loss
        self.clip, self.record, self.mixed = clip, record, mixed
        self._recorded: Recorded | None = None

    def take(self, group: Sequence[Batch], number: int) -> Outcome:
        """Change the weights once, by the mean gradient of some batches. The first has this number in the run."""
        alone = len(group) == 1
        if self._recorded is not None and alone and self._recorded.takes(group[0]):
            _write(self._recorded.batch, group[0])
            cuda.write(self._recorded.number, np.array(number, np.uint64))
            self.optimiser.advance()
            self._recorded.graph.launch()
            return self._recorded.found.read()
        found = self._gradients(group, number)
        self.optimiser.step()
        outcome = found.read()
        if self.record and alone and self._recorded is None:
            self._recorded = self._recording(group[0], number)
        return outcome

    def _gradients(self, group: Sequence[Batch], number: int | Array) -> Found:
        self.optimiser.zero_grad()
        found = Found([], [], None)
        for index, batch in enumerate(group):
            assert batch.labels is not None
            images = Tensor(batch.images)
            outputs = self.network.outputs(F.cast(images, dtype="bfloat16") if self.mixed else images)
            step = number if index == 0 else number + index
            terms = self.network.losses(outputs, batch.labels, self.loss, weights=batch.weights, step=step)
            loss = total(terms)
            loss.backward(cuda.constant_like(np.array(1 / len(group)), loss.data))
            found.losses.append(loss.data)
            found.terms.append({name: term.data for name, term in terms.items()})
        if self.clip is None:
            return found
        return found._replace(norm=optim.clip_gradients(self.optimiser.parameters, self.clip))

    def _recording(self, batch: Batch, number: int) -> Recorded:
        own = batch.map(cuda.copied)
        own_number = cuda.to_device(np.array(number, np.uint64))
        with cuda.record() as graph:
            found = self._gradients([own], own_number)
            self.optimiser.apply()
        return Recorded(graph, own, own_number, found)


def _shapes(batch: Batch) -> list[tuple[int, ...] | None]:
    return [None if array is None else array.shape for array in batch[:3]]


def _write(own: Batch, batch: Batch) -> None:
    for target, source in zip(own[:3], batch[:3], strict=True):
        if target is not None and source is not None:
            cuda.write(target, source)

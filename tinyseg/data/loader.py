"""Batches for training, prepared in the background.

What a batch holds follows from (seed, epoch, index) alone: the order of an epoch is a permutation drawn from
(seed, epoch), and the random numbers of a sample's augmentation from (seed, epoch, index of the sample). Threads,
prefetching and the point where an epoch is entered change nothing, so a run that is resumed in the middle of an
epoch sees the same batches as one that was never stopped.
"""

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import NamedTuple

import numpy as np

from tinyseg.data.sample import DataError, Dataset, Sample, as_float

Transform = Callable[[Sample, np.random.Generator], Sample]


class Batch(NamedTuple):
    """Samples of one size, stacked."""

    images: np.ndarray  # float32 N H W C
    labels: np.ndarray | None  # int64 N H W; None where the data set has no masks
    weights: np.ndarray | None  # float32 N H W; None where the samples have none
    names: tuple[str, ...]

    def map(self, change: Callable[[np.ndarray], np.ndarray]) -> "Batch":
        """The batch with each of its arrays changed."""
        labels = None if self.labels is None else change(self.labels)
        weights = None if self.weights is None else change(self.weights)
        return Batch(change(self.images), labels, weights, self.names)


class Loader:
    """Batches of a data set, made by background threads while the network works on earlier ones.

    transform   (sample, generator) -> sample; see tinyseg.data.transforms
    shuffle     a new order in each epoch; otherwise the data set's own
    drop_last   leave out the last batch of an epoch where it would be smaller than the others
    prefetch    how many batches are prepared ahead; 0 prepares each when it is asked for, without a thread
    workers     threads that prepare them, a batch each

        loader = Loader(dataset, 8, transform=transform, shuffle=True, seed=1)
        for batch in loader.epoch(0):
            ...

    Leaving the loop early stops the threads.
    """

    def __init__(
        self,
        dataset: Dataset,
        batch_size: int,
        *,
        transform: Transform | None = None,
        shuffle: bool = False,
        seed: int = 0,
        drop_last: bool = False,
        prefetch: int = 2,
        workers: int = 1,
    ):
        if batch_size < 1:
            raise ValueError(f"Loader: batch_size must be 1 or more, got {batch_size}")
        if seed < 0 or prefetch < 0 or workers < 1:
            raise ValueError(
                "Loader: seed and prefetch must not be negative and workers must be 1 or more, "
                f"got {seed}, {prefetch} and {workers}"
            )
        if len(dataset) == 0:
            raise DataError(f"Loader: {dataset} holds no samples")
        if drop_last and len(dataset) < batch_size:
            raise DataError(
                f"Loader: {dataset} has {len(dataset)} samples, fewer than a batch of {batch_size}, and drop_last "
                "leaves out the rest; use smaller batches or drop_last=False"
            )
        self.dataset = dataset
        self.batch_size = batch_size
        self.transform = transform
        self.shuffle = shuffle
        self.seed = seed
        self.drop_last = drop_last
        self.prefetch = prefetch
        self.workers = workers

    def __len__(self) -> int:
        """The number of batches in an epoch."""
        whole, rest = divmod(len(self.dataset), self.batch_size)
        return whole if self.drop_last or rest == 0 else whole + 1

    def order(self, epoch: int) -> np.ndarray:
        """The indices of the samples in the order of this epoch."""
        if not self.shuffle:
            return np.arange(len(self.dataset))
        return self._generator(0, epoch).permutation(len(self.dataset))

    def epoch(self, epoch: int, start: int = 0) -> Iterator[Batch]:
        """The batches of an epoch, beginning with number `start`."""
        if not 0 <= start <= len(self):
            raise ValueError(f"Loader: an epoch has {len(self)} batches, it cannot start at number {start}")
        order = self.order(epoch)
        size = self.batch_size
        chunks = [order[size * k : size * (k + 1)] for k in range(start, len(self))]
        if self.prefetch == 0:
            return (self._batch(epoch, chunk) for chunk in chunks)
        return self._in_background(epoch, chunks)

    def _in_background(self, epoch: int, chunks: Sequence[np.ndarray]) -> Iterator[Batch]:
        pool = ThreadPoolExecutor(self.workers, thread_name_prefix="tinyseg-loader")
        try:
            waiting: deque[Future[Batch]] = deque()
            for chunk in chunks:
                waiting.append(pool.submit(self._batch, epoch, chunk))
                if len(waiting) > self.prefetch:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:  # also when the consumer leaves its loop: the generator is closed then
            pool.shutdown(wait=True, cancel_futures=True)

    def _batch(self, epoch: int, indices: np.ndarray) -> Batch:
        return collate([self._sample(epoch, int(index)) for index in indices])

    def _sample(self, epoch: int, index: int) -> Sample:
        name = f"number {index}"
        try:
            sample = self.dataset[index]
            name = f"{name} ({sample.name})"
            if self.transform is not None:
                sample = self.transform(sample, self._generator(1, epoch, index))
            return sample
        except MemoryError:
            raise
        except Exception as error:
            raise DataError(f"{self.dataset}: sample {name} failed: {error}") from error

    def _generator(self, *key: int) -> np.random.Generator:
        return np.random.default_rng(np.random.SeedSequence(self.seed, spawn_key=key))


def collate(samples: Sequence[Sample]) -> Batch:
    """Stack samples of equal size into a batch: images as float32 in 0..1 (or normalised), labels as int64."""
    if not samples:
        raise DataError("a batch needs at least one sample")
    first = samples[0]
    for sample in samples:
        _check(sample)
        if sample.image.shape != first.image.shape:
            raise DataError(
                f"the images of a batch must have one size: {first.name} is {_size(first.image)}, {sample.name} "
                f"is {_size(sample.image)}; add a crop or resize to the transforms, or use a batch size of 1"
            )
        for part in ("mask", "weights"):
            if (getattr(sample, part) is None) != (getattr(first, part) is None):
                raise DataError(f"a batch mixes samples with and without {part}: {first.name} and {sample.name}")
    images = np.stack([as_float(sample.image) for sample in samples])
    masks = [sample.mask for sample in samples if sample.mask is not None]
    weights = [sample.weights for sample in samples if sample.weights is not None]
    return Batch(
        images,
        np.stack(masks).astype(np.int64) if masks else None,
        np.stack(weights).astype(np.float32) if weights else None,
        tuple(sample.name for sample in samples),
    )


def _check(sample: Sample) -> None:
    if sample.image.ndim != 3 or sample.image.size == 0:
        raise DataError(f"{sample.name}: an image must have the axes (H, W, C), got shape {sample.image.shape}")
    if sample.mask is not None and sample.mask.dtype.kind not in "iu":
        raise DataError(f"{sample.name}: a mask must hold integers, got {sample.mask.dtype}")
    for part in ("mask", "weights"):
        array = getattr(sample, part)
        if array is not None and array.shape != sample.image.shape[:2]:
            raise DataError(
                f"{sample.name}: the {part} is {_size(array)}, its image {_size(sample.image)}; they must agree"
            )


def _size(array: np.ndarray) -> str:
    return f"{array.shape[0]}x{array.shape[1]}"

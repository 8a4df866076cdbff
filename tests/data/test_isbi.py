import numpy as np
import pytest

from tinyseg.data import DataError, Isbi
from tinyseg.data.isbi import CELL, MEMBRANE


def test_the_real_slices(real_set):
    train, val, all_ = (Isbi(real_set("isbi2012"), split) for split in ("train", "val", "all"))
    assert (len(train), len(val), len(all_)) == (24, 6, 30)
    assert [sample.name for sample in val] == ["24", "25", "26", "27", "28", "29"]
    masks = np.stack([sample.mask for sample in all_])
    assert set(np.unique(masks)) == {MEMBRANE, CELL}
    assert (masks == MEMBRANE).mean() == pytest.approx(0.2196, abs=5e-5)
    images = np.stack([sample.image for sample in all_])
    assert images.shape == (30, 512, 512, 1) and images.dtype == np.uint8
    np.testing.assert_allclose([images.mean() / 255, images.std() / 255], [train.mean[0], train.std[0]], atol=5e-5)
    # Membranes are dark.
    assert images[masks[..., None] == MEMBRANE].mean() == pytest.approx(86, abs=1)
    assert images[masks[..., None] == CELL].mean() == pytest.approx(138, abs=1)


def test_real_weight_maps(real_set):
    dataset = Isbi(real_set("isbi2012"), "val", weights=True)
    sample = dataset[0]
    assert sample.weights.dtype == np.float32 and sample.weights.shape == (512, 512)
    assert sample.weights[sample.mask == MEMBRANE].mean() > 3 * sample.weights[sample.mask == CELL].mean()
    assert dataset[0].weights is sample.weights  # kept
    assert Isbi(real_set("isbi2012"), "val")[0].weights is None


@pytest.fixture
def volumes(tmp_path, rng):
    from PIL import Image

    images = rng.integers(0, 256, (10, 6, 8)).astype(np.uint8)
    labels = (rng.integers(0, 2, (10, 6, 8)) * 255).astype(np.uint8)
    for name, array in (("train-volume.tif", images), ("train-labels.tif", labels)):
        pages = [Image.fromarray(page) for page in array]
        pages[0].save(tmp_path / name, save_all=True, append_images=pages[1:])
    return tmp_path, images, labels


def test_tiff_volumes(volumes):
    root, images, labels = volumes
    train, val = Isbi(root, "train", held_out=3), Isbi(root, "val", held_out=3)
    assert (len(train), len(val)) == (7, 3)
    for k, sample in enumerate([*train, *val]):
        assert sample.name == f"{k:02d}"
        np.testing.assert_array_equal(sample.image[:, :, 0], images[k])
        np.testing.assert_array_equal(sample.mask, labels[k] // 255)


def test_inverted_masks(volumes):
    root, _, labels = volumes
    np.testing.assert_array_equal(Isbi(root, "all", invert=True)[4].mask, 1 - labels[4] // 255)


def test_volumes_of_different_length(volumes):
    from PIL import Image

    root, _, labels = volumes
    Image.fromarray(labels[0]).save(root / "train-labels.tif")
    with pytest.raises(DataError, match=r"has 10 pages and .*train-labels\.tif has 1"):
        Isbi(root)
    (root / "train-labels.tif").unlink()
    with pytest.raises(DataError, match=r"is there, but .*train-labels\.tif is not"):
        Isbi(root)


def test_a_folder_without_lists_is_split_in_numerical_order(tmp_path, save):
    for k in range(12):
        save(tmp_path / f"train/image/{k}.png", np.full((3, 4), k, np.uint8))
        save(tmp_path / f"train/label/{k}.png", np.full((3, 4), 255, np.uint8))
    assert [sample.name for sample in Isbi(tmp_path, "val", held_out=3)] == ["9", "10", "11"]
    assert [int(sample.image[0, 0, 0]) for sample in Isbi(tmp_path, "train")] == [0, 1, 2, 3, 4, 5]


def test_wrong_input(tmp_path, save):
    with pytest.raises(DataError, match="isbi: there is no folder"):
        Isbi(tmp_path / "nowhere")
    with pytest.raises(DataError, match=r"(?s)has neither volumes nor folders.*train-volume\.tif"):
        Isbi(tmp_path)
    save(tmp_path / "images/00.png", np.zeros((3, 4), np.uint8))
    mask = save(tmp_path / "labels/00.png", np.array([[0, 255, 128, 0]] * 3, np.uint8))
    with pytest.raises(DataError, match=r"00\.png: the values 128 \(3 pixels\) are none of the 2 classes"):
        Isbi(tmp_path, "all")[0]
    save(mask, np.zeros((4, 3), np.uint8))
    with pytest.raises(
        DataError, match=r"images.00\.png is 3x4 .*labels.00\.png is 4x3; one of the two is turned"
    ):
        Isbi(tmp_path, "all")[0]
    with pytest.raises(DataError, match=r"held_out must be 1\.\.0, got 6"):
        Isbi(tmp_path, "train")
    (tmp_path / "train.txt").write_text("00\n77\n")
    with pytest.raises(DataError, match=r"train\.txt lists 77"):
        Isbi(tmp_path, "train")

import numpy as np
import pytest

from tinyseg.data import DataError, Voc
from tinyseg.data.sample import voc_palette
from tinyseg.data.voc import CLASSES


def test_the_real_sample(real_set):
    root = real_set("voc_sample")
    train, val, both = (Voc(root, split) for split in ("train", "val", "trainval"))
    assert (len(train), len(val), len(both)) == (7, 4, 11)
    values = [set(np.unique(sample.mask).tolist()) for sample in both]
    assert set().union(*values) == {0, 1, 2, 3, 6, 7, 8, 12, 13, 15, 17, 255}
    assert sum(255 in found for found in values) == 7
    for sample in both:
        assert sample.image.shape == (*sample.mask.shape, 3)


def test_a_real_palette_mask_keeps_its_indices(real_set, table):
    """The same file read as colours gives the colours of the published table for the indices that were read."""
    from PIL import Image

    root = real_set("voc_sample")
    dataset = Voc(root, "trainval")
    colour = {int(row["id"]): [int(row[c]) for c in "rgb"] for row in table(root / "labels.csv")}
    for pair, sample in zip(dataset.pairs, dataset, strict=True):
        with Image.open(pair.mask) as image:
            colours = np.asarray(image.convert("RGB"))
        for label in np.unique(sample.mask):
            assert (colours[sample.mask == label] == colour[int(label)]).all()


def test_the_palette_is_the_published_one():
    expected = [
        (0, 0, 0), (128, 0, 0), (0, 128, 0), (128, 128, 0), (0, 0, 128), (128, 0, 128), (0, 128, 128),
        (128, 128, 128), (64, 0, 0), (192, 0, 0), (64, 128, 0), (192, 128, 0), (64, 0, 128), (192, 0, 128),
        (64, 128, 128), (192, 128, 128), (0, 64, 0), (128, 64, 0), (0, 192, 0), (128, 192, 0), (0, 64, 128),
    ]  # fmt: skip
    assert voc_palette(256)[:21].tolist() == [list(colour) for colour in expected]
    assert voc_palette(256)[255].tolist() == [224, 224, 192]
    assert len(CLASSES) == 21


@pytest.fixture
def devkit(tmp_path, save, save_palette):
    home = tmp_path / "VOCdevkit" / "VOC2012"
    lists = home / "ImageSets" / "Segmentation"
    lists.mkdir(parents=True)
    for k, name in enumerate(("2007_000001", "2008_000002", "2009_000003")):
        save(home / "JPEGImages" / f"{name}.jpg", np.zeros((4, 5, 3), np.uint8))
        save_palette(home / "SegmentationClass" / f"{name}.png", np.full((4, 5), k, np.uint8))
        save(home / "SegmentationClassAug" / f"{name}.png", np.full((4, 5), 10 + k, np.uint8))
    (lists / "train.txt").write_text("2007_000001\n2008_000002\n")
    (lists / "val.txt").write_text("2009_000003\n")
    (lists / "test.txt").write_text("2009_000003\n")
    lines = [f"/JPEGImages/{n}.jpg /SegmentationClassAug/{n}.png" for n in ("2007_000001", "2009_000003")]
    (lists / "train_aug.txt").write_text("\n".join(lines))
    return home


@pytest.mark.parametrize("up", [0, 1, 2])
def test_the_root_may_be_any_of_three_folders(devkit, up):
    root = [devkit, devkit.parent, devkit.parent.parent][up]
    assert [int(sample.mask[0, 0]) for sample in Voc(root, "train")] == [0, 1]


def test_test_has_no_masks(devkit):
    assert Voc(devkit, "test")[0].mask is None


def test_trainaug(devkit):
    dataset = Voc(devkit, "trainaug", check_count=False)
    assert [sample.name for sample in dataset] == ["2007_000001", "2009_000003"]
    assert [int(sample.mask[0, 0]) for sample in dataset] == [10, 12]
    with pytest.raises(DataError, match="trainaug has 2 images, VOC's train with SBD has 10582"):
        Voc(devkit, "trainaug")
    (devkit / "SegmentationClassAug").rename(devkit / "elsewhere")
    with pytest.raises(DataError, match="trainaug needs the masks of SBD"):
        Voc(devkit, "trainaug", check_count=False)


def test_missing_things(devkit):
    with pytest.raises(
        DataError, match=r"(?s)voc: found no folder JPEGImages in .*Expected there:.*VOCdevkit/VOC2012"
    ):
        Voc(devkit / "ImageSets")
    with pytest.raises(DataError, match="no split 'valid'; did you mean 'val'"):
        Voc(devkit, "valid")
    with pytest.raises(DataError, match=r"trainval\.txt: no such list"):
        Voc(devkit, "trainval")
    (devkit / "SegmentationClass" / "2009_000003.png").unlink()
    with pytest.raises(
        DataError, match=r"2009_000003\.jpg: has no mask, expected .*SegmentationClass.2009_000003\.png"
    ):
        Voc(devkit, "val")

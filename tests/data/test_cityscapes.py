import shutil

import numpy as np
import pytest

from tinyseg.data import Cityscapes, DataError
from tinyseg.data.cityscapes import CLASSES, ID_TO_TRAIN_ID, TABLE, to_ids


def test_the_real_sample(real_set):
    """An 800 x 800 street scene; the numbers are counted from its panoptic map."""
    root = real_set("others/cityscapes_layout")
    dataset = Cityscapes(root, "val")
    assert len(dataset) == 1
    image, mask, _, name = dataset[0]
    assert image.shape == (800, 800, 3) and name == "dummy_000000_000000"
    labels, counts = np.unique(mask, return_counts=True)
    assert dict(zip(labels.tolist(), counts.tolist(), strict=True)) == {
        0: 46475, 2: 222420, 8: 15940, 10: 278754, 13: 75840, 255: 571,
    }  # fmt: skip


def test_real_train_ids_are_those_of_the_reference(real_set, table):
    from tinyseg.data.files import read_mask

    root = real_set("others/cityscapes_layout")
    reference = next((root / "gtFine").glob("*/*/*_labelTrainIds.png"))
    np.testing.assert_array_equal(Cityscapes(root, "val")[0].mask, read_mask(reference))
    rows = [row for row in table(root / "labels.csv") if int(row["id"]) >= 0]
    assert {int(row["id"]): int(row["train_id"]) for row in rows}.items() <= ID_TO_TRAIN_ID.items()
    by_train_id = {int(row["train_id"]): row for row in rows if row["train_id"] != "255"}
    for label, (name, id_, colour) in enumerate(TABLE):
        row = by_train_id[label]
        assert (row["name"], int(row["id"])) == (name, id_)
        assert (int(row["r"]), int(row["g"]), int(row["b"])) == colour


@pytest.fixture
def root(tmp_path, save):
    for city, frame, value in (("ulm", "ulm_000000_000019", 7), ("aachen", "aachen_000001_000019", 33)):
        save(tmp_path / f"leftImg8bit/train/{city}/{frame}_leftImg8bit.png", np.zeros((4, 8, 3), np.uint8))
        save(tmp_path / f"gtFine/train/{city}/{frame}_gtFine_labelIds.png", np.full((4, 8), value, np.uint8))
    return tmp_path


def test_cities_in_order(root):
    dataset = Cityscapes(root, "train")
    assert [sample.name for sample in dataset] == ["aachen_000001_000019", "ulm_000000_000019"]
    assert [int(sample.mask[0, 0]) for sample in dataset] == [18, 0]
    assert dataset.ignore_label == 255 and len(dataset.classes) == len(CLASSES) == 19


def test_the_folder_of_the_archives(root):
    for part in ("leftImg8bit", "gtFine"):
        (root / f"{part}_trainvaltest").mkdir()
        shutil.move(root / part, root / f"{part}_trainvaltest" / part)
    assert len(Cityscapes(root, "train")) == 2


def test_test_has_no_masks(root, save):
    save(root / "leftImg8bit/test/berlin/berlin_0_0_leftImg8bit.png", np.zeros((4, 8, 3), np.uint8))
    assert Cityscapes(root, "test")[0].mask is None


def test_back_to_ids():
    for id_, train_id in ID_TO_TRAIN_ID.items():
        back = int(to_ids(np.array([[train_id]]))[0, 0])
        assert back == (id_ if train_id != 255 else 0)


def test_errors(root, save):
    with pytest.raises(DataError, match=r"(?s)cityscapes: .* holds no leftImg8bit/val. Expected there:"):
        Cityscapes(root, "val")
    mask = root / "gtFine/train/ulm/ulm_000000_000019_gtFine_labelIds.png"
    save(mask, np.full((4, 8), 77, np.uint8))
    with pytest.raises(
        DataError, match=r"ulm.*labelIds\.png: the values 77 \(32 pixels\) are none of the 19 classes"
    ):
        Cityscapes(root, "train")[1]
    mask.unlink()
    with pytest.raises(DataError, match=r"ulm_000000_000019_leftImg8bit\.png: has no mask"):
        Cityscapes(root, "train")

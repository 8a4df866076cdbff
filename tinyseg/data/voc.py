"""Pascal VOC segmentation: photographs with 20 classes and background.

    VOCdevkit/VOC2012/JPEGImages/2007_000032.jpg
                      SegmentationClass/2007_000032.png       palette PNG: the index is the class, 255 is void
                      ImageSets/Segmentation/train.txt        one name a line

The root may be `VOC2012`, `VOCdevkit`, or the folder that holds `VOCdevkit`. The void label marks a band around
every object and what the annotators could not tell.

The split "trainaug" is VOC's train with the Semantic Boundaries Dataset (SBD), less what is in VOC's val: 10,582
images, whose masks lie in `SegmentationClassAug`, listed in `train_aug.txt` or `trainaug.txt`. Taking the masks of
`SegmentationClass` for that list is a known way to learn nothing but background, so its length is checked.

Sources: Everingham et al., "The Pascal visual object classes challenge: a retrospective", IJCV 2015; Hariharan et
al., "Semantic contours from inverse detectors", ICCV 2011 (SBD).
"""

from collections.abc import Iterator
from pathlib import Path, PurePosixPath

from tinyseg.data import files
from tinyseg.data.pairs import FilePairs, Pair
from tinyseg.data.sample import IMAGENET_MEAN, IMAGENET_STD, DataError, nearest

VOID = 255

CLASSES = (
    "background",
    "aeroplane",
    "bicycle",
    "bird",
    "boat",
    "bottle",
    "bus",
    "car",
    "cat",
    "chair",
    "cow",
    "diningtable",
    "dog",
    "horse",
    "motorbike",
    "person",
    "pottedplant",
    "sheep",
    "sofa",
    "train",
    "tvmonitor",
)

SPLITS = ("train", "val", "trainval", "test", "trainaug")

TRAINAUG_LISTS = ("train_aug.txt", "trainaug.txt")
TRAINAUG_COUNT = 10582

LAYOUT = """\
  VOCdevkit/VOC2012/JPEGImages/*.jpg
  VOCdevkit/VOC2012/SegmentationClass/*.png                       (SegmentationClassAug for trainaug)
  VOCdevkit/VOC2012/ImageSets/Segmentation/train.txt, val.txt, ..."""


class Voc(FilePairs):
    """A split of Pascal VOC: "train", "val", "trainval", "trainaug", or "test", which has no masks.

    year         the folder to take where the root holds several
    check_count  refuse a trainaug list that does not have its 10,582 images
    """

    def __init__(
        self,
        root: str | Path | None,
        split: str = "train",
        *,
        year: int = 2012,
        check_count: bool = True,
        strict: bool = True,
    ):
        if split not in SPLITS:
            raise DataError(f"voc: no split {split!r}; {nearest(split, SPLITS)}")
        folder = _home(files.need_folder("voc", root, LAYOUT), year)
        pairs = list(_pairs(folder, split))
        if split == "trainaug" and check_count and len(pairs) != TRAINAUG_COUNT:
            raise DataError(
                f"voc: the list of trainaug has {len(pairs)} images, VOC's train with SBD has {TRAINAUG_COUNT}; "
                "fetch the full list, or use check_count = false if this is meant"
            )
        super().__init__(
            f"Pascal VOC {split}",
            pairs,
            classes=CLASSES,
            ignore_label=VOID,
            mean=IMAGENET_MEAN,
            std=IMAGENET_STD,
            strict=strict,
        )


def _home(root: Path, year: int) -> Path:
    """The folder that holds JPEGImages."""
    name = f"VOC{year}"
    for path in (root, root / name, root / "VOCdevkit" / name, root / "TrainVal" / "VOCdevkit" / name):
        if (path / "JPEGImages").is_dir():
            return path
    raise DataError(f"voc: found no folder JPEGImages in {root}. Expected there:\n{LAYOUT}")


def _pairs(folder: Path, split: str) -> Iterator[Pair]:
    lists = folder / "ImageSets" / "Segmentation"
    masks = folder / "SegmentationClass"
    path = lists / f"{split}.txt"
    if split == "trainaug":
        masks = folder / "SegmentationClassAug"
        if not masks.is_dir():
            raise DataError(
                f"voc: trainaug needs the masks of SBD in {masks}; those of SegmentationClass do not cover it"
            )
        path = next(
            (lists / name for name in TRAINAUG_LISTS if (lists / name).is_file()), lists / TRAINAUG_LISTS[0]
        )
    for line in files.read_list(path):
        # Some lists give "/JPEGImages/x.jpg /SegmentationClassAug/x.png" for each image.
        name = PurePosixPath(line.replace("\\", "/").split()[0]).stem
        image = folder / "JPEGImages" / f"{name}.jpg"
        yield Pair(name, image, None if split == "test" else masks / f"{name}.png")

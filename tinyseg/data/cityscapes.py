"""Cityscapes: street scenes of 50 cities, 1024 x 2048, with 19 classes to train on.

    root/leftImg8bit/train/aachen/aachen_000000_000019_leftImg8bit.png
    root/gtFine/train/aachen/aachen_000000_000019_gtFine_labelIds.png

The archives unpack with or without one folder more (`leftImg8bit_trainvaltest/leftImg8bit`); both are found. The
files hold the ids of 34 kinds of things. Networks are trained and scored on 19 of them, the *train ids*; all other
pixels are ignored, as 255. The evaluation server wants ids again: `to_ids` goes back.

Source: Cordts et al., "The Cityscapes dataset for semantic urban scene understanding", CVPR 2016.
"""

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from tinyseg.data import files
from tinyseg.data.pairs import FilePairs, Pair
from tinyseg.data.sample import IMAGENET_MEAN, IMAGENET_STD, DataError, nearest

IGNORE = 255

# The 19 classes in the order of their train ids: name, id in the files, colour.
TABLE = (
    ("road", 7, (128, 64, 128)),
    ("sidewalk", 8, (244, 35, 232)),
    ("building", 11, (70, 70, 70)),
    ("wall", 12, (102, 102, 156)),
    ("fence", 13, (190, 153, 153)),
    ("pole", 17, (153, 153, 153)),
    ("traffic light", 19, (250, 170, 30)),
    ("traffic sign", 20, (220, 220, 0)),
    ("vegetation", 21, (107, 142, 35)),
    ("terrain", 22, (152, 251, 152)),
    ("sky", 23, (70, 130, 180)),
    ("person", 24, (220, 20, 60)),
    ("rider", 25, (255, 0, 0)),
    ("car", 26, (0, 0, 142)),
    ("truck", 27, (0, 0, 70)),
    ("bus", 28, (0, 60, 100)),
    ("train", 31, (0, 80, 100)),
    ("motorcycle", 32, (0, 0, 230)),
    ("bicycle", 33, (119, 11, 32)),
)

CLASSES = tuple(name for name, _, _ in TABLE)

# Ids run from 0 to 34; -1, the licence plate, is 255 in a file of bytes.
ID_TO_TRAIN_ID = dict.fromkeys((*range(35), 255), IGNORE) | {id_: label for label, (_, id_, _) in enumerate(TABLE)}

SPLITS = ("train", "val", "test")

LAYOUT = """\
  leftImg8bit/train/aachen/aachen_000000_000019_leftImg8bit.png, ...
  gtFine/train/aachen/aachen_000000_000019_gtFine_labelIds.png, ..."""


class Cityscapes(FilePairs):
    """A split of Cityscapes, "train" or "val", in train ids; or "test", whose masks are not published."""

    def __init__(self, root: str | Path | None, split: str = "train", *, strict: bool = True):
        folder = files.need_folder("cityscapes", root, LAYOUT)
        if split not in SPLITS:
            raise DataError(f"cityscapes: no split {split!r}; {nearest(split, SPLITS)}")
        super().__init__(
            f"Cityscapes {split}",
            _pairs(folder, split),
            classes=CLASSES,
            ignore_label=IGNORE,
            labels=ID_TO_TRAIN_ID,
            palette=[colour for _, _, colour in TABLE],
            mean=IMAGENET_MEAN,
            std=IMAGENET_STD,
            strict=strict,
        )


def to_ids(train_ids: np.ndarray) -> np.ndarray:
    """The ids that the evaluation server wants for a mask of train ids, uint8; ignored pixels become 0."""
    table = np.zeros(256, np.uint8)
    for label, (_, id_, _) in enumerate(TABLE):
        table[label] = id_
    return table[train_ids]


def _pairs(folder: Path, split: str) -> Iterator[Pair]:
    images = _part(folder, "leftImg8bit", split)
    masks = None if split == "test" else _part(folder, "gtFine", split)
    for image in sorted(images.glob("*/*_leftImg8bit.png")):
        city, name = image.parent.name, image.name.removesuffix("_leftImg8bit.png")
        yield Pair(name, image, None if masks is None else masks / city / f"{name}_gtFine_labelIds.png")


def _part(folder: Path, part: str, split: str) -> Path:
    """The folder of a split's images or masks."""
    for path in (folder / part, folder / f"{part}_trainvaltest" / part):
        if (path / split).is_dir():
            return path / split
    raise DataError(f"cityscapes: {folder} holds no {part}/{split}. Expected there:\n{LAYOUT}")

"""ISBI 2012: neuronal membranes in electron microscopy, the data of U-Net's first experiment.

30 slices of 512 x 512 grey pixels with a mask each. In the masks black (0) is membrane and white (255) the inside
of a cell; here membrane is class 0 and cell is class 1, or the other way round in the files with `invert=True`.
The challenge's test labels were never published, so some of the 30 slices are held out: those in `val.txt`, and
where there are no lists, the last `held_out` of them.

Two forms are read. The challenge's TIFF volumes, of one page a slice:

    root/train-volume.tif   root/train-labels.tif

and a folder of images and one of masks, with equal names:

    root/images/00.png   root/labels/00.png   root/train.txt   root/val.txt

Sources: Cardona et al., "An integrated micro- and macroarchitectural analysis of the Drosophila brain by
computer-assisted serial section electron microscopy", PLoS Biology 2010; Arganda-Carreras et al., "Crowdsourcing
the creation of image segmentation algorithms for connectomics", Frontiers in Neuroanatomy 2015.
"""

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from tinyseg.data import files
from tinyseg.data.pairs import FilePairs, Pair
from tinyseg.data.sample import DataError, Sample, nearest
from tinyseg.data.weight_map import unet_weight_map

MEMBRANE, CELL = 0, 1
CLASSES = ("membrane", "cell")
PALETTE = ((214, 69, 65), (78, 131, 189))

# Of the 30 slices, in 0..1.
MEAN = 0.4948
STD = 0.1726

SPLITS = ("train", "val", "all")

FOLDERS = (("images", "labels"), ("images", "masks"), ("image", "label"), ("train/image", "train/label"))

LAYOUT = """\
  train-volume.tif, train-labels.tif            the challenge's volumes, or
  images/00.png, labels/00.png, ...             a folder of images and one of masks,
  train.txt, val.txt                            with lists of names, if wanted"""


class Isbi(FilePairs):
    """Slices of ISBI 2012: split "train", "val" (the held-out slices) or "all".

    invert       membranes are white in the mask files
    held_out     how many slices at the end make the "val" split, where there are no lists
    weights      give each sample U-Net's weight map, worked out at the first use and kept
    border_weight, border_sigma, balance
                 of the weight map: w0, sigma in pixels, and whether rare classes weigh more
    """

    def __init__(
        self,
        root: str | Path | None,
        split: str = "train",
        *,
        invert: bool = False,
        held_out: int = 6,
        weights: bool = False,
        border_weight: float = 10.0,
        border_sigma: float = 5.0,
        balance: bool = True,
        strict: bool = True,
    ):
        folder = files.need_folder("isbi", root, LAYOUT)
        if split not in SPLITS:
            raise DataError(f"isbi: no split {split!r}; {nearest(split, SPLITS)}")
        if (folder / "train-volume.tif").is_file():
            pairs = _volume_pairs(folder)
        else:
            pairs = _folder_pairs(folder)
        super().__init__(
            f"ISBI 2012 {split}",
            _of_split(folder, pairs, split, held_out),
            classes=CLASSES,
            ignore_label=None,
            labels={0: CELL, 255: MEMBRANE} if invert else {0: MEMBRANE, 255: CELL},
            palette=PALETTE,
            channels=1,
            mean=MEAN,
            std=STD,
            strict=strict,
        )
        self.weights = weights
        self._weight_options = {"w0": border_weight, "sigma": border_sigma, "balance": balance}
        self._weight_maps: dict[int, np.ndarray] = {}

    def __getitem__(self, index: int) -> Sample:
        sample = super().__getitem__(index)
        if not self.weights or sample.mask is None:
            return sample
        if index not in self._weight_maps:
            # The cells are the connected components of the class: no two of them touch.
            self._weight_maps[index] = unet_weight_map(sample.mask, foreground=CELL, **self._weight_options)
        return sample._replace(weights=self._weight_maps[index])


def _volume_pairs(folder: Path) -> dict[str, Pair]:
    images, labels = folder / "train-volume.tif", folder / "train-labels.tif"
    if not labels.is_file():
        raise DataError(f"isbi: {images} is there, but {labels} is not")
    counts = files.page_count(images), files.page_count(labels)
    if counts[0] != counts[1]:
        raise DataError(f"isbi: {images} has {counts[0]} pages and {labels} has {counts[1]}; they must agree")
    names = [f"{page:02d}" for page in range(counts[0])]
    return {name: Pair(name, images, labels, page) for page, name in enumerate(names)}


def _folder_pairs(folder: Path) -> dict[str, Pair]:
    for image_folder, mask_folder in FOLDERS:
        images, masks = folder / image_folder, folder / mask_folder
        if images.is_dir() and masks.is_dir():
            found = files.images_in(images)
            return {name: Pair(name, path, files.find_image(masks, name)) for name, path in found.items()}
    raise DataError(f"isbi: {folder} has neither volumes nor folders of images and masks. Expected:\n{LAYOUT}")


def _of_split(folder: Path, pairs: Mapping[str, Pair], split: str, held_out: int) -> list[Pair]:
    if split == "all":
        return list(pairs.values())
    path = folder / f"{split}.txt"
    if path.is_file():
        names = files.read_list(path)
        unknown = [name for name in names if name not in pairs]
        if unknown:
            raise DataError(f"isbi: {path} lists {', '.join(unknown[:5])}, but there are no such images")
        return [pairs[name] for name in names]
    if not 0 < held_out < len(pairs):
        raise DataError(f"isbi: held_out must be 1..{len(pairs) - 1}, got {held_out}")
    ordered = list(pairs.values())
    return ordered[:-held_out] if split == "train" else ordered[-held_out:]

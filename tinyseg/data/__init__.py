"""Data sets, augmentation and the loader.

    dataset = open_dataset("camvid", "path/to/CamVid", "train")
    image, mask, weights, name = dataset[0]

    transform = transforms.build([{"name": "crop", "size": 224}, {"name": "normalise"}], dataset)
    for batch in Loader(dataset, 8, transform=transform, shuffle=True).epoch(0):
        batch.images, batch.labels

Importing this loads NumPy alone; Pillow and SciPy are loaded where they are first used.
"""

import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tinyseg.data import transforms
from tinyseg.data.camvid import CamVid
from tinyseg.data.check import Report, examine
from tinyseg.data.cityscapes import Cityscapes
from tinyseg.data.folder import Folder
from tinyseg.data.isbi import Isbi
from tinyseg.data.loader import Batch, Loader, collate
from tinyseg.data.sample import DataError, Dataset, Sample, as_float, nearest
from tinyseg.data.shapes import Shapes
from tinyseg.data.voc import Voc

DATASETS: dict[str, type] = {
    "camvid": CamVid,
    "cityscapes": Cityscapes,
    "folder": Folder,
    "isbi": Isbi,
    "shapes": Shapes,
    "voc": Voc,
}


def open_dataset(name: str, root: str | Path | None = None, split: str = "train", **options: Any) -> Dataset:
    """A split of a data set by the data set's name. `root` is its folder; `shapes` is drawn and needs none.

    The options are those of the data set's class. An unknown name or option is answered with the nearest one.
    """
    if name not in DATASETS:
        raise DataError(f"there is no data set {name!r}; {nearest(name, DATASETS)}")
    cls = DATASETS[name]
    positional = ("root", "split")
    known = [option for option in inspect.signature(cls).parameters if option not in positional]
    for option in options:
        if option not in known:
            raise DataError(f"{name}: there is no option {option!r}; {nearest(option, known)}")
    if cls is Shapes:
        return Shapes(split, **options)
    return cls(root, split, **options)


def check_dataset(
    name: str,
    root: str | Path | None = None,
    split: str = "train",
    *,
    progress: Callable[[int, int], None] | None = None,
    **options: Any,
) -> Report:
    """Go over a data set and report what it holds and what is wrong with it; arguments as in `open_dataset`.

    Files that are missing become problems in the report. `progress` is called with (samples done, samples in all).
    """
    if name in DATASETS and name != "shapes":
        options.setdefault("strict", False)
    return examine(open_dataset(name, root, split, **options), progress)


__all__ = [
    "DATASETS",
    "Batch",
    "CamVid",
    "Cityscapes",
    "DataError",
    "Dataset",
    "Folder",
    "Isbi",
    "Loader",
    "Report",
    "Sample",
    "Shapes",
    "Voc",
    "as_float",
    "check_dataset",
    "collate",
    "examine",
    "nearest",
    "open_dataset",
    "transforms",
]

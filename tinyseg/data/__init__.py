"""Data sets, augmentation and the loader.

    dataset = open_dataset("camvid", "path/to/CamVid", "train")
    image, mask, weights, name = dataset[0]

    transform = transforms.build([{"name": "crop", "size": 224}, {"name": "normalise"}], dataset)
    for batch in Loader(dataset, 8, transform=transform, shuffle=True).epoch(0):
        batch.images, batch.labels

Importing this loads NumPy alone; Pillow and SciPy are loaded where they are first used.
"""

import inspect
from pathlib import Path
from typing import Any

from tinyseg.data import transforms
from tinyseg.data.camvid import CamVid
from tinyseg.data.isbi import Isbi
from tinyseg.data.loader import Batch, Loader, collate
from tinyseg.data.sample import DataError, Dataset, Sample, as_float, nearest
from tinyseg.data.shapes import Shapes

DATASETS: dict[str, type] = {
    "camvid": CamVid,
    "isbi": Isbi,
    "shapes": Shapes,
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


__all__ = [
    "DATASETS",
    "Batch",
    "CamVid",
    "DataError",
    "Dataset",
    "Isbi",
    "Loader",
    "Sample",
    "Shapes",
    "as_float",
    "collate",
    "nearest",
    "open_dataset",
    "transforms",
]

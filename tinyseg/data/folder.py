"""A plain folder of images and a folder of masks: one's own data.

    root/images/one.jpg   root/images/two.jpg   ...
    root/masks/one.png    root/masks/two.png    ...
    root/train.txt  root/val.txt                         lists of names, if wanted (also in root/splits)
    root/classes.txt                                     names of the classes, if wanted

An image and its mask have the same name, or the same but for given endings (`cat_img.jpg`, `cat_gt.png`). A mask
holds the class of each pixel, 0, 1, 2, ..; it may be a palette PNG, whose colours do not matter. Masks that hold
something else are translated: `values` for other numbers, `colours` for colours.

The images of a split may also lie in folders of their own, `images/train` and `masks/train`. Without lists and
without such folders, `fraction` of the images makes the "val" split: which ones is drawn from `seed`, over the
sorted names, so it stays the same from run to run.
"""

import csv
from collections.abc import Sequence
from pathlib import Path, PurePosixPath

import numpy as np

from tinyseg.data import files
from tinyseg.data.pairs import FilePairs, Pair, value_counts
from tinyseg.data.sample import IMAGENET_MEAN, IMAGENET_STD, DataError, nearest

MOST_CLASSES = 100
"""A mask with higher values, and no list of classes, is taken for something else than a mask."""

LAYOUT = """\
  images/one.jpg, ...     the images
  masks/one.png, ...      a mask for each, of the same name: the class of each pixel
  train.txt, val.txt      names, one a line (optional)
  classes.txt             names of the classes, one a line (optional)"""


class Folder(FilePairs):
    """Images and masks in two folders; the split is "train", "val", "all", or any for which there is a list.

    images, masks    the two folders, below the root
    image_ending, mask_ending
                     what follows the common name, before the suffix: "_img", "_gt"
    classes          names, or a file of names, one a line; or a table in CSV with the columns `name` and, if
                     wanted, `id` (in order) and `r`, `g`, `b`. Without: classes.txt or labels.csv in the root;
                     without these, all masks are read once to see what classes there are
    ignore_label     the value of pixels that do not count; 255 unless said otherwise, None for no such value
    values           the values in the mask files that stand for the classes 0, 1, ..: [0, 255]
    colours          the colours (R, G, B) that stand for the classes 0, 1, .. where masks are coloured; or "table"
                     for those in the table of classes
    channels         1 for grey, 3 for colour images; without, as in the first image
    mean, std        of the training images in 0..1; without, ImageNet's, or 0.5 and 0.25 for grey images
    fraction, seed   how much of the images makes the "val" split where there are no lists, and another choice
    """

    def __init__(
        self,
        root: str | Path | None,
        split: str = "train",
        *,
        images: str = "images",
        masks: str = "masks",
        image_ending: str = "",
        mask_ending: str = "",
        classes: Sequence[str] | str | None = None,
        ignore_label: int | None = 255,
        values: Sequence[int] | None = None,
        colours: Sequence[Sequence[int]] | str | None = None,
        channels: int | None = None,
        mean: Sequence[float] | float | None = None,
        std: Sequence[float] | float | None = None,
        fraction: float = 0.2,
        seed: int = 0,
        strict: bool = True,
    ):
        folder = files.need_folder("folder", root, LAYOUT)
        for part in (images, masks):
            if not (folder / part).is_dir():
                raise DataError(f"folder: {folder} holds no folder {part}. Expected there:\n{LAYOUT}")
        if (folder / images / split).is_dir() and (folder / masks / split).is_dir():
            pairs, unpaired = _pair_up(folder / images / split, folder / masks / split, image_ending, mask_ending)
            chosen = list(pairs.values())
        else:
            pairs, unpaired = _pair_up(folder / images, folder / masks, image_ending, mask_ending)
            chosen = _of_split(folder, pairs, split, fraction, seed)
        if strict and _list_of(folder, split) is not None:
            unpaired = []  # the list says what is wanted, and what it wants is there

        names, table_colours = _classes(folder, classes, ignore_label)
        if colours == "table":
            if table_colours is None:
                raise DataError('folder: colours = "table" needs a table of classes with the columns r, g, b')
            colours = table_colours
        if isinstance(colours, str):
            raise DataError(f'folder: colours must be a list of (R, G, B), or "table"; got {colours!r}')
        if values is not None and colours is not None:
            raise DataError("folder: give either values or colours")
        count = len(values or colours or ())
        if names is None:
            count = count or _count_classes(
                [pair.mask for pair in pairs.values() if pair.mask], ignore_label, strict
            )
            names = tuple(f"class {label}" for label in range(count))
        elif count and count != len(names):
            raise DataError(
                f"folder: there are {len(names)} classes ({', '.join(names)}), but {count} values for them"
            )
        labels = None
        if values is not None:
            labels = {value: label for label, value in enumerate(values)}
            if ignore_label is not None:
                labels.setdefault(ignore_label, ignore_label)
        if channels is None:
            first = next(iter(pairs.values()), None)
            channels = 3 if first is None else files.image_channels(first.image)
        super().__init__(
            f"folder {folder.name} {split}",
            chosen,
            classes=names,
            ignore_label=None if values is not None and ignore_label in values else ignore_label,
            labels=labels,
            colours=colours,
            palette=table_colours if table_colours is not None else colours,
            channels=channels,
            mean=mean if mean is not None else (IMAGENET_MEAN if channels == 3 else 0.5),
            std=std if std is not None else (IMAGENET_STD if channels == 3 else 0.25),
            strict=strict,
            problems=unpaired,
        )


def _pair_up(images: Path, masks: Path, image_ending: str, mask_ending: str) -> tuple[dict[str, Pair], list[str]]:
    """The pairs by name, and a sentence about each image without mask and each mask without image."""
    found_images = _by_name(images, image_ending)
    found_masks = _by_name(masks, mask_ending)
    pairs = {
        name: Pair(name, found_images[name], found_masks[name]) for name in found_images if name in found_masks
    }
    problems = [
        f"{path}: has no mask, expected {masks / (name + mask_ending)}.png"
        for name, path in found_images.items()
        if name not in found_masks
    ]
    problems += [
        f"{path}: is a mask without an image, expected {images / (name + image_ending)}.*"
        for name, path in found_masks.items()
        if name not in found_images
    ]
    return pairs, problems


def _by_name(folder: Path, ending: str) -> dict[str, Path]:
    found = files.images_in(folder)
    return {stem.removesuffix(ending): path for stem, path in found.items() if stem.endswith(ending)}


def _of_split(folder: Path, pairs: dict[str, Pair], split: str, fraction: float, seed: int) -> list[Pair]:
    if split == "all":
        return list(pairs.values())
    path = _list_of(folder, split)
    if path is not None:
        names = [_name(line, pairs) for line in files.read_list(path)]
        unknown = [name for name in names if name not in pairs]
        if unknown:
            more = " and more" if len(unknown) > 5 else ""
            raise DataError(f"folder: no image with a mask for {', '.join(unknown[:5])}{more}, listed in {path}")
        return [pairs[name] for name in names]
    if split not in ("train", "val"):
        lists = [path.stem for path in (*folder.glob("*.txt"), *folder.glob("splits/*.txt"))]
        lists += ["train", "val", "all"]
        raise DataError(
            f"folder: no split {split!r} and no list {folder / split}.txt; {nearest(split, set(lists))}"
        )
    if not 0 < fraction < 1:
        raise DataError(f"folder: fraction must be between 0 and 1, got {fraction}")
    held_out = min(max(round(fraction * len(pairs)), 1), len(pairs) - 1)
    if held_out < 1:
        raise DataError(f"folder: {len(pairs)} images cannot be split; put them on lists, or use the split 'all'")
    chosen = set(np.random.default_rng(seed).permutation(len(pairs))[:held_out].tolist())
    ordered = [pairs[name] for name in sorted(pairs)]
    return [pair for place, pair in enumerate(ordered) if (place in chosen) == (split == "val")]


def _list_of(folder: Path, split: str) -> Path | None:
    """The file that lists the names of a split, if there is one."""
    paths = (folder / f"{split}.txt", folder / "splits" / f"{split}.txt")
    return next((path for path in paths if path.is_file()), None)


def _name(line: str, pairs: dict[str, Pair]) -> str:
    """The name of a line of a list: as it is, or the stem of a path."""
    return line if line in pairs else PurePosixPath(line.replace("\\", "/").split()[0]).stem


def _classes(
    folder: Path, classes: Sequence[str] | str | None, ignore_label: int | None
) -> tuple[tuple[str, ...] | None, list[tuple[int, int, int]] | None]:
    """The names of the classes and their colours, as far as they are known."""
    if classes is None:
        path = next((folder / name for name in ("classes.txt", "labels.csv") if (folder / name).is_file()), None)
        if path is None:
            return None, None
    elif isinstance(classes, str):
        path = folder / classes
    else:
        return tuple(classes), None
    lines = files.read_list(path)
    header = [word.strip().lower() for word in lines[0].split(",")]
    if "name" not in header:
        return tuple(lines[:-1] if ignore_label == len(lines) - 1 else lines), None
    rows = list(csv.DictReader(lines[1:], header, skipinitialspace=True))
    rows = [row for row in rows if row.get("id") != str(ignore_label)]
    ids = [row.get("id", str(place)) for place, row in enumerate(rows)]
    if ids != [str(place) for place in range(len(rows))]:
        raise DataError(
            f"folder: the ids in {path} must be 0, 1, 2, .. and the ignore label, got {', '.join(ids)}"
        )
    if not {"r", "g", "b"} <= set(header):
        return tuple(row["name"] for row in rows), None
    colours = [(int(row["r"]), int(row["g"]), int(row["b"])) for row in rows]
    return tuple(row["name"] for row in rows), colours


def _count_classes(masks: Sequence[Path], ignore_label: int | None, strict: bool) -> int:
    """The number of classes in masks of which nothing else is known: the highest value and one."""
    seen: dict[int, Path] = {}
    for path in masks:
        try:
            for value in value_counts(files.read_mask(path)):
                seen.setdefault(value, path)
        except DataError:
            if strict:
                raise
    values = sorted(set(seen) - {ignore_label})
    if set(seen) == {0, 255}:
        raise DataError(
            "folder: the masks hold 0 and 255 alone. If these are two classes, give values = [0, 255]; if 255 "
            "marks pixels that do not count, give the classes"
        )
    if not values:
        raise DataError("folder: the masks hold no class but the ignore label; give the classes")
    if values[0] < 0 or values[-1] >= MOST_CLASSES:
        listing = ", ".join(map(str, values[:10])) + (", .." if len(values) > 10 else "")
        raise DataError(
            f"folder: {seen[values[-1]]} holds the value {values[-1]}, more than a mask of classes should; the "
            f"values seen are {listing}. Give `values`, a list of those that stand for classes, or `classes`"
        )
    return values[-1] + 1

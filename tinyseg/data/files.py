"""Reading images, masks and lists of names from disk, with errors that name the file.

Masks are read in the integers in which they are stored. Pillow would gladly turn a palette mask into colours, or
a 16-bit one into 8 bits: nothing here asks it to.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from tinyseg.data.sample import DataError

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp", ".webp", ".ppm", ".pgm", ".gif")

GREY_MODES = ("1", "L", "LA", "I", "F", "I;16", "I;16L", "I;16B", "I;16N")


def read_image(path: Path, channels: int = 3, page: int = 0) -> np.ndarray:
    """An image as uint8 (H, W, channels), or as float32 in 0..1 where the file has 16 bits a channel.

    `channels` is 3 (RGB; a grey image is repeated) or 1 (grey; colours are weighted by ITU-R 601-2). An alpha
    channel is dropped. `page` counts the pages of a TIFF volume from 0. Pixels are taken as they are stored: an
    EXIF orientation is not obeyed, for the mask beside it has none.
    """
    return _read(path, page, lambda image: _image_array(path, image, channels))


def read_mask(path: Path, *, colours: Sequence[Sequence[int]] | None = None, page: int = 0) -> np.ndarray:
    """A mask as the integers that the file holds, (H, W), of the file's own type; a palette is not applied.

    With `colours`, a list of (R, G, B), the file's colours are looked up instead, and the result is each pixel's
    place in that list. A colour that is not in it is an error.
    """
    return _read(path, page, lambda image: _mask_array(path, image, colours))


def image_channels(path: Path) -> int:
    """1 for a grey image, 3 for one with colours. Only the head of the file is read."""
    return _read(path, 0, lambda image: 1 if image.mode in GREY_MODES else 3)


def image_size(path: Path) -> tuple[int, int]:
    """(height, width) of an image. Only the head of the file is read."""
    return _read(path, 0, lambda image: (image.height, image.width))


def page_count(path: Path) -> int:
    """The number of pages of a TIFF volume; 1 for other images."""
    return _read(path, 0, lambda image: getattr(image, "n_frames", 1))


def _read(path: Path, page: int, convert: Any) -> Any:
    """`convert` applied to the opened file. Whatever Pillow objects to becomes a DataError naming the file."""
    from PIL import Image

    try:
        with Image.open(path) as image:
            if page:
                image.seek(page)
            return convert(image)
    except DataError:
        raise
    except FileNotFoundError:
        raise DataError(f"{path}: no such file") from None
    except MemoryError:
        raise
    except Exception as error:  # Pillow's decoders raise OSError, SyntaxError, ValueError, EOFError, struct.error
        size = path.stat().st_size if path.is_file() else 0
        raise DataError(
            f"{path}: cannot be read as an image ({error}); the file has {size} bytes and is probably truncated "
            "or damaged: fetch it again, or take it off the list"
        ) from error


def _image_array(path: Path, image: Any, channels: int) -> np.ndarray:
    if channels not in (1, 3):
        raise ValueError(f"read_image: channels must be 1 (grey) or 3 (RGB), got {channels}")
    if image.mode.startswith("I") or image.mode == "F":
        array = _deep_grey(path, image)
        return np.repeat(array[:, :, None], channels, axis=2)
    if image.mode == "P" and "transparency" in image.info:
        image = image.convert("RGBA")  # Pillow warns about the direct way
    array = np.asarray(image.convert("L" if channels == 1 else "RGB"))
    return array.reshape(*array.shape[:2], channels)


def _deep_grey(path: Path, image: Any) -> np.ndarray:
    """16-bit and floating-point grey images, as float32 0..1."""
    array = np.asarray(image)
    if image.mode == "F":
        if not np.isfinite(array).all():
            raise DataError(f"{path}: holds NaN or infinite values")
        low, high = float(array.min()), float(array.max())
        if low < 0 or high > 1:
            raise DataError(f"{path}: floating-point images must have values 0..1, these are {low:g}..{high:g}")
        return array.astype(np.float32)
    return array.astype(np.float32) / np.float32(65535)


def _mask_array(path: Path, image: Any, colours: Sequence[Sequence[int]] | None) -> np.ndarray:
    if image.format == "JPEG":
        raise DataError(
            f"{path}: a mask must not be a JPEG: its compression mixes the labels along every border; "
            "make the masks again as PNG"
        )
    if colours is not None:
        return _by_colour(path, np.asarray(image.convert("RGBA").convert("RGB")), colours)
    if image.mode in ("1", "L", "P") or image.mode.startswith("I"):
        array = np.asarray(image)
        return array.astype(np.uint8) if array.dtype == bool else array
    if image.mode == "F":
        raise DataError(f"{path}: a mask must hold integers, this file holds floating-point numbers")
    array = np.asarray(image.convert("RGBA").convert("RGB"))
    if (array == array[:, :, :1]).all():
        kind = "its channels are equal, so it is a grey mask saved as RGB: save it with one channel"
    else:
        kind = "it holds colours, not class numbers: give each class's colour as `colours` to have them looked up"
    raise DataError(
        f"{path}: a mask must have one channel with the class of every pixel, this one is {image.mode}; {kind}"
    )


def _by_colour(path: Path, rgb: np.ndarray, colours: Sequence[Sequence[int]]) -> np.ndarray:
    """Each pixel's place in the list of colours, uint8 (H, W)."""
    table = np.asarray(colours)
    if table.ndim != 2 or table.shape[1] != 3 or len(table) > 255:
        raise DataError(f"colours must be a list of up to 255 triples (R, G, B), got {colours!r}")
    code = _colour_code(rgb)
    table_code = _colour_code(table)
    order = np.argsort(table_code)
    place = np.searchsorted(table_code[order], code).clip(max=len(order) - 1)
    label = order[place].astype(np.uint8)
    unknown = table_code[label] != code
    if unknown.any():
        strange, counts = np.unique(code[unknown], return_counts=True)
        listing = ", ".join(f"({c >> 16}, {c >> 8 & 255}, {c & 255})" for c in strange[np.argsort(-counts)][:5])
        raise DataError(
            f"{path}: {len(strange)} colours are not in the list of classes, most often {listing}; add them, or "
            "save the mask without compression losses and smoothed borders"
        )
    return label


def _colour_code(rgb: np.ndarray) -> np.ndarray:
    """One integer for each colour, so that colours can be sorted and compared."""
    rgb = rgb.astype(np.int64)
    return rgb[..., 0] << 16 | rgb[..., 1] << 8 | rgb[..., 2]


def read_list(path: Path) -> list[str]:
    """The lines of a text file that hold something: a byte-order mark, CRLF and blank lines do no harm."""
    try:
        text = path.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        raise DataError(f"{path}: no such list") from None
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: is not a text file in UTF-8 ({error})") from error
    lines = [line.strip() for line in text.splitlines()]
    lines = [line for line in lines if line]
    if not lines:
        raise DataError(f"{path}: the list is empty")
    return lines


def images_in(folder: Path) -> dict[str, Path]:
    """The image files of a folder by their stem, sorted with numbers in numerical order (2 before 10)."""
    found: dict[str, Path] = {}
    for path in sorted(folder.iterdir(), key=lambda path: _natural(path.name)):
        if path.suffix.lower() not in IMAGE_SUFFIXES or path.name.startswith(".") or not path.is_file():
            continue
        if path.stem in found:
            raise DataError(
                f"{folder}: {found[path.stem].name} and {path.name} have the same stem, so their pairing with the "
                "other folder is ambiguous; rename or remove one"
            )
        found[path.stem] = path
    return found


def _natural(name: str) -> list[tuple[int, int | str]]:
    """A sort key in which runs of digits count as numbers."""
    import re

    return [(0, int(part)) if part.isdigit() else (1, part) for part in re.split(r"(\d+)", name) if part]


def find_image(folder: Path, stem: str) -> Path:
    """The file `folder/stem.*` with the first of the known suffixes; with none, the name as PNG."""
    for suffix in IMAGE_SUFFIXES:
        path = folder / (stem + suffix)
        if path.is_file():
            return path
    return folder / (stem + ".png")


def need_folder(what: str, root: str | Path | None, layout: str) -> Path:
    """The folder as a path, if it is there; the error says which layout is expected inside."""
    if root is None:
        raise DataError(f"{what}: needs the folder of its images: give `root`. Expected inside:\n{layout}")
    path = Path(root).expanduser()
    if not path.is_dir():
        raise DataError(f"{what}: there is no folder {path}. Expected there:\n{layout}")
    return path

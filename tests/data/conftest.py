"""What the tests of the data sets share: real data where there is some, and small data sets written to disk."""

import csv
from pathlib import Path

import numpy as np
import pytest


@pytest.fixture
def real_set(real_data):
    """The folder of one of the real data sets; the test is skipped where it is missing."""

    def folder(name: str) -> Path:
        path = real_data / name
        if not path.is_dir():
            pytest.skip(f"no data at {path}")
        return path

    return folder


@pytest.fixture
def table():
    """The rows of a CSV file, as dictionaries."""

    def rows(path: Path) -> list[dict[str, str]]:
        with path.open(newline="") as file:
            return list(csv.DictReader(file))

    return rows


@pytest.fixture
def save():
    """Write an array as an image file, with its folders: save(path, array), or save(path, array, mode="P")."""

    def write(path: Path, array, mode: str | None = None, **options) -> Path:
        from PIL import Image

        image = Image.fromarray(np.asarray(array))
        if mode is not None and mode != image.mode:
            image = image.convert(mode)
        path.parent.mkdir(parents=True, exist_ok=True)
        image.save(path, **options)
        return path

    return write


@pytest.fixture
def save_palette():
    """Write class indices as a palette PNG whose colours say nothing about them."""

    def write(path: Path, indices, palette=None) -> Path:
        from PIL import Image

        image = Image.fromarray(np.asarray(indices, np.uint8))
        image.putpalette(list(palette) if palette is not None else [(97 * k + 11) % 256 for k in range(768)])
        path.parent.mkdir(parents=True, exist_ok=True)
        image.save(path)
        return path

    return write

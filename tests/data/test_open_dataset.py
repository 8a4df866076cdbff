import subprocess
import sys

import pytest

from tinyseg.data import DATASETS, DataError, Shapes, open_dataset


def test_data_sets_by_name():
    assert set(DATASETS) == {"camvid", "cityscapes", "folder", "isbi", "shapes", "voc"}
    dataset = open_dataset("shapes", split="val", length=3, size=[32, 48])
    assert isinstance(dataset, Shapes) and len(dataset) == 3 and dataset[0].image.shape == (32, 48, 3)


def test_real_data_sets_have_all_that_is_asked_of_them(real_set):
    opened = [
        open_dataset("camvid", real_set("camvid"), "val"),
        open_dataset("isbi", real_set("isbi2012"), "val"),
        open_dataset("voc", real_set("voc_sample"), "val"),
        open_dataset("cityscapes", real_set("others/cityscapes_layout"), "val"),
        open_dataset("folder", real_set("others/dsb2018_fluo256"), "val", values=[0, 255]),
        open_dataset("shapes"),
    ]
    for dataset in opened:
        image, mask, _, name = dataset[len(dataset) - 1]
        assert image.shape == (*mask.shape, dataset.channels)
        assert dataset.palette.shape == (len(dataset.classes), 3)
        assert dataset.mean.shape == dataset.std.shape == (dataset.channels,)
        assert name and str(len(dataset)) in repr(dataset)
        with pytest.raises(IndexError):
            dataset[len(dataset)]


def test_unknown_names():
    with pytest.raises(DataError, match="no data set 'shape'; did you mean 'shapes'"):
        open_dataset("shape")
    with pytest.raises(DataError, match="shapes: there is no option 'lenght'; did you mean 'length'"):
        open_dataset("shapes", lenght=3)
    with pytest.raises(DataError, match="voc: needs the folder of its images"):
        open_dataset("voc")


def test_importing_the_package_loads_numpy_alone():
    code = (
        "import sys, tinyseg.data; print([m for m in ('scipy', 'PIL', 'numba', 'matplotlib') if m in sys.modules])"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"

import numpy as np
import pytest

from tinyseg.data import DataError, Shapes
from tinyseg.data.shapes import OUTLINES


def test_a_picture_depends_on_seed_split_and_number_alone():
    backwards = [Shapes(seed=3)[i] for i in (7, 2)]
    forwards = [Shapes(seed=3, length=8)[i] for i in (2, 7)]
    for one, other in zip(backwards, forwards[::-1], strict=True):
        np.testing.assert_array_equal(one.image, other.image)
        np.testing.assert_array_equal(one.mask, other.mask)
    pictures = {
        Shapes("train", seed=3)[2].image.tobytes(),
        Shapes("train", seed=4)[2].image.tobytes(),
        Shapes("val", seed=3)[2].image.tobytes(),
        Shapes("train", seed=3)[3].image.tobytes(),
    }
    assert len(pictures) == 4


@pytest.mark.parametrize("size", [(128, 128), (17, 40), (96, 31), (300, 64)])
def test_any_size(size):
    dataset = Shapes("val", size=size)
    for i in range(5):
        image, mask, weights, name = dataset[i]
        assert image.shape == (*size, 3) and image.dtype == np.uint8
        assert mask.shape == size and mask.dtype == np.uint8
        assert weights is None and name == f"val-{i:05d}"
        assert mask.max() < len(dataset.classes)


def test_every_class_is_common_and_the_statistics_are_as_stated():
    dataset = Shapes()
    samples = [dataset[i] for i in range(150)]
    masks = np.stack([sample.mask for sample in samples])
    share = np.bincount(masks.reshape(-1), minlength=6) / masks.size
    assert len(share) == len(dataset.classes) == len(dataset.palette) == 6
    assert 0.6 < share[0] < 0.85
    assert share[1:].min() > 0.03
    images = np.stack([sample.image for sample in samples]) / 255
    np.testing.assert_allclose(images.mean((0, 1, 2)), dataset.mean, atol=0.04)
    np.testing.assert_allclose(images.std((0, 1, 2)), dataset.std, atol=0.04)


def test_with_any_surface_colour_does_not_tell_the_class():
    """The mean colour of a class over many pictures is the same for all of them, and it varies as widely."""
    dataset = Shapes(surfaces="any")
    colours = {label: [] for label in range(6)}
    for i in range(150):
        image, mask, *_ = dataset[i]
        for label in np.unique(mask):
            colours[int(label)].append(image[mask == label].mean(axis=0) / 255)
    for label in range(1, 6):
        np.testing.assert_allclose(np.mean(colours[label], axis=0), 0.46, atol=0.1)
        assert np.std(colours[label], axis=0).min() > 0.2


def test_outlines_have_the_areas_of_their_figures():
    """Each outline, at radius 100, against the area of the figure by formula."""
    v, u = np.mgrid[-150:151, -150:151].astype(np.float32)
    area = {label: np.count_nonzero(outline(u, v, np.float32(100)) <= 0) for label, outline in OUTLINES.items()}
    expected = {
        1: np.pi * 90**2,
        2: np.pi * (95**2 - 45**2),
        3: 156**2,
        4: 3 * np.sqrt(3) * 62**2,  # an equilateral triangle with an inscribed circle of radius 62
        5: 2 * 196 * 60 - 60**2,
    }
    for label, value in expected.items():
        assert area[label] == pytest.approx(value, rel=0.02), label


def test_nothing_is_hidden_when_occlusion_is_zero():
    dataset = Shapes(occlusion=0.0, objects=(2, 2), noise=0.0)
    from scipy import ndimage

    for i in range(20):
        mask = dataset[i].mask
        for label in range(1, 6):
            _, count = ndimage.label(mask == label, np.ones((3, 3)))
            assert count <= 2


def test_fewer_kinds():
    dataset = Shapes(kinds=2, size=(32, 32))
    assert dataset.classes == ("background", "disk", "ring") and len(dataset.palette) == 3
    assert {int(label) for i in range(20) for label in np.unique(dataset[i].mask)} == {0, 1, 2}


def test_wrong_settings():
    with pytest.raises(DataError, match="no split 'valid'; did you mean 'val'"):
        Shapes("valid")
    with pytest.raises(DataError, match="size must be two integers of at least 16"):
        Shapes(size=(8, 128))
    with pytest.raises(DataError, match=r"objects must be \(least, most\)"):
        Shapes(objects=(5, 2))
    with pytest.raises(DataError, match='surfaces must be "own" or "any", got \'all\''):
        Shapes(surfaces="all")
    with pytest.raises(DataError, match="kinds must be 1 to 5, got 6"):
        Shapes(kinds=6)
    with pytest.raises(DataError, match="length must be 1 or more"):
        Shapes(length=0)
    with pytest.raises(IndexError, match="no number 800"):
        Shapes()[800]

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage

from tinyseg.data import DataError, Sample, Shapes
from tinyseg.data.transforms import (
    TRANSFORMS,
    Blur,
    Brightness,
    Compose,
    Contrast,
    Crop,
    Elastic,
    Flip,
    Gamma,
    Noise,
    Normalise,
    Resize,
    Rotate,
    Rotate90,
    Saturation,
    Scale,
    build,
)

IGNORE = 255
PIXEL_MOVERS = [
    Flip(horizontal=0.5, vertical=0.5),
    Rotate90(),
    Crop(size=(13, 9)),
    Crop(size=(60, 21), ignore_label=IGNORE),
    Crop(size=(60, 90)),
    Crop(size=(20, 20), random=False),
    Resize(size=(31, 50)),
    Scale(low=0.5, high=1.8),
    Rotate(degrees=40, ignore_label=IGNORE),
    Rotate(degrees=40),
    Elastic(sigma=1.5),
    Elastic(sigma=1, grid=5, ignore_label=IGNORE, border="constant"),
]
COLOUR_CHANGERS = [Brightness(), Contrast(), Saturation(), Gamma(), Noise(), Blur(), Normalise((0.5,), (0.2,))]


def coded(rng: np.random.Generator, height: int = 40, width: int = 33, channels: int = 1) -> Sample:
    """A sample of large regions whose grey value and weight are its label / 8."""
    coarse = rng.integers(1, 8, (3, 3))
    mask = np.kron(coarse, np.ones((-(-height // 3), -(-width // 3)), int))[:height, :width].astype(np.uint8)
    image = np.repeat(mask[:, :, None] / np.float32(8), channels, axis=2).astype(np.float32)
    return Sample(image, mask, image[:, :, 0].copy(), "coded")


@pytest.mark.parametrize("transform", PIXEL_MOVERS, ids=repr)
@given(seed=st.integers(0, 10_000))
@settings(max_examples=15)
def test_image_mask_and_weights_move_together(transform, seed):
    """Away from borders between regions, where the image is interpolated, image and weights tell the label."""
    rng = np.random.default_rng(seed)
    before = coded(rng)
    image, mask, weights, name = transform(before, rng)
    assert name == "coded"
    assert image.shape[:2] == mask.shape == weights.shape
    assert mask.dtype == np.uint8
    assert set(np.unique(mask)) <= set(np.unique(before.mask)) | {IGNORE}
    inner = ndimage.minimum_filter(mask, 3) == ndimage.maximum_filter(mask, 3)
    inner &= mask != IGNORE
    np.testing.assert_allclose(image[inner, 0], mask[inner] / 8, atol=1e-5)
    np.testing.assert_allclose(weights[inner], mask[inner] / 8, atol=1e-5)


@pytest.mark.parametrize("transform", PIXEL_MOVERS, ids=repr)
def test_uint8_images_give_what_floats_give(transform):
    rng = np.random.default_rng(3)
    image = rng.integers(0, 256, (40, 33, 3)).astype(np.uint8)
    mask = rng.integers(0, 5, (40, 33))
    one = transform(Sample(image, mask), np.random.default_rng(1))
    other = transform(Sample(image / np.float32(255), mask), np.random.default_rng(1))
    scale = 255 if one.image.dtype == np.uint8 else 1
    np.testing.assert_allclose(one.image / scale, other.image, atol=0.51 / 255)  # the fill colour is rounded
    np.testing.assert_array_equal(one.mask, other.mask)
    assert one.mask.dtype == mask.dtype


@pytest.mark.parametrize("transform", COLOUR_CHANGERS, ids=repr)
@pytest.mark.parametrize("channels", [1, 3])
def test_colour_changes_leave_mask_and_input_alone(transform, channels):
    rng = np.random.default_rng(0)
    image = rng.integers(0, 256, (12, 15, channels)).astype(np.uint8)
    mask = rng.integers(0, 3, (12, 15)).astype(np.uint8)
    original = image.copy()
    result = transform(Sample(image, mask, name="x"), rng)
    assert result.mask is mask and result.name == "x"
    np.testing.assert_array_equal(image, original)
    assert result.image.dtype == np.float32 and result.image.shape == image.shape
    if not isinstance(transform, Normalise):
        assert result.image.min() >= 0 and result.image.max() <= 1


@pytest.mark.parametrize("transform", PIXEL_MOVERS + COLOUR_CHANGERS, ids=repr)
def test_the_generator_alone_decides(transform):
    sample = Shapes(size=(32, 40))[0]
    first, again = (transform(sample, np.random.default_rng(8)) for _ in range(2))
    np.testing.assert_array_equal(first.image, again.image)
    np.testing.assert_array_equal(first.mask, again.mask)


@pytest.mark.parametrize("transform", PIXEL_MOVERS + COLOUR_CHANGERS, ids=repr)
def test_samples_without_mask_pass(transform):
    result = transform(Sample(np.full((40, 33, 1), 0.5, np.float32)), np.random.default_rng(0))
    assert result.mask is None and result.weights is None


# ------------------------------------------------------------------------------------------------------ by hand


def small() -> Sample:
    image = np.arange(6, dtype=np.float32).reshape(2, 3, 1) / 10
    return Sample(image, np.array([[0, 1, 2], [3, 4, 5]], np.uint8))


def test_flip_by_hand():
    rng = np.random.default_rng(0)
    assert Flip(1.0, 0.0)(small(), rng).mask.tolist() == [[2, 1, 0], [5, 4, 3]]
    assert Flip(0.0, 1.0)(small(), rng).mask.tolist() == [[3, 4, 5], [0, 1, 2]]
    assert Flip(0.0, 0.0)(small(), rng).mask.tolist() == [[0, 1, 2], [3, 4, 5]]


def test_rotate90_reaches_all_four_positions():
    rng = np.random.default_rng(0)
    seen = {str(Rotate90()(small(), rng).mask.tolist()) for _ in range(40)}
    assert seen == {
        "[[0, 1, 2], [3, 4, 5]]",
        "[[2, 5], [1, 4], [0, 3]]",
        "[[5, 4, 3], [2, 1, 0]]",
        "[[3, 0], [4, 1], [5, 2]]",
    }


def test_crop_reaches_every_place_and_no_other():
    rng = np.random.default_rng(0)
    seen = {str(Crop(size=(1, 2))(small(), rng).mask.tolist()) for _ in range(60)}
    assert seen == {"[[0, 1]]", "[[1, 2]]", "[[3, 4]]", "[[4, 5]]"}


def test_crop_fills_up_with_mean_ignore_label_and_weight_zero():
    sample = Sample(small().image, small().mask, np.ones((2, 3), np.float32))
    image, mask, weights, _ = Crop(size=(3, 5), fill=(0.9,), ignore_label=255)(sample, np.random.default_rng(0))
    assert mask.tolist() == [[255, 0, 1, 2, 255], [255, 3, 4, 5, 255], [255] * 5]
    np.testing.assert_allclose(image[:, :, 0], [[0.9, 0, 0.1, 0.2, 0.9], [0.9, 0.3, 0.4, 0.5, 0.9], [0.9] * 5])
    assert weights.tolist() == [[0, 1, 1, 1, 0], [0, 1, 1, 1, 0], [0] * 5]


def test_crop_mirrors_without_an_ignore_label():
    mask = Crop(size=(2, 7))(small(), np.random.default_rng(0)).mask
    assert mask.tolist() == [[2, 1, 0, 1, 2, 1, 0], [5, 4, 3, 4, 5, 4, 3]]


def test_an_ignore_label_that_does_not_fit_the_type_of_the_mask():
    mask = Crop(size=(2, 4), ignore_label=-1)(small(), np.random.default_rng(0)).mask
    assert mask.tolist() == [[0, 1, 2, -1], [3, 4, 5, -1]]


def test_resize_by_hand():
    """Doubling a row of two pixels reads it at -1/4, 1/4, 3/4 and 5/4, kept inside."""
    sample = Sample(np.array([0.0, 1.0], np.float32).reshape(1, 2, 1), np.array([[3, 7]]))
    result = Resize(size=(1, 4))(sample, np.random.default_rng(0))
    np.testing.assert_allclose(result.image.reshape(-1), [0, 0.25, 0.75, 1])
    assert result.mask.tolist() == [[3, 3, 7, 7]]


@pytest.mark.oracle
@pytest.mark.parametrize("size", [(31, 50), (7, 90), (40, 33), (80, 66), (1, 1)])
def test_resize_agrees_with_torch(torch, size):
    image = np.random.default_rng(0).random((40, 33, 3)).astype(np.float32)
    ours = Resize(size=size)(Sample(image), np.random.default_rng(0)).image
    theirs = torch.nn.functional.interpolate(
        torch.from_numpy(image).permute(2, 0, 1)[None], size=size, mode="bilinear", align_corners=False
    )
    np.testing.assert_allclose(ours, theirs[0].permute(1, 2, 0).numpy(), atol=1e-5)


def test_rotating_by_a_right_angle_is_exact():
    class Right(np.random.Generator):
        def uniform(self, low, high):
            return 90.0

    sample = Sample(np.arange(9, dtype=np.float32).reshape(3, 3, 1) / 10, np.arange(9).reshape(3, 3))
    result = Rotate(degrees=90)(sample, Right(np.random.PCG64(0)))
    turned = [np.rot90(sample.mask).tolist(), np.rot90(sample.mask, -1).tolist()]
    assert result.mask.tolist() in turned
    np.testing.assert_allclose(result.image[:, :, 0] * 10, result.mask, atol=1e-5)


def test_elastic_moves_the_corners_of_the_grid_by_the_drawn_vectors():
    """The image holds its own row and column; at a point of the grid the displacement is the random vector."""
    row, column = np.mgrid[0:61, 0:81].astype(np.float32)
    sample = Sample(np.stack([row, column], axis=2), None)
    result = Elastic(sigma=3)(sample, np.random.default_rng(5))
    drawn = np.random.default_rng(5).normal(0, 3, (2, 3, 3))
    middle = result.image[30, 40] - [30, 40]
    np.testing.assert_allclose(middle, drawn[:, 1, 1], atol=1e-3)
    top = result.image[0, 40]  # beyond the top edge rows are mirrored
    np.testing.assert_allclose(top, [abs(drawn[0, 0, 1]), 40 + drawn[1, 0, 1]], atol=1e-3)


def test_elastic_is_smooth():
    row, column = np.mgrid[0:61, 0:81].astype(np.float32)
    moved = Elastic(sigma=2)(Sample(np.stack([row, column], axis=2)), np.random.default_rng(1)).image
    inner = moved[12:-12, 12:-12]
    assert np.abs(np.diff(inner, 2, axis=0)).max() < 0.05
    assert np.abs(np.diff(inner, 2, axis=1)).max() < 0.05


def test_normalise_by_hand():
    sample = Sample(np.array([[[0, 51, 255]]], np.uint8))
    result = Normalise((0.0, 0.2, 0.5), (0.5, 1.0, 0.25))(sample, np.random.default_rng(0))
    np.testing.assert_allclose(result.image, [[[0, 0, 2]]], atol=1e-7)


def test_brightness_contrast_gamma_by_hand():
    class Highest(np.random.Generator):
        def uniform(self, low, high):
            return high

    rng = Highest(np.random.PCG64(0))
    sample = Sample(np.array([0.25, 0.75], np.float32).reshape(1, 2, 1))
    np.testing.assert_allclose(Brightness(0.5)(sample, rng).image.reshape(-1), [0.75, 1.0])
    np.testing.assert_allclose(Contrast(0.5)(sample, rng).image.reshape(-1), [0.125, 0.875])
    np.testing.assert_allclose(Gamma(1.0)(sample, rng).image.reshape(-1), [0.0625, 0.5625], rtol=1e-6)


# ------------------------------------------------------------------------------------------------ configuration


class Photographs:
    classes = ("a", "b")
    ignore_label = 255
    palette = np.zeros((2, 3), np.uint8)
    channels = 3
    mean = np.array([0.5, 0.25, 0.75], np.float32)
    std = np.array([0.25, 0.25, 0.25], np.float32)

    def __len__(self):
        return 0

    def __getitem__(self, index):
        raise IndexError


def test_build_reads_tables_and_fills_in_what_the_data_set_knows():
    transform = build(
        [
            {"name": "scale", "low": 1, "high": 2.0},
            {"name": "crop", "size": [96, 128]},
            {"name": "flip"},
            {"name": "rotate", "border": "mirror"},
            {"name": "normalise", "std": 0.5},
        ],
        Photographs(),
    )
    mean = (0.5, 0.25, 0.75)
    assert transform == Compose(
        [
            Scale(1.0, 2.0),
            Crop((96, 128), fill=mean, ignore_label=255),
            Flip(),
            Rotate(fill=mean, ignore_label=255, border="mirror"),
            Normalise(mean, (0.5,)),
        ]
    )
    assert build([{"name": "crop", "size": 64}]) == Compose([Crop((64, 64))])
    assert build([]) == Compose([])


def test_all_transforms_can_be_configured_by_name():
    assert set(TRANSFORMS) == {
        "flip", "rotate90", "crop", "resize", "scale", "rotate", "elastic", "brightness", "contrast", "saturation",
        "gamma", "noise", "blur", "normalise",
    }  # fmt: skip


@pytest.mark.parametrize(
    "table, error, message",
    [
        ({"name": "flipp"}, ValueError, "there is no 'flipp'; did you mean 'flip'?"),
        (
            {"name": "flip", "horizontl": 1},
            ValueError,
            "flip has no setting 'horizontl'; did you mean 'horizontal'",
        ),
        ({"name": "flip", "horizontal": "yes"}, TypeError, "flip.horizontal must be float, got 'yes'"),
        ({"name": "flip", "horizontal": True}, TypeError, "flip.horizontal must be float, got True"),
        ({"name": "elastic", "grid": 3.5}, TypeError, "elastic.grid must be int, got 3.5"),
        ({"name": "elastic", "grid": 1}, ValueError, "elastic: grid must be at least 2, got 1"),
        ({"name": "crop", "size": [1.5, 2]}, TypeError, "two integers"),
        ({"name": "crop", "size": [0, 2]}, ValueError, "size must be at least 1"),
        ({"name": "crop"}, ValueError, "crop needs size"),
        ({"name": "crop", "size": 9, "border": "wrap"}, ValueError, 'border must be "constant" or "mirror"'),
        ({"name": "crop", "size": 9, "border": "constant"}, ValueError, "needs an ignore_label"),
        ({"name": "normalise"}, ValueError, "normalise needs mean and std"),
        ({"name": "normalise", "mean": 0, "std": 0}, ValueError, "std must be above 0"),
        ({"name": "scale", "low": 2, "high": 1}, ValueError, "0 < low <= high"),
        ({"name": "noise", "sigma": -1}, ValueError, "sigma must be at least 0"),
        ({"horizontal": 0.5}, TypeError, "a table with a name"),
        ("flip", TypeError, "a table with a name"),
    ],
)
def test_wrong_tables(table, error, message):
    with pytest.raises(error, match=message):
        build([table])


def test_normalise_comes_last():
    with pytest.raises(ValueError, match="normalise must be the last"):
        build([{"name": "normalise", "mean": 0.5, "std": 0.5}, {"name": "gamma"}])


def test_one_number_for_each_channel():
    with pytest.raises(DataError, match="one for each of the 1 channels"):
        Normalise((0.1, 0.2), (1.0,))(Sample(np.zeros((2, 2, 1), np.uint8)), np.random.default_rng(0))

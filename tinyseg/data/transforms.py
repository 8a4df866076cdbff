"""Augmentation: random changes to an image and its mask, made together.

Each transform is a small object; called with a sample and a random generator it returns a new sample. The settings
are its fields:

    transform = Compose([Crop(size=(96, 96)), Flip(), Elastic(sigma=10.0), Normalise(mean, std)])
    sample = transform(sample, np.random.default_rng(0))

or, as a configuration file writes them, with what the data set knows filled in (see `build`):

    transform = build([{"name": "crop", "size": [96, 96]}, {"name": "flip"}, {"name": "normalise"}], dataset)

Rules. What moves pixels moves image, mask and weights by the same amount. Images and weights are interpolated
linearly; a mask takes the label of the nearest pixel, and stays an integer throughout. Where a result reaches
beyond the picture, the image gets its mean colour, the mask the ignore label and the weights 0; without an ignore
label, or on request, the picture is mirrored at its border. What changes only colours leaves the mask alone.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import MISSING, dataclass, fields
from typing import Any, ClassVar

import numpy as np

from tinyseg.data.sample import Dataset, Sample, as_float, nearest, per_channel


class Transform:
    """What the transforms share: they are called with a sample and a generator."""

    moves_pixels: ClassVar[bool] = False

    def __call__(self, sample: Sample, rng: np.random.Generator) -> Sample:
        raise NotImplementedError


@dataclass(frozen=True)
class Compose(Transform):
    """One transform after the other. Each draws from the same generator, in this order."""

    transforms: Sequence[Transform]

    def __call__(self, sample: Sample, rng: np.random.Generator) -> Sample:
        for transform in self.transforms:
            sample = transform(sample, rng)
        return sample


# ------------------------------------------------------------------------------------------ moves whole pixels


@dataclass(frozen=True)
class Flip(Transform):
    """Mirror left and right, and top and bottom, each with its own probability."""

    horizontal: float = 0.5
    vertical: float = 0.0

    def __call__(self, sample: Sample, rng: np.random.Generator) -> Sample:
        left_right, up_down = rng.random(2) < (self.horizontal, self.vertical)
        rows = slice(None, None, -1) if up_down else slice(None)
        columns = slice(None, None, -1) if left_right else slice(None)
        return _on_all(sample, lambda array: array[rows, columns])


@dataclass(frozen=True)
class Rotate90(Transform):
    """Turn by 0, 90, 180 or 270 degrees. Height and width change places at 90 and 270."""

    def __call__(self, sample: Sample, rng: np.random.Generator) -> Sample:
        turns = int(rng.integers(4))
        return _on_all(sample, lambda array: np.rot90(array, turns))


@dataclass(frozen=True)
class Crop(Transform):
    """Cut out a rectangle at a random place, or in the middle; what is smaller is filled up first.

    size    (height, width)
    random  a random place; otherwise the middle
    fill    the value of added pixels, one for each channel or one for all, in 0..1
    ignore_label, border
            of added pixels: see the module's rules; border is "constant" or "mirror"
    """

    size: tuple[int, int]
    random: bool = True
    fill: tuple[float, ...] = (0.5,)
    ignore_label: int | None = None
    border: str = ""

    def __post_init__(self) -> None:
        _at_least("crop", "size", 1, *self.size)
        _check_border("crop", self.border, self.ignore_label)

    def __call__(self, sample: Sample, rng: np.random.Generator) -> Sample:
        room = [have - want for have, want in zip(sample.image.shape[:2], self.size, strict=True)]
        if min(room) < 0:
            before = [max(-side, 0) // 2 for side in room]
            after = [max(-side, 0) - first for side, first in zip(room, before, strict=True)]
            sample = self._fill_up(sample, tuple(zip(before, after, strict=True)))
        start = [int(rng.integers(side + 1)) if self.random else side // 2 for side in np.maximum(room, 0)]
        rows, columns = (slice(first, first + length) for first, length in zip(start, self.size, strict=True))
        return _on_all(sample, lambda array: array[rows, columns])

    def _fill_up(self, sample: Sample, widths: tuple[tuple[int, int], ...]) -> Sample:
        if _mirrored(self.border, self.ignore_label):
            return _on_all(sample, lambda array: np.pad(array, widths + ((0, 0),) * (array.ndim - 2), "reflect"))

        def padded(array: np.ndarray, value: Any) -> np.ndarray:
            shape = [side + sum(width) for side, width in zip(array.shape[:2], widths, strict=True)]
            result = np.empty((*shape, *array.shape[2:]), array.dtype)
            result[...] = value
            (top, _), (left, _) = widths
            result[top : top + array.shape[0], left : left + array.shape[1]] = array
            return result

        image, mask, weights, name = sample
        return Sample(
            padded(image, _as_stored(self.fill, image)),
            None if mask is None else padded(_holding(mask, self.ignore_label), self.ignore_label),
            None if weights is None else padded(weights, 0),
            name,
        )


# --------------------------------------------------------------------------------------- moves between the pixels


@dataclass(frozen=True)
class Resize(Transform):
    """Bring the sample to a size (height, width)."""

    size: tuple[int, int]

    def __post_init__(self) -> None:
        _at_least("resize", "size", 1, *self.size)

    def __call__(self, sample: Sample, rng: np.random.Generator) -> Sample:
        return _resized(sample, self.size)


@dataclass(frozen=True)
class Scale(Transform):
    """Enlarge or shrink by a random factor; the logarithm of the factor is uniform."""

    low: float = 0.5
    high: float = 2.0

    def __post_init__(self) -> None:
        if not 0 < self.low <= self.high:
            raise ValueError(f"scale: low and high must be 0 < low <= high, got {self.low} and {self.high}")

    def __call__(self, sample: Sample, rng: np.random.Generator) -> Sample:
        factor = np.exp(rng.uniform(np.log(self.low), np.log(self.high)))
        height, width = (max(1, round(side * factor)) for side in sample.image.shape[:2])
        return _resized(sample, (height, width))


@dataclass(frozen=True)
class Rotate(Transform):
    """Turn by a random angle of up to `degrees` in both directions, around the middle; the size stays."""

    degrees: float = 15.0
    fill: tuple[float, ...] = (0.5,)
    ignore_label: int | None = None
    border: str = ""

    def __post_init__(self) -> None:
        _check_border("rotate", self.border, self.ignore_label)

    def __call__(self, sample: Sample, rng: np.random.Generator) -> Sample:
        angle = np.deg2rad(rng.uniform(-self.degrees, self.degrees))
        height, width = sample.image.shape[:2]
        row = np.arange(height)[:, None] - (height - 1) / 2
        column = np.arange(width)[None, :] - (width - 1) / 2
        rows = np.cos(angle) * row - np.sin(angle) * column + (height - 1) / 2
        columns = np.sin(angle) * row + np.cos(angle) * column + (width - 1) / 2
        return _moved(sample, rows, columns, self.fill, self.ignore_label, self.border)


@dataclass(frozen=True)
class Elastic(Transform):
    """U-Net's elastic deformation: smooth random displacements.

    Each point of a coarse grid over the image (3 x 3 in the paper) is displaced by a normal random vector of
    standard deviation `sigma` pixels (10 in the paper); in between, cubic splines interpolate the displacement
    ("bicubic" in the paper). Borders are mirrored unless said otherwise.

    Source: Ronneberger, Fischer & Brox, MICCAI 2015, section 3.1.
    """

    sigma: float = 10.0
    grid: int = 3
    probability: float = 1.0
    fill: tuple[float, ...] = (0.5,)
    ignore_label: int | None = None
    border: str = "mirror"

    def __post_init__(self) -> None:
        _at_least("elastic", "grid", 2, self.grid)
        _at_least("elastic", "sigma", 0, self.sigma)
        _check_border("elastic", self.border, self.ignore_label)

    def __call__(self, sample: Sample, rng: np.random.Generator) -> Sample:
        displacement = rng.normal(0, self.sigma, (2, self.grid, self.grid))
        if rng.random() >= self.probability:
            return sample
        height, width = sample.image.shape[:2]
        # Splines in two dimensions are products of those in one: a matrix for each axis.
        down, across = _spline_basis(height, self.grid), _spline_basis(width, self.grid)
        rows = np.arange(height)[:, None] + down @ displacement[0] @ across.T
        columns = np.arange(width)[None, :] + down @ displacement[1] @ across.T
        return _moved(sample, rows, columns, self.fill, self.ignore_label, self.border)


def _spline_basis(size: int, grid: int) -> np.ndarray:
    """How much each of `grid` even points on an axis weighs at each of its `size` pixels: (size, grid)."""
    from scipy import ndimage

    place = np.linspace(0, grid - 1, size)[None, :]
    points = np.eye(grid)
    return np.stack([ndimage.map_coordinates(row, place, order=3, mode="mirror") for row in points], axis=1)


def _resized(sample: Sample, size: tuple[int, int]) -> Sample:
    """Pixel centres at (i + 1/2) * old / new - 1/2; no smoothing when shrinking, as mask and image go together."""
    if tuple(size) == sample.image.shape[:2]:
        return sample
    height, width = sample.image.shape[:2]
    rows = ((np.arange(size[0]) + 0.5) * height / size[0] - 0.5).clip(0, height - 1)
    columns = ((np.arange(size[1]) + 0.5) * width / size[1] - 0.5).clip(0, width - 1)

    def separable(array: np.ndarray) -> np.ndarray:
        return _linear(_linear(array, rows, axis=0), columns, axis=1)

    near = np.ix_(np.rint(rows).astype(int), np.rint(columns).astype(int))
    image, mask, weights, name = sample
    return Sample(
        separable(as_float(image)),
        None if mask is None else mask[near],
        None if weights is None else separable(weights),
        name,
    )


def _linear(array: np.ndarray, place: np.ndarray, axis: int) -> np.ndarray:
    """Interpolate linearly along an axis at these places, which lie inside it."""
    low = np.minimum(place.astype(int), array.shape[axis] - 1)
    high = np.minimum(low + 1, array.shape[axis] - 1)
    part = (place - low).astype(array.dtype).reshape([-1 if a == axis else 1 for a in range(array.ndim)])
    first, second = np.take(array, low, axis), np.take(array, high, axis)
    return first + part * (second - first)


def _moved(
    sample: Sample,
    rows: np.ndarray,
    columns: np.ndarray,
    fill: Sequence[float],
    ignore_label: int | None,
    border: str,
) -> Sample:
    """The sample read at the places (rows, columns), each (H, W), in pixels."""
    from scipy import ndimage

    place = np.stack(np.broadcast_arrays(rows, columns)).astype(np.float32)
    outside = np.zeros(place.shape[1:], bool)
    for coordinate, size in zip(place, sample.image.shape[:2], strict=True):  # views
        if _mirrored(border, ignore_label):
            period = max(2 * (size - 1), 1)
            coordinate[...] = np.abs((coordinate + size - 1) % period - (size - 1)) if size > 1 else 0
        else:
            outside |= (coordinate < -0.5) | (coordinate > size - 0.5)
            np.clip(coordinate, 0, size - 1, out=coordinate)

    def interpolated(array: np.ndarray, value: float) -> np.ndarray:
        result = ndimage.map_coordinates(array, place, order=1, mode="nearest", prefilter=False)
        result[outside] = value
        return result

    image, mask, weights, name = sample
    image = as_float(image)
    values = per_channel("fill", fill, image.shape[2])
    image = np.stack([interpolated(image[:, :, c], values[c]) for c in range(image.shape[2])], axis=2)
    if mask is not None:
        row, column = np.rint(place).astype(np.intp)  # the nearest pixel: no label is interpolated
        mask = _holding(mask, ignore_label)[row, column]
        if outside.any():
            mask[outside] = ignore_label
    if weights is not None:
        weights = interpolated(weights, 0.0)
    return Sample(image, mask, weights, name)


# ----------------------------------------------------------------------------------------------- changes colours


@dataclass(frozen=True)
class Brightness(Transform):
    """Add a random number of up to `amount` to all pixels, up or down."""

    amount: float = 0.2

    def __call__(self, sample: Sample, rng: np.random.Generator) -> Sample:
        change = np.float32(rng.uniform(-self.amount, self.amount))
        return sample._replace(image=(as_float(sample.image) + change).clip(0, 1))


@dataclass(frozen=True)
class Contrast(Transform):
    """Stretch the values around the image's mean by a random factor from 1 - amount to 1 + amount."""

    amount: float = 0.2

    def __call__(self, sample: Sample, rng: np.random.Generator) -> Sample:
        factor = np.float32(rng.uniform(1 - self.amount, 1 + self.amount))
        image = as_float(sample.image)
        return sample._replace(image=((image - image.mean()) * factor + image.mean()).clip(0, 1))


@dataclass(frozen=True)
class Saturation(Transform):
    """Stretch the colours away from grey by a random factor from 1 - amount to 1 + amount. Grey images stay."""

    amount: float = 0.3

    def __call__(self, sample: Sample, rng: np.random.Generator) -> Sample:
        factor = np.float32(rng.uniform(1 - self.amount, 1 + self.amount))
        image = as_float(sample.image)
        grey = image.mean(axis=2, keepdims=True)
        return sample._replace(image=((image - grey) * factor + grey).clip(0, 1))


@dataclass(frozen=True)
class Gamma(Transform):
    """Raise the values to a random power from 1 / (1 + amount) to 1 + amount."""

    amount: float = 0.3

    def __post_init__(self) -> None:
        _at_least("gamma", "amount", 0, self.amount)

    def __call__(self, sample: Sample, rng: np.random.Generator) -> Sample:
        limit = np.log1p(self.amount)
        power = np.float32(np.exp(rng.uniform(-limit, limit)))
        return sample._replace(image=as_float(sample.image) ** power)


@dataclass(frozen=True)
class Noise(Transform):
    """Add normal noise to each pixel and channel, of a standard deviation drawn from 0 to `sigma`."""

    sigma: float = 0.05

    def __post_init__(self) -> None:
        _at_least("noise", "sigma", 0, self.sigma)

    def __call__(self, sample: Sample, rng: np.random.Generator) -> Sample:
        image = as_float(sample.image)
        noise = rng.standard_normal(image.shape, np.float32) * np.float32(rng.uniform(0, self.sigma))
        return sample._replace(image=(image + noise).clip(0, 1))


@dataclass(frozen=True)
class Blur(Transform):
    """Smooth with a Gaussian of a standard deviation drawn from 0 to `sigma` pixels."""

    sigma: float = 1.0

    def __post_init__(self) -> None:
        _at_least("blur", "sigma", 0, self.sigma)

    def __call__(self, sample: Sample, rng: np.random.Generator) -> Sample:
        from scipy import ndimage

        sigma = rng.uniform(0, self.sigma)
        return sample._replace(image=ndimage.gaussian_filter(as_float(sample.image), (sigma, sigma, 0)))


@dataclass(frozen=True)
class Normalise(Transform):
    """Subtract the mean and divide by the standard deviation of the training images, channel by channel."""

    mean: tuple[float, ...]
    std: tuple[float, ...]

    def __post_init__(self) -> None:
        if min(self.std) <= 0:
            raise ValueError(f"normalise: std must be above 0, got {self.std}")

    def __call__(self, sample: Sample, rng: np.random.Generator) -> Sample:
        channels = sample.image.shape[2]
        mean, std = per_channel("mean", self.mean, channels), per_channel("std", self.std, channels)
        return sample._replace(image=(as_float(sample.image) - mean) / std)


# ----------------------------------------------------------------------------------------------- configuration

TRANSFORMS: dict[str, type[Transform]] = {
    cls.__name__.lower(): cls
    for cls in (
        Flip,
        Rotate90,
        Crop,
        Resize,
        Scale,
        Rotate,
        Elastic,
        Brightness,
        Contrast,
        Saturation,
        Gamma,
        Noise,
        Blur,
        Normalise,
    )
}


def build(settings: Iterable[Mapping[str, Any]], dataset: Dataset | None = None) -> Compose:
    """Transforms from a list of tables, each with the `name` of a transform and its settings.

    What the settings leave open and the data set knows is taken from there: the mean colour and the ignore label
    for pixels beyond the border, and the statistics of `normalise`. Unknown names, unknown settings and values of
    the wrong type are errors, and so is a transform after `normalise`, as all the others expect values of 0..1.
    """
    transforms = [_build_one(table, dataset) for table in settings]
    for transform in transforms[:-1]:
        if isinstance(transform, Normalise):
            raise ValueError("transforms: normalise must be the last, the others expect values of 0..1")
    return Compose(transforms)


def _build_one(table: Mapping[str, Any], dataset: Dataset | None) -> Transform:
    if not isinstance(table, Mapping) or not isinstance(table.get("name"), str):
        raise TypeError(f'transforms: each must be a table with a name, such as {{name = "flip"}}, got {table!r}')
    name = table["name"]
    if name not in TRANSFORMS:
        raise ValueError(f"transforms: there is no {name!r}; {nearest(name, TRANSFORMS)}")
    cls = TRANSFORMS[name]
    known = {field.name: field for field in fields(cls)}  # type: ignore[arg-type]
    given = {}
    for key, value in table.items():
        if key == "name":
            continue
        if key not in known:
            raise ValueError(
                f"transforms: {name} has no setting {key!r}; {nearest(key, known) if known else 'none'}"
            )
        given[key] = _typed(f"transforms: {name}.{key}", known[key].type, value)
    if dataset is not None:
        _fill_in(given, known, dataset)
    missing = [key for key, field in known.items() if field.default is MISSING and key not in given]
    if missing:
        raise ValueError(f"transforms: {name} needs {' and '.join(missing)}")
    return cls(**given)


def _fill_in(given: dict[str, Any], known: Mapping[str, Any], dataset: Dataset) -> None:
    """What the data set knows, for the settings that were not given."""
    mean = tuple(map(float, dataset.mean))
    offers = {
        "fill": mean,
        "mean": mean,
        "std": tuple(map(float, dataset.std)),
        "ignore_label": dataset.ignore_label,
    }
    for key, value in offers.items():
        if key in known:
            given.setdefault(key, value)


def _typed(where: str, kind: Any, value: Any) -> Any:
    """The value as the type of a field; an integer may stand for a float, and nothing else for anything else."""
    integer = isinstance(value, int) and not isinstance(value, bool)
    number = integer or isinstance(value, float)
    if kind is float and number:
        return float(value)
    if kind is int and integer:
        return value
    if kind == int | None and (value is None or integer):
        return value
    if kind is bool and isinstance(value, bool):
        return value
    if kind is str and isinstance(value, str):
        return value
    if kind == tuple[int, int]:
        if integer:
            return (value, value)
        if isinstance(value, Sequence) and len(value) == 2 and all(type(v) is int for v in value):
            return (value[0], value[1])
        raise TypeError(f"{where} must be two integers (height, width) or one for both, got {value!r}")
    if kind == tuple[float, ...]:
        values = [value] if number else value
        if isinstance(values, Sequence) and values and all(type(v) in (int, float) for v in values):
            return tuple(map(float, values))
        raise TypeError(f"{where} must be a number or a list of numbers, got {value!r}")
    raise TypeError(f"{where} must be {getattr(kind, '__name__', kind)}, got {value!r}")


# ------------------------------------------------------------------------------------------------------ helpers


def _on_all(sample: Sample, change: Any) -> Sample:
    """The same change of the first two axes on the image, the mask and the weights."""
    image, mask, weights, name = sample
    return Sample(
        np.ascontiguousarray(change(image)),
        None if mask is None else np.ascontiguousarray(change(mask)),
        None if weights is None else np.ascontiguousarray(change(weights)),
        name,
    )


def _as_stored(fill: Sequence[float], image: np.ndarray) -> np.ndarray:
    """A colour in 0..1 as the image stores it."""
    values = per_channel("fill", fill, image.shape[2])
    return np.rint(values * 255).astype(np.uint8) if image.dtype == np.uint8 else values


def _holding(mask: np.ndarray, label: int | None) -> np.ndarray:
    """The mask in an integer type that can hold the label too."""
    if label is None or np.iinfo(mask.dtype).min <= label <= np.iinfo(mask.dtype).max:
        return mask
    return mask.astype(np.int64)


def _mirrored(border: str, ignore_label: int | None) -> bool:
    return border == "mirror" or (border == "" and ignore_label is None)


def _check_border(name: str, border: str, ignore_label: int | None) -> None:
    if border not in ("", "constant", "mirror"):
        raise ValueError(f'{name}: border must be "constant" or "mirror", got {border!r}')
    if border == "constant" and ignore_label is None:
        raise ValueError(
            f'{name}: a constant border needs an ignore_label for the mask; without one use border = "mirror"'
        )


def _at_least(name: str, setting: str, least: float, *values: float) -> None:
    if min(values) < least:
        raise ValueError(f"{name}: {setting} must be at least {least}, got {', '.join(map(str, values))}")

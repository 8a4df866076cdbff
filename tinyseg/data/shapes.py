"""Synthetic pictures with exact masks, drawn when they are asked for: something to train on without a download.

A picture shows a few textured shapes, which may hide parts of each other, before a cloudy background. As with real
things, colour, surface and outline all hint at the class: disks are often red, squares are chequered, rings have
holes. Light varies over the picture, and there is noise. With `surfaces="any"` a shape has any colour and any
texture, and its outline alone tells the class: that takes a network several times as long to learn.

Picture i of a split depends on the seed, the split and i, and on nothing else: not on the pictures made before, on
the number of threads or on the machine.
"""

import colorsys
from collections.abc import Callable, Sequence

import numpy as np

from tinyseg.data.sample import DataError, Sample, nearest, per_channel

CLASSES = ("background", "disk", "ring", "square", "triangle", "cross")
PALETTE = ((40, 44, 52), (224, 108, 92), (97, 175, 239), (229, 192, 103), (142, 192, 110), (186, 120, 214))

# Of 2000 pictures of 128 x 128.
MEAN = (0.49, 0.49, 0.49)
STD = (0.21, 0.21, 0.21)

SPLITS = {"train": 0, "val": 1, "test": 2}


class Shapes:
    """Synthetic shapes: up to 6 classes, background among them, and no ignore label.

    length     number of pictures; by default 800 to train on, 100 to validate and 100 to test
    size       (height, width) of the pictures
    seed       another seed gives other pictures of the same kind
    kinds      how many kinds of shapes there are, in the order disk, ring, square, triangle, cross
    objects    the least and the most shapes in a picture of equal sides; a longer one gets more
    noise      the largest standard deviation of the pixel noise, in 0..1; each picture draws its own
    occlusion  the largest share of a shape that others may hide
    surfaces   "own": each class has a texture and a range of hues; "any": all classes share all of them
    """

    def __init__(
        self,
        split: str = "train",
        *,
        length: int | None = None,
        size: Sequence[int] = (128, 128),
        seed: int = 0,
        kinds: int = 5,
        objects: Sequence[int] = (2, 4),
        noise: float = 0.04,
        occlusion: float = 0.15,
        surfaces: str = "own",
    ):
        if split not in SPLITS:
            raise DataError(f"shapes: no split {split!r}; {nearest(split, SPLITS)}")
        self.size = _pair("size", size, least=16)
        self.objects = _pair("objects", objects, least=1)
        if self.objects[0] > self.objects[1]:
            raise DataError(f"shapes: objects must be (least, most), got {self.objects}")
        self.length = (800 if split == "train" else 100) if length is None else length
        if self.length < 1:
            raise DataError(f"shapes: length must be 1 or more, got {length}")
        if seed < 0 or noise < 0 or not 0 <= occlusion <= 1:
            raise DataError(
                "shapes: seed and noise must not be negative, and occlusion lies in 0..1; "
                f"got {seed}, {noise} and {occlusion}"
            )
        if surfaces not in ("own", "any"):
            raise DataError(f'shapes: surfaces must be "own" or "any", got {surfaces!r}')
        if not 1 <= kinds <= len(OUTLINES):
            raise DataError(f"shapes: kinds must be 1 to {len(OUTLINES)}, got {kinds}")
        self.split = split
        self.surfaces = surfaces
        self.seed = seed
        self.noise = noise
        self.occlusion = occlusion
        self.classes = CLASSES[: kinds + 1]
        self.ignore_label = None
        self.palette = np.array(PALETTE[: kinds + 1], np.uint8)
        self.channels = 3
        self.mean = per_channel("mean", MEAN, 3)
        self.std = per_channel("std", STD, 3)

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> Sample:
        if not -self.length <= index < self.length:
            raise IndexError(f"shapes: there are {self.length} pictures, and no number {index}")
        index %= self.length
        rng = np.random.default_rng(np.random.SeedSequence(self.seed, spawn_key=(SPLITS[self.split], index)))
        image, mask = self._draw(rng)
        return Sample(image, mask, name=f"{self.split}-{index:05d}")

    def __repr__(self) -> str:
        height, width = self.size
        return f"<Shapes {self.split}: {self.length} pictures of {height}x{width}, {len(self.classes)} classes>"

    def _draw(self, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        """A picture, uint8 (H, W, 3), and its mask, uint8 (H, W)."""
        height, width = self.size
        short = min(height, width)
        # 3 H W: planes, while arithmetic is done on them.
        image = _texture(rng, _clouds, height, width, _muted(rng), 0.08)
        mask = np.zeros((height, width), np.uint8)
        owner = np.zeros((height, width), np.uint8)  # which shape is seen at a pixel; 0 is none
        visible = np.zeros(256)  # how much of each shape is seen: a share of its area
        areas = np.ones(256)
        drawn = 0

        count = rng.integers(self.objects[0], self.objects[1] + 1)
        count = min(round(count * height * width / short**2), 255)
        for _ in range(count):
            label = int(rng.integers(1, len(self.classes)))
            for _ in range(10):  # places to try, before the shape is given up
                radius = short * rng.uniform(0.18, 0.3)
                box, distance = _place(rng, OUTLINES[label], radius, height, width)
                inside = distance <= 0
                left = visible - np.bincount(owner[box][inside], minlength=256) / areas
                if (left[1 : drawn + 1] >= 1 - self.occlusion).all():
                    break
            else:
                continue
            drawn += 1
            mask[box][inside] = label
            owner[box][inside] = drawn
            visible = left
            visible[drawn] = 1
            areas[drawn] = inside.sum()
            surface = label if self.surfaces == "own" else int(rng.integers(1, len(CLASSES)))
            hue_range = HUE_RANGE if self.surfaces == "own" else 0.5
            _paint(rng, PATTERNS[surface], _vivid(rng, HUES[surface], hue_range), image[:, *box], distance)

        light = np.float32(0.8) + np.float32(0.4) * _smooth_noise(rng, height, width, 3)
        grain = rng.standard_normal((3, height, width), np.float32)
        image *= light
        image += np.float32(self.noise * rng.random()) * grain
        image = (255 * image + np.float32(0.5)).clip(0, 255).astype(np.uint8)
        return np.ascontiguousarray(image.transpose(1, 2, 0)), mask


# ---------------------------------------------------------------------------------------------------- outlines
#
# The signed distance in pixels of the points (u, v) to an outline of a given radius around the origin: negative
# inside. Near corners it may be shorter than the true distance, which nobody sees.


def _disk(u: np.ndarray, v: np.ndarray, radius: float) -> np.ndarray:
    return np.hypot(u, v) - 0.9 * radius


def _ring(u: np.ndarray, v: np.ndarray, radius: float) -> np.ndarray:
    return np.abs(np.hypot(u, v) - 0.7 * radius) - 0.25 * radius


def _square(u: np.ndarray, v: np.ndarray, radius: float) -> np.ndarray:
    return np.maximum(np.abs(u), np.abs(v)) - 0.78 * radius


def _triangle(u: np.ndarray, v: np.ndarray, radius: float) -> np.ndarray:
    return np.maximum(0.866 * np.abs(u) + 0.5 * v, -v) - 0.62 * radius


def _cross(u: np.ndarray, v: np.ndarray, radius: float) -> np.ndarray:
    u, v = np.abs(u), np.abs(v)
    return np.maximum(np.maximum(u, v) - 0.98 * radius, np.minimum(u, v) - 0.3 * radius)


OUTLINES: dict[int, Callable] = {1: _disk, 2: _ring, 3: _square, 4: _triangle, 5: _cross}  # by label


def _place(
    rng: np.random.Generator, outline: Callable, radius: float, height: int, width: int
) -> tuple[tuple[slice, slice], np.ndarray]:
    """A random place for a shape: the box around it, and in that box the signed distance to its outline."""
    inset = 0.5 * radius  # a shape may lose a part over the edge of the picture
    row = rng.uniform(inset, height - inset)
    column = rng.uniform(inset, width - inset)
    turn = rng.uniform(0, 2 * np.pi)
    reach = 1.3 * radius + 1  # the farthest point of all is a triangle's corner, at 1.24 radius
    box = (_slice(row, reach, height), _slice(column, reach, width))
    y = np.arange(box[0].start, box[0].stop, dtype=np.float32)[:, None] - np.float32(row)
    x = np.arange(box[1].start, box[1].stop, dtype=np.float32)[None, :] - np.float32(column)
    cos, sin = np.float32(np.cos(turn)), np.float32(np.sin(turn))
    return box, outline(cos * x + sin * y, cos * y - sin * x, np.float32(radius))


def _slice(centre: float, reach: float, size: int) -> slice:
    return slice(max(int(centre - reach), 0), min(int(centre + reach) + 2, size))


# ---------------------------------------------------------------------------------------------------- surfaces


def _paint(
    rng: np.random.Generator, pattern: Callable, colour: np.ndarray, picture: np.ndarray, distance: np.ndarray
) -> None:
    """Paint a shape into its box of the picture, (3, h, w), with a smooth edge and a little shade along it."""
    height, width = distance.shape
    surface = _texture(rng, pattern, height, width, colour, 0.45)
    depth = (distance * np.float32(-0.25)).clip(0, 1)  # 0 at the edge, 1 from 4 pixels inwards
    surface *= 1 - np.float32(rng.uniform(0.1, 0.4)) * (1 - depth)
    cover = (np.float32(0.5) - distance).clip(0, 1)
    picture += cover * (surface - picture)


def _muted(rng: np.random.Generator) -> np.ndarray:
    """A random grey with a touch of colour: float32 0..1, (3, 1, 1)."""
    tint = rng.uniform(-0.08, 0.08, (3, 1, 1))
    return (rng.uniform(0.2, 0.8) + tint).astype(np.float32)


def _vivid(rng: np.random.Generator, hue: float, hue_range: float) -> np.ndarray:
    """A strong colour near a hue (0 red, 1/3 green, 2/3 blue, 1 red again): float32 0..1, (3, 1, 1)."""
    hue = (hue + rng.uniform(-hue_range, hue_range)) % 1
    colour = colorsys.hsv_to_rgb(hue, rng.uniform(0.6, 1), rng.uniform(0.6, 1))
    return np.array(colour, np.float32)[:, None, None]


HUES = {1: 0.0, 2: 0.6, 3: 0.2, 4: 0.8, 5: 0.4}  # by label
HUE_RANGE = 0.07  # what light and texture do to a colour makes the ranges of neighbours touch


def _texture(
    rng: np.random.Generator, pattern: Callable, height: int, width: int, colour: np.ndarray, depth: float
) -> np.ndarray:
    """A surface, float32 (3, height, width): a pattern of a colour and one up to `depth` darker or lighter."""
    change = np.float32(depth * rng.uniform(0.7, 1) * (1 if colour.mean() < 0.5 else -1))
    return colour + pattern(rng, height, width) * ((colour + change).clip(0, 1) - colour)


def _clouds(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    cells = max(2, round(max(height, width) / 14))
    return 0.6 * _smooth_noise(rng, height, width, cells) + 0.4 * _smooth_noise(rng, height, width, 2 * cells)


def _stripes(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    return 0.5 + 0.5 * np.sin(_waves(rng, height, width)[0])


def _chequers(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    across, along = _waves(rng, height, width)
    return (0.5 + 3 * np.sin(across) * np.sin(along)).clip(0, 1)


def _dots(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    across, along = _waves(rng, height, width)
    return (1.5 * (np.sin(across) + np.sin(along)) - 1).clip(0, 1)


def _grains(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    return _smooth_noise(rng, height, width, max(2, max(height, width) // 2))


PATTERNS: dict[int, Callable] = {1: _dots, 2: _clouds, 3: _chequers, 4: _stripes, 5: _grains}  # by label


def _waves(rng: np.random.Generator, height: int, width: int) -> tuple[np.ndarray, np.ndarray]:
    """The phases of two waves at right angles, of a random direction and a length of 6 to 14 pixels."""
    angle = rng.uniform(0, np.pi)
    frequency = 2 * np.pi / rng.uniform(5, 9)
    shift = rng.uniform(0, 2 * np.pi, 2)
    y = np.arange(height, dtype=np.float32)[:, None]
    x = np.arange(width, dtype=np.float32)[None, :]
    cos, sin = np.float32(frequency * np.cos(angle)), np.float32(frequency * np.sin(angle))
    return cos * x + sin * y + np.float32(shift[0]), cos * y - sin * x + np.float32(shift[1])


def _smooth_noise(rng: np.random.Generator, height: int, width: int, cells: int) -> np.ndarray:
    """Random values on a coarse grid, interpolated linearly: float32 0..1 (height, width)."""
    grid = rng.random((cells + 1, cells + 1), np.float32)
    return _hats(height, cells) @ grid @ _hats(width, cells).T


def _hats(size: int, cells: int) -> np.ndarray:
    """The weight of each grid point at each pixel of an axis, (size, cells + 1): the linear hat functions."""
    position = np.linspace(0, cells, size, dtype=np.float32)[:, None]
    return np.maximum(1 - np.abs(position - np.arange(cells + 1, dtype=np.float32)), 0)


def _pair(name: str, value: Sequence[int], least: int) -> tuple[int, int]:
    if len(value) != 2 or min(value) < least or not all(isinstance(v, (int, np.integer)) for v in value):
        raise DataError(f"shapes: {name} must be two integers of at least {least}, got {value!r}")
    return int(value[0]), int(value[1])

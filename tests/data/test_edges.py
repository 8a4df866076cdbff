"""Edges of masks and Canny's: by hand, against plain loops, errors."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tinyseg.data.edges import canny, mask_edges

masks = st.builds(
    lambda height, width, seed: (
        np.random.default_rng(seed).integers(0, 3, (height, width)).repeat(3, 0).repeat(2, 1)
    ),
    st.integers(1, 4),
    st.integers(1, 5),
    st.integers(0, 2**32 - 1),
)


def rows(text):
    return np.array([[character == "#" for character in line] for line in text.split()])


def test_mask_edges_by_hand():
    mask = np.zeros((7, 9), int)
    mask[:, 4:] = 1
    # One pixel to each side of the border, and along the frame.
    expected = rows("######### #..##...# #..##...# #..##...# #..##...# #..##...# #########")
    np.testing.assert_array_equal(mask_edges(mask, radius=1), expected)
    np.testing.assert_array_equal(mask_edges(np.stack([mask, mask * 0])[:1], radius=1)[0], expected)
    # An area without a label has an edge on the side of the class, and none of its own.
    expected = rows("####..... #..#..... #..#..... #..#..... #..#..... #..#..... ####.....")
    labels = np.where(mask == 1, 255, mask)
    inside = mask_edges(labels, radius=1, ignore_label=255)
    np.testing.assert_array_equal(inside & (mask == 0), expected)
    np.testing.assert_array_equal(
        np.nonzero(inside[3] & (mask[3] == 1))[0], [4]
    )  # the other side of class 0's border


@settings(max_examples=40)
@given(mask=masks, radius=st.sampled_from([1.0, 1.5, 2.0, 3.0]))
def test_mask_edges_against_all_pairs_of_pixels(mask, radius):
    H, W = mask.shape
    padded = np.full((H + 2, W + 2), -1)
    padded[1:-1, 1:-1] = mask
    pixels = np.stack(np.meshgrid(np.arange(H + 2), np.arange(W + 2), indexing="ij"), -1).reshape(-1, 2)
    labels = padded.reshape(-1)
    expected = np.zeros((H, W), bool)
    for label in np.unique(mask):
        for h, w in np.ndindex(H, W):
            across = pixels[(labels == label) != (mask[h, w] == label)]
            if len(across):
                nearest = np.sqrt(((across - (h + 1, w + 1)) ** 2).sum(axis=1).min())
                expected[h, w] |= nearest <= radius
    np.testing.assert_array_equal(mask_edges(mask, radius=radius), expected)


def test_canny_by_hand():
    image = np.zeros((6, 8))
    image[:, 4:] = 30.0  # u = 4 * 30 at columns 3 and 4; the first of equals is the maximum
    expected = np.zeros((6, 8), bool)
    expected[:, 3] = True
    np.testing.assert_array_equal(canny(image), expected)
    assert not canny(image, high=120).any()
    # A weak edge stays where a strong one goes on from it, and only there.
    image[4:, 4:] = 20.0
    assert canny(image, low=10, high=100)[:, 3:5].any(axis=1).all()
    assert not canny(image * 0.5, low=10, high=100).any()
    # The strongest channel decides.
    colour = np.stack([np.zeros((6, 8)), image, image / 2], axis=-1)
    np.testing.assert_array_equal(canny(colour), canny(image))
    assert not canny(np.full((1, 1, 3), 90.0)).any()


def canny_in_loops(image, low, high):
    """Pixel by pixel, with a list of pixels to visit."""
    H, W, C = image.shape
    u, v = np.zeros((H, W)), np.zeros((H, W))
    smooth, difference = (1, 2, 1), (-1, 0, 1)
    for h, w in np.ndindex(H, W):
        best = -1.0
        for c in range(C):
            window = [
                [image[min(max(h + i, 0), H - 1), min(max(w + j, 0), W - 1), c] for j in difference]
                for i in difference
            ]
            along = sum(smooth[i] * difference[j] * window[i][j] for i in range(3) for j in range(3))
            down = sum(difference[i] * smooth[j] * window[i][j] for i in range(3) for j in range(3))
            if abs(along) + abs(down) > best:
                best, u[h, w], v[h, w] = abs(along) + abs(down), along, down
    m = np.abs(u) + np.abs(v)

    def at(h, w):
        return m[h, w] if 0 <= h < H and 0 <= w < W else 0.0

    kept = np.zeros((H, W), bool)
    for h, w in np.ndindex(H, W):
        angle = np.degrees(np.arctan2(abs(v[h, w]), abs(u[h, w])))
        here = m[h, w]
        if here == 0:
            continue
        if angle < 22.5:
            kept[h, w] = here > at(h, w - 1) and here >= at(h, w + 1)
        elif angle > 67.5:
            kept[h, w] = here > at(h - 1, w) and here >= at(h + 1, w)
        else:
            side = 1 if (u[h, w] < 0) == (v[h, w] < 0) else -1
            kept[h, w] = here > at(h - 1, w - side) and here > at(h + 1, w + side)
    edges = np.zeros((H, W), bool)
    visit = [(h, w) for h, w in np.ndindex(H, W) if kept[h, w] and m[h, w] > high]
    while visit:
        h, w = visit.pop()
        if not edges[h, w]:
            edges[h, w] = True
            around = [(h + i, w + j) for i in difference for j in difference]
            visit += [(a, b) for a, b in around if 0 <= a < H and 0 <= b < W and kept[a, b] and m[a, b] > low]
    return edges


@settings(max_examples=25)
@given(
    shape=st.tuples(st.integers(1, 11), st.integers(1, 13), st.sampled_from([1, 3])),
    seed=st.integers(0, 2**32 - 1),
    low=st.sampled_from([10, 120]),
)
def test_canny_against_loops(shape, seed, low):
    image = np.random.default_rng(seed).integers(0, 60, shape).astype(np.float64)
    np.testing.assert_array_equal(canny(image, low=low, high=190), canny_in_loops(image, low, 190))


def test_errors():
    with pytest.raises(TypeError, match=r"mask must be integers \(.., H, W\), got float64"):
        mask_edges(np.ones((3, 4)))
    with pytest.raises(ValueError, match=r"radius must be at least 1, .* got 0"):
        mask_edges(np.ones((3, 4), int), radius=0)
    with pytest.raises(ValueError, match=r"canny: image must have the axes .* got shape \(2, 3, 4, 3\)"):
        canny(np.ones((2, 3, 4, 3)))
    with pytest.raises(ValueError, match="0 <= low <= high, got low=100 and high=10"):
        canny(np.ones((3, 4)), low=100, high=10)

"""Output sizes of windows, by hand and by counting the places where a window fits."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tinyseg.ops import geometry


def out(size, kernel, **options):
    options = {"stride": 1, "padding_like": 0} | options
    return geometry.window("test", (size, size), kernel, **options).out[0]


def test_by_hand():
    assert out(7, 3) == 5
    assert out(7, 3, stride=2) == 3
    assert out(7, 3, stride=2, padding_like=1) == 4
    assert out(7, 3, dilation=3) == 1
    assert out(572, 3) == 570
    assert out(8, 3, stride=2) == 3
    assert out(8, 3, stride=2, ceil_mode=True) == 4


def test_ceil_mode_drops_a_window_that_starts_behind_the_image():
    assert out(4, 2, stride=3, padding_like=1, ceil_mode=True) == 2  # starts at 0 and 3 of the padded 6
    assert out(5, 1, stride=3, padding_like=0, ceil_mode=True) == 2
    assert out(3, 2, stride=2, padding_like=1, ceil_mode=True) == 2  # a third would start at 4, in the padding


def test_ceil_mode_takes_an_image_smaller_than_the_kernel():
    assert out(1, 2, stride=2, ceil_mode=True) == 1
    assert out(2, 3, stride=2, ceil_mode=True) == 1
    with pytest.raises(ValueError, match="the kernel spans 2 elements along the height"):
        out(1, 2, stride=2)
    with pytest.raises(ValueError, match="the kernel spans 4 elements"):
        out(2, 4, stride=2, ceil_mode=True)


@given(
    size=st.integers(1, 12),
    kernel=st.integers(1, 4),
    stride=st.integers(1, 4),
    dilation=st.integers(1, 3),
    before=st.integers(0, 3),
    after=st.integers(0, 3),
)
def test_counts_the_places_where_a_window_fits(size, kernel, stride, dilation, before, after):
    extent = (kernel - 1) * dilation + 1
    starts = [start for start in range(0, 20, stride) if start + extent <= size + before + after]
    options = {"stride": stride, "dilation": dilation, "padding_like": (before, after, before, after)}
    if starts:
        assert out(size, kernel, **options) == len(starts)
    else:
        with pytest.raises(ValueError, match="larger input, more padding or a smaller kernel"):
            out(size, kernel, **options)


@given(size=st.integers(1, 12), kernel=st.integers(1, 5), stride=st.integers(1, 4), dilation=st.integers(1, 3))
def test_same_padding_gives_one_output_per_stride(size, kernel, stride, dilation):
    window = geometry.window("test", (size, size), kernel, stride, "same", dilation)
    assert window.out == (-(-size // stride),) * 2
    assert 0 <= window.padding.bottom - window.padding.top <= 1
